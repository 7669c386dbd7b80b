// The border of operations on whole gradients and weights: checks types and lengths.
#include <algorithm>
#include <cmath>

#include "../kernels/kernels.h"
#include "../layers/dropout.h"
#include "../layers/singular_values.h"
#include "call.h"

namespace relora {

namespace {

napi_value sum_squares(const Call& call) {
  const auto arrays = call.arguments.list<const float>("arrays");
  std::vector<std::span<const float>> spans;
  for (const auto& array : arrays) spans.emplace_back(array.data, array.length);
  return number(call.env, call.context().kernels.sum_squares(call.context(), spans));
}

/// One array per parameter, with as many elements as it has, or with one per `elements_each` of them.
template <class T>
void follow(const Arguments& in, const char* name, const std::vector<Array<T>>& arrays,
            const std::vector<Array<float>>& parameters, size_t elements_each = 1) {
  if (arrays.size() != parameters.size()) {
    in.refuse(std::string(name) + " must hold as many arrays as parameters = " +
              std::to_string(parameters.size()) + ", got " + std::to_string(arrays.size()));
  }
  for (size_t i = 0; i < arrays.size(); i++) {
    const size_t length = (parameters[i].length + elements_each - 1) / elements_each;
    in.shape(arrays[i], {length}, elements_each == 1 ? "length of its parameter" : "blocks of its parameter");
  }
}

AdamWOptions adamw_options(Arguments& in) {
  const napi_value options = in.object("options");
  const auto option = [&](const char* name) { return in.option(options, name); };
  return {option("learningRate"), option("beta1"),       option("beta2"),       option("epsilon"),
          option("weightDecay"),  option("correction1"), option("correction2"), option("gradientScale")};
}

napi_value adamw_in_place(const Call& call) {
  Arguments& in = call.arguments;
  const auto parameters = in.list<float>("parameters");
  const auto first = in.list<float>("firstMoments"), second = in.list<float>("secondMoments");
  const auto gradients = in.list<const float>("gradients");
  const AdamWOptions options = adamw_options(in);
  follow(in, "firstMoments", first, parameters);
  follow(in, "secondMoments", second, parameters);
  follow(in, "gradients", gradients, parameters);
  in.outputs_stand_alone();
  std::vector<AdamWBuffers> buffers;
  for (size_t i = 0; i < parameters.size(); i++) {
    buffers.push_back({parameters[i].length, parameters[i], gradients[i], first[i], second[i]});
  }
  call.context().kernels.adamw_in_place(call.context(), buffers, options);
  return undefined();
}

napi_value coded_adamw_in_place(const Call& call) {
  Arguments& in = call.arguments;
  const auto parameters = in.list<float>("parameters");
  const auto first = in.list<int8_t>("firstCodes");
  const auto first_scales = in.list<float>("firstScales");
  const auto second = in.list<uint8_t>("secondCodes");
  const auto second_scales = in.list<float>("secondScales");
  const auto gradients = in.list<const float>("gradients");
  const AdamWOptions options = adamw_options(in);
  follow(in, "firstCodes", first, parameters);
  follow(in, "firstScales", first_scales, parameters, moments_per_scale);
  follow(in, "secondCodes", second, parameters);
  follow(in, "secondScales", second_scales, parameters, moments_per_scale);
  follow(in, "gradients", gradients, parameters);
  in.outputs_stand_alone();
  std::vector<CodedAdamWBuffers> buffers;
  for (size_t i = 0; i < parameters.size(); i++) {
    buffers.push_back({parameters[i].length, parameters[i], gradients[i], first[i], first_scales[i],
                       second[i], second_scales[i]});
  }
  call.context().kernels.coded_adamw_in_place(call.context(), buffers, options);
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

/// An integer option used as a counter of a random stream: taken modulo 2^32.
uint32_t counter(Arguments& in, napi_value options, const char* name) {
  const double value = in.option(options, name);
  if (!(value >= 0 && value <= 9007199254740991.0) || std::trunc(value) != value) {
    in.refuse("options." + std::string(name) + " must be an integer of at least 0, got " + std::to_string(value));
  }
  return static_cast<uint32_t>(static_cast<uint64_t>(value));
}

napi_value dropout_mask(const Call& call) {
  Arguments& in = call.arguments;
  const auto mask = in.output("mask");
  const napi_value options = in.object("options");
  const double share = in.option(options, "share"), seed = in.option(options, "seed");
  if (!(share >= 0 && share < 1)) in.refuse("options.share must be in [0, 1), got " + std::to_string(share));
  counter(in, options, "seed");
  const DropoutStream stream{share,
                             static_cast<uint64_t>(seed),
                             counter(in, options, "step"),
                             counter(in, options, "firstSequence"),
                             counter(in, options, "layer"),
                             counter(in, options, "sequenceLength")};
  if (stream.sequence_length == 0 || mask.length % stream.sequence_length != 0) {
    in.refuse("mask must hold whole sequences of options.sequenceLength = " +
              std::to_string(stream.sequence_length) + " elements, got " + std::to_string(mask.length));
  }
  relora::dropout_mask(call.context(), mask, mask.length, stream);
  return undefined();
}

constexpr Entry entries[] = {
    {"dropoutMask", 2, dropout_mask},
    {"sumSquares", 1, sum_squares},
    {"adamWInPlace", 5, adamw_in_place},
    {"codedAdamWInPlace", 7, coded_adamw_in_place},
    {"addInPlace", 2, add_in_place},
    {"singularValues", 3, singular_values},
};

}  // namespace

constinit const std::span<const Entry> training_entries = entries;

}  // namespace relora
