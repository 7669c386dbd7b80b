// Reads and checks the arguments of one call. Every mistake throws a C++ exception that the border turns into a JavaScript error,
// naming the function, the argument, what was expected and what came.
#pragma once
#define NAPI_VERSION 9
#include <node_api.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "context.h"

namespace relora {

/// A caller's mistake: a wrong type becomes a TypeError, a wrong value or length a RangeError.
struct BadType : std::runtime_error {
  using runtime_error::runtime_error;
};
struct BadValue : std::runtime_error {
  using runtime_error::runtime_error;
};

class Arguments {
 public:
  Arguments(napi_env env, napi_callback_info info, const char* function, size_t expected);

  // In the order of the call. Arrays are checked for their type here and for their length by the dimensions that follow.
  float* output(const char* name);
  float* output_or_null(const char* name);
  const float* input(const char* name);
  const int32_t* ids(const char* name);
  size_t dimension(const char* name, size_t least = 1);
  double number(const char* name);
  bool boolean(const char* name);
  Precision precision(const char* name);
  napi_value object(const char* name);
  template <class T>
  T* external(const char* name, const napi_type_tag& tag) {
    return static_cast<T*>(external_pointer(name, tag));
  }
  double option(napi_value object, const char* name);
  std::string text_option(napi_value object, const char* name);

  /// `array`, as it was returned above, must hold exactly the product of `dimensions`, or `at_least` that many.
  void shape(const void* array, std::initializer_list<size_t> dimensions, const char* formula, bool at_least = false) const;
  size_t length(const void* array) const;
  /// Every element of `array` must lie in [least, end).
  void values(const int32_t* array, int64_t least, int64_t end) const;
  /// Outputs must overlap nothing. Called once all arguments are read.
  void outputs_stand_alone() const;

  [[noreturn]] void refuse(const std::string& what) const;

 private:
  struct Array {
    const char* name;
    const void* data;
    size_t length;
    bool is_output;
  };

  napi_value next();
  const Array& array(const char* name, napi_typedarray_type type, const char* type_name, bool is_output);
  const Array& find(const void* data) const;
  void* external_pointer(const char* name, const napi_type_tag& tag);
  [[noreturn]] void wrong_type(const char* name, const char* expected, napi_value value) const;

  napi_env env_;
  const char* function_;
  std::vector<napi_value> values_;
  size_t position_ = 0;
  std::vector<Array> arrays_;
};

}  // namespace relora
