// Reads and checks the arguments of one call. Every mistake throws a C++ exception that the border turns into
// a JavaScript error, naming the function, the argument, what was expected and what came.
#pragma once
#define NAPI_VERSION 9
#include <node_api.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "../layers/linear_pass.h"

namespace relora {

/// A caller's mistake: a wrong type becomes a TypeError, a wrong value or length a RangeError.
struct BadType : std::runtime_error {
  using runtime_error::runtime_error;
};
struct BadValue : std::runtime_error {
  using runtime_error::runtime_error;
};

/// A typed array argument: never access more than `length` elements. Absent optional outputs have no data.
template <class T>
struct Array {
  T* data;
  size_t length;
  const char* name;

  operator T*() const { return data; }
  operator Array<const T>() const requires(!std::is_const_v<T>) { return {data, length, name}; }
};

class Arguments {
 public:
  Arguments(napi_env env, napi_callback_info info, const char* function, size_t expected);

  // In the order of the call. The type of an array is checked here, its length once the dimensions that follow are known.
  Array<float> output(const char* name);
  Array<float> output_or_null(const char* name);
  Array<const float> input(const char* name);
  Array<const float> input_or_null(const char* name);
  Array<const int32_t> ids(const char* name);
  /// A JavaScript array of typed arrays, which are named `name[index]`; outputs unless T is const.
  template <class T>
  std::vector<Array<T>> list(const char* name);
  size_t dimension(const char* name, size_t least = 1);
  double number(const char* name);
  bool boolean(const char* name);
  std::string text(const char* name);
  Precision precision(const char* name);
  Graph graph(const char* name);
  /// The precision of a frozen base, which may also be int8 or nf4.
  Precision base_precision(const char* name);
  napi_value object(const char* name);
  /// An ArrayBuffer.
  napi_value buffer(const char* name);
  /// The next value itself, for a caller that reads it next and keeps it beyond the call.
  napi_value upcoming() const { return values_[position_]; }
  Array<uint8_t> bytes(const char* name, bool is_output);
  /// @param maker the function that makes such handles
  template <class T>
  T* external(const char* name, const napi_type_tag& tag, const char* maker = "packBase") {
    return static_cast<T*>(external_pointer(name, tag, maker));
  }
  /// Whether the next value is null, which is then consumed.
  bool skip_null();

  /// During its lifetime, values are read from the fields of the next argument, an object, and are named `name.field`: a struct of the
  /// border, with the field names of TypeScript.
  class Fields {
   public:
    Fields(Arguments& in, const char* name) : in_(in) { in.open_object(name); }
    ~Fields() { in_.objects_.pop_back(); }
    Fields(const Fields&) = delete;
    Fields& operator=(const Fields&) = delete;

   private:
    Arguments& in_;
  };
  /// Whether a field of the object that is open is null.
  bool is_null(const char* field);
  double option(napi_value object, const char* name);
  std::string text_option(napi_value object, const char* name);

  /// An array must hold exactly the product of `dimensions`, or `at_least` that many. An absent one has no
  /// shape.
  template <class T>
  void shape(const Array<T>& array, std::initializer_list<size_t> dimensions, const char* formula,
             bool at_least = false) const {
    if (array.data != nullptr) check_length(array.name, array.length, dimensions, formula, at_least);
  }
  /// Every element must lie in [least, end).
  void values(const Array<const int32_t>& array, int64_t least, int64_t end) const;
  /// Outputs must not overlap anything. Called once all arguments are read.
  void outputs_stand_alone() const;

  [[noreturn]] void refuse(const std::string& what) const;

 private:
  struct Extent {
    const char* name;
    const char* begin;
    const char* end;
    bool is_output;
  };

  struct Object {
    napi_value value;
    std::string name;
  };

  /// The next argument, or the field with that name. Afterwards `name` is its full name.
  napi_value next(const char*& name);
  void open_object(const char* name);
  /// Of the field that was read last.
  const char* full_name(const char* name) const;
  Precision precision_of(const char* name, const char* expected, std::initializer_list<Precision> offered);
  void* array(const char* name, napi_typedarray_type type, const char* type_name, bool is_output,
              size_t& length);
  void* typed_array(napi_value value, const char* name, napi_typedarray_type type, const char* type_name,
                    size_t element_bytes, bool is_output, size_t& length);
  void check_length(const char* name, size_t length, std::initializer_list<size_t> dimensions,
                    const char* formula, bool at_least) const;
  void* external_pointer(const char* name, const napi_type_tag& tag, const char* maker);
  [[noreturn]] void wrong_type(const char* name, const char* expected, napi_value value) const;

  napi_env env_;
  const char* function_;
  std::vector<napi_value> values_;
  size_t position_ = 0;
  std::vector<Extent> extents_;
  std::deque<std::string> element_names_;
  std::vector<Object> objects_;
};

}  // namespace relora
