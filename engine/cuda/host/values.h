// Reads and makes JavaScript values for this addon's border. A mistake of the caller throws before anything is touched.
#pragma once
#define NAPI_VERSION 9
#include <node_api.h>

#include <cmath>
#include <string>
#include <vector>

#include "libraries.h"

namespace relora::cuda {

struct BadArgument : std::runtime_error {
  using runtime_error::runtime_error;
};

struct Bytes {
  char* data;
  size_t size;
};

class Values {
 public:
  explicit Values(napi_env env) : env_(env) {}

  double number(napi_value value, const char* name, double most = 9007199254740992.0) const {
    double result;
    if (napi_get_value_double(env_, value, &result) != napi_ok) refuse(name, "a number");
    if (!(result >= 0 && result <= most) || result != std::floor(result)) {
      refuse(name, "a whole number from 0 to " + std::to_string(static_cast<uint64_t>(most)));
    }
    return result;
  }
  uint32_t small(napi_value value, const char* name) const {
    return static_cast<uint32_t>(number(value, name, 4294967295.0));
  }
  std::string text(napi_value value, const char* name) const {
    size_t length;
    if (napi_get_value_string_utf8(env_, value, nullptr, 0, &length) != napi_ok) refuse(name, "a string");
    std::string result(length, '\0');
    napi_get_value_string_utf8(env_, value, result.data(), length + 1, &length);
    return result;
  }
  /// Any typed array.
  Bytes bytes(napi_value value, const char* name) const {
    bool is_array = false;
    napi_is_typedarray(env_, value, &is_array);
    if (!is_array) refuse(name, "a typed array");
    napi_typedarray_type type;
    size_t length;
    void* data;
    napi_get_typedarray_info(env_, value, &type, &length, &data, nullptr, nullptr);
    return {static_cast<char*>(data), length * element_bytes(type)};
  }
  napi_value property(napi_value object, const char* name) const {
    napi_valuetype type;
    napi_typeof(env_, object, &type);
    napi_value result;
    if (type != napi_object || napi_get_named_property(env_, object, name, &result) != napi_ok) refuse(name, "a field");
    return result;
  }
  std::vector<std::string> texts(napi_value value, const char* name) const {
    uint32_t length;
    if (napi_get_array_length(env_, value, &length) != napi_ok) refuse(name, "an array of strings");
    std::vector<std::string> result;
    for (uint32_t i = 0; i < length; i++) {
      napi_value element;
      napi_get_element(env_, value, i, &element);
      result.push_back(text(element, name));
    }
    return result;
  }

  napi_value of(double value) const {
    napi_value result;
    napi_create_double(env_, value, &result);
    return result;
  }
  napi_value of(const std::string& value) const {
    napi_value result;
    napi_create_string_utf8(env_, value.data(), value.size(), &result);
    return result;
  }
  napi_value object(std::initializer_list<std::pair<const char*, napi_value>> fields) const {
    napi_value result;
    napi_create_object(env_, &result);
    for (const auto& [name, value] : fields) napi_set_named_property(env_, result, name, value);
    return result;
  }
  napi_value array(const std::vector<napi_value>& elements) const {
    napi_value result;
    napi_create_array_with_length(env_, elements.size(), &result);
    for (size_t i = 0; i < elements.size(); i++) napi_set_element(env_, result, static_cast<uint32_t>(i), elements[i]);
    return result;
  }

  [[noreturn]] static void refuse(const char* name, const std::string& expected) {
    throw BadArgument(std::string(name) + ": expected " + expected);
  }

 private:
  static size_t element_bytes(napi_typedarray_type type) {
    switch (type) {
      case napi_int8_array:
      case napi_uint8_array:
      case napi_uint8_clamped_array: return 1;
      case napi_int16_array:
      case napi_uint16_array: return 2;
      case napi_int32_array:
      case napi_uint32_array:
      case napi_float32_array: return 4;
      default: return 8;
    }
  }

  napi_env env_;
};

}  // namespace relora::cuda
