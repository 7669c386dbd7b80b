// The border of what is done to whole gradients and weights: types and lengths are checked here.
#include <algorithm>

#include "../kernels/kernels.h"
#include "../layers/singular_values.h"
#include "call.h"

namespace relora {

namespace {

napi_value sum_squares(const Call& call) {
  const auto x = call.arguments.input("x");
  return number(call.env, call.context().kernels.sum_squares(call.context(), x, x.length));
}

napi_value adamw_in_place(const Call& call) {
  Arguments& in = call.arguments;
  const auto parameter = in.output("parameter");
  const auto first = in.output("firstMoment");
  const auto second = in.output("secondMoment");
  const auto gradient = in.input("gradient");
  const napi_value options = in.object("options");
  const size_t length = parameter.length;
  for (const auto& array : {Array<const float>(first), Array<const float>(second), gradient}) {
    in.shape(array, {length}, "length of parameter");
  }
  in.outputs_stand_alone();
  const auto option = [&](const char* name) { return in.option(options, name); };
  call.context().kernels.adamw_in_place(
      call.context(), parameter, first, second, gradient, length,
      {option("learningRate"), option("beta1"), option("beta2"), option("epsilon"), option("weightDecay"),
       option("correction1"), option("correction2"), option("gradientScale")});
  return undefined();
}

napi_value add_in_place(const Call& call) {
  Arguments& in = call.arguments;
  const auto accumulator = in.output("accumulator");
  const auto x = in.input("x");
  in.shape(x, {accumulator.length}, "length of accumulator");
  in.outputs_stand_alone();
  call.context().kernels.add_in_place(call.context(), accumulator, x, accumulator.length);
  return undefined();
}

napi_value singular_values(const Call& call) {
  Arguments& in = call.arguments;
  const auto matrix = in.input("matrix");
  const size_t rows = in.dimension("rows"), columns = in.dimension("columns");
  in.shape(matrix, {rows, columns}, "rows * columns");
  const std::vector<double> values = relora::singular_values(call.context(), matrix, rows, columns);
  napi_value buffer, result;
  void* data;
  napi_create_arraybuffer(call.env, values.size() * sizeof(double), &data, &buffer);
  std::copy(values.begin(), values.end(), static_cast<double*>(data));
  napi_create_typedarray(call.env, napi_float64_array, values.size(), buffer, 0, &result);
  return result;
}

constexpr Entry entries[] = {
    {"sumSquares", 1, sum_squares},
    {"adamWInPlace", 5, adamw_in_place},
    {"addInPlace", 2, add_in_place},
    {"singularValues", 3, singular_values},
};

}  // namespace

constinit const std::span<const Entry> training_entries = entries;

}  // namespace relora
