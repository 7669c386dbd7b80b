#include "arguments.h"

#include <cmath>

namespace relora {

namespace {

constexpr double dimension_max = 2147483647.0;  // keeps products of three dimensions within 64 bits

std::string type_name(napi_env env, napi_value value) {
  bool is = false;
  if (napi_is_typedarray(env, value, &is) == napi_ok && is) {
    napi_typedarray_type type;
    napi_get_typedarray_info(env, value, &type, nullptr, nullptr, nullptr, nullptr);
    static constexpr const char* names[] = {
        "Int8Array",   "Uint8Array",   "Uint8ClampedArray", "Int16Array",    "Uint16Array",    "Int32Array",
        "Uint32Array", "Float32Array", "Float64Array",      "BigInt64Array", "BigUint64Array",
    };
    return static_cast<size_t>(type) < std::size(names) ? names[type] : "another typed array";
  }
  napi_valuetype type;
  if (napi_typeof(env, value, &type) != napi_ok) return "unknown";
  static constexpr const char* names[] = {"undefined", "null",   "boolean",  "number",   "string",
                                          "symbol",    "object", "function", "external", "bigint"};
  return names[type];
}

std::string format(double value) {
  if (std::trunc(value) == value && std::fabs(value) < 1e15) {
    return std::to_string(static_cast<int64_t>(value));
  }
  return std::to_string(value);
}

}  // namespace

Arguments::Arguments(napi_env env, napi_callback_info info, const char* function, size_t expected)
    : env_(env), function_(function), values_(expected) {
  size_t count = expected;
  napi_get_cb_info(env, info, &count, values_.data(), nullptr, nullptr);
  if (count != expected) {
    throw BadType(std::string(function) + ": expected " + std::to_string(expected) + " arguments, got " +
                  std::to_string(count));
  }
  extents_.reserve(expected);
}

void Arguments::refuse(const std::string& what) const {
  throw BadValue(std::string(function_) + ": " + what);
}

void Arguments::wrong_type(const char* name, const char* expected, napi_value value) const {
  throw BadType(std::string(function_) + ": " + name + " must be " + expected + ", got " +
                type_name(env_, value));
}

napi_value Arguments::next(const char*& name) {
  if (objects_.empty()) return values_[position_++];
  napi_value value;
  napi_get_named_property(env_, objects_.back().value, name, &value);
  name = element_names_.emplace_back(objects_.back().name + "." + name).c_str();
  return value;
}

void Arguments::open_object(const char* name) {
  const napi_value value = object(name);
  // The name of an object in a list is the full name of its last field.
  objects_.push_back({value, objects_.empty() ? name : element_names_.back()});
}

const char* Arguments::full_name(const char* name) const {
  return objects_.empty() ? name : element_names_.back().c_str();
}

bool Arguments::is_null(const char* field) {
  napi_value value;
  napi_valuetype type;
  napi_get_named_property(env_, objects_.back().value, field, &value);
  napi_typeof(env_, value, &type);
  return type == napi_null;
}

void* Arguments::array(const char* name, napi_typedarray_type type, const char* type_name, bool is_output,
                       size_t& length) {
  const napi_value value = next(name);
  return typed_array(value, name, type, type_name, 4, is_output, length);
}

void* Arguments::typed_array(napi_value value, const char* name, napi_typedarray_type type,
                             const char* type_name, size_t element_bytes, bool is_output, size_t& length) {
  bool is_typed_array = false;
  napi_is_typedarray(env_, value, &is_typed_array);
  napi_typedarray_type got{};
  void* data = nullptr;
  if (is_typed_array) napi_get_typedarray_info(env_, value, &got, &length, &data, nullptr, nullptr);
  if (!is_typed_array || got != type) wrong_type(name, type_name, value);
  if (length == 0) return this;  // may have no address, but is not absent
  const char* begin = static_cast<const char*>(data);
  extents_.push_back({name, begin, begin + length * element_bytes, is_output});
  return data;
}

namespace {
template <class T>
struct TypedArrayOf;
template <>
struct TypedArrayOf<float> {
  static constexpr napi_typedarray_type type = napi_float32_array;
  static constexpr const char* name = "a Float32Array";
};
template <>
struct TypedArrayOf<int8_t> {
  static constexpr napi_typedarray_type type = napi_int8_array;
  static constexpr const char* name = "an Int8Array";
};
template <>
struct TypedArrayOf<uint8_t> {
  static constexpr napi_typedarray_type type = napi_uint8_array;
  static constexpr const char* name = "a Uint8Array";
};
}  // namespace

template <class T>
std::vector<Array<T>> Arguments::list(const char* name) {
  using Typed = TypedArrayOf<std::remove_const_t<T>>;
  const napi_value value = next(name);
  bool is_array = false;
  napi_is_array(env_, value, &is_array);
  if (!is_array) wrong_type(name, "an Array", value);
  uint32_t count = 0;
  napi_get_array_length(env_, value, &count);
  std::vector<Array<T>> arrays;
  arrays.reserve(count);
  for (uint32_t i = 0; i < count; i++) {
    napi_value element;
    napi_get_element(env_, value, i, &element);
    const char* element_name =
        element_names_.emplace_back(std::string(name) + "[" + std::to_string(i) + "]").c_str();
    size_t length = 0;
    void* data = typed_array(element, element_name, Typed::type, Typed::name, sizeof(T), !std::is_const_v<T>,
                             length);
    arrays.push_back({static_cast<T*>(data), length, element_name});
  }
  return arrays;
}
template std::vector<Array<float>> Arguments::list(const char*);
template std::vector<Array<const float>> Arguments::list(const char*);
template std::vector<Array<int8_t>> Arguments::list(const char*);
template std::vector<Array<uint8_t>> Arguments::list(const char*);

Array<float> Arguments::output(const char* name) {
  size_t length = 0;
  void* data = array(name, napi_float32_array, "a Float32Array", true, length);
  return {static_cast<float*>(data), length, full_name(name)};
}

Array<float> Arguments::output_or_null(const char* name) {
  if (objects_.empty() ? skip_null() : is_null(name)) return {nullptr, 0, name};
  return output(name);
}

Array<const float> Arguments::input_or_null(const char* name) {
  if (objects_.empty() ? skip_null() : is_null(name)) return {nullptr, 0, name};
  return input(name);
}

bool Arguments::skip_null() {
  napi_valuetype type;
  napi_typeof(env_, values_[position_], &type);
  if (type == napi_null) position_++;
  return type == napi_null;
}

Array<const float> Arguments::input(const char* name) {
  size_t length = 0;
  void* data = array(name, napi_float32_array, "a Float32Array", false, length);
  return {static_cast<const float*>(data), length, full_name(name)};
}

Array<const int32_t> Arguments::ids(const char* name) {
  size_t length = 0;
  void* data = array(name, napi_int32_array, "an Int32Array", false, length);
  return {static_cast<const int32_t*>(data), length, full_name(name)};
}

size_t Arguments::dimension(const char* name, size_t least) {
  const double value = number(name);
  if (!(value >= static_cast<double>(least) && value <= dimension_max) || std::trunc(value) != value) {
    refuse(std::string(full_name(name)) + " must be an integer of at least " + std::to_string(least) + ", got " +
           format(value));
  }
  return static_cast<size_t>(value);
}

double Arguments::number(const char* name) {
  const napi_value value = next(name);
  double result;
  if (napi_get_value_double(env_, value, &result) != napi_ok) wrong_type(name, "a number", value);
  return result;
}

bool Arguments::boolean(const char* name) {
  const napi_value value = next(name);
  bool result;
  if (napi_get_value_bool(env_, value, &result) != napi_ok) wrong_type(name, "a boolean", value);
  return result;
}

std::string Arguments::text(const char* name) {
  const napi_value value = next(name);
  size_t length = 0;
  if (napi_get_value_string_utf8(env_, value, nullptr, 0, &length) != napi_ok) wrong_type(name, "a string", value);
  std::string result(length, '\0');
  napi_get_value_string_utf8(env_, value, result.data(), length + 1, &length);
  return result;
}

Precision Arguments::precision(const char* name) {
  return precision_of(name, "'float32' or 'bfloat16'", {Precision::float32, Precision::bfloat16});
}

Precision Arguments::base_precision(const char* name) {
  return precision_of(name, "'float32', 'bfloat16', 'int8' or 'nf4'",
                      {Precision::float32, Precision::bfloat16, Precision::int8, Precision::nf4});
}

Precision Arguments::precision_of(const char* name, const char* expected,
                                  std::initializer_list<Precision> offered) {
  const napi_value value = next(name);
  char text[16] = {};
  if (napi_get_value_string_utf8(env_, value, text, sizeof text, nullptr) != napi_ok) {
    wrong_type(name, expected, value);
  }
  for (const Precision precision : offered) {
    if (name_of(precision) == text) return precision;
  }
  refuse(std::string(name) + " must be " + expected + ", got '" + text + "'");
}

Graph Arguments::graph(const char* name) {
  const napi_value value = next(name);
  char text[16] = {};
  if (napi_get_value_string_utf8(env_, value, text, sizeof text, nullptr) != napi_ok) {
    wrong_type(name, "'separate', 'merged' or 'weightGradient'", value);
  }
  if (std::string_view(text) == "separate") return Graph::separate;
  if (std::string_view(text) == "merged") return Graph::merged;
  if (std::string_view(text) == "weightGradient") return Graph::weight_gradient;
  refuse(std::string(name) + " must be 'separate', 'merged' or 'weightGradient', got '" + text + "'");
}

napi_value Arguments::object(const char* name) {
  const napi_value value = next(name);
  napi_valuetype type;
  napi_typeof(env_, value, &type);
  if (type != napi_object) wrong_type(name, "an object", value);
  return value;
}

napi_value Arguments::buffer(const char* name) {
  const napi_value value = next(name);
  bool is_buffer = false;
  napi_is_arraybuffer(env_, value, &is_buffer);
  if (!is_buffer) wrong_type(name, "an ArrayBuffer", value);
  return value;
}

Array<uint8_t> Arguments::bytes(const char* name, bool is_output) {
  size_t length = 0;
  void* data = typed_array(next(name), name, napi_uint8_array, "a Uint8Array", 1, is_output, length);
  return {static_cast<uint8_t*>(data), length, full_name(name)};
}

void* Arguments::external_pointer(const char* name, const napi_type_tag& tag, const char* maker) {
  const napi_value value = next(name);
  napi_valuetype type;
  napi_typeof(env_, value, &type);
  bool is_ours = false;
  void* pointer = nullptr;
  if (type == napi_object) napi_check_object_type_tag(env_, value, &tag, &is_ours);
  if (!is_ours || napi_unwrap(env_, value, &pointer) != napi_ok) {
    wrong_type(name, (std::string("a handle made by ") + maker).c_str(), value);
  }
  return pointer;
}

double Arguments::option(napi_value object, const char* name) {
  napi_value value;
  double result;
  if (napi_get_named_property(env_, object, name, &value) != napi_ok ||
      napi_get_value_double(env_, value, &result) != napi_ok) {
    wrong_type((std::string("options.") + name).c_str(), "a number", value);
  }
  return result;
}

std::string Arguments::text_option(napi_value object, const char* name) {
  napi_value value;
  char text[32] = {};
  if (napi_get_named_property(env_, object, name, &value) != napi_ok ||
      napi_get_value_string_utf8(env_, value, text, sizeof text, nullptr) != napi_ok) {
    wrong_type((std::string("options.") + name).c_str(), "a string", value);
  }
  return text;
}

void Arguments::check_length(const char* name, size_t length, std::initializer_list<size_t> dimensions,
                             const char* formula, bool at_least) const {
  size_t expected = 1;
  for (const size_t dimension : dimensions) {
    if (__builtin_mul_overflow(expected, dimension, &expected)) {
      refuse(std::string(formula) + " does not fit 64 bits");
    }
  }
  if (at_least ? length >= expected : length == expected) return;
  refuse(std::string(name) + " must hold " + (at_least ? "at least " : "") + formula + " = " +
         std::to_string(expected) + " elements, got " + std::to_string(length));
}

void Arguments::values(const Array<const int32_t>& array, int64_t least, int64_t end) const {
  for (size_t i = 0; i < array.length; i++) {
    if (array.data[i] >= least && array.data[i] < end) continue;
    refuse(std::string(array.name) + "[" + std::to_string(i) + "] must be in [" + std::to_string(least) +
           ", " + std::to_string(end) + "), got " + std::to_string(array.data[i]));
  }
}

void Arguments::outputs_stand_alone() const {
  for (const Extent& output : extents_) {
    if (!output.is_output) continue;
    for (const Extent& other : extents_) {
      if (&other == &output || output.begin >= other.end || other.begin >= output.end) continue;
      refuse(std::string(output.name) + " must not overlap " + other.name);
    }
  }
}

}  // namespace relora
