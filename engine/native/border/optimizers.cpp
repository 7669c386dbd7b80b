// The border of the matrix optimizers: checks groups of matrices of the same shape, in structs named as in
// engine/src/device/cpu/nativeAddon.ts.
#include <algorithm>
#include <cmath>

#include "../kernels/kernels.h"
#include "call.h"

namespace relora {

namespace {

using Fields = Arguments::Fields;

/// An array for each of `count` matrices, of `length` elements.
template <class T>
void each_of(const Arguments& in, const char* name, const std::vector<Array<T>>& arrays, size_t count, size_t length,
             const char* formula) {
  if (arrays.size() != count) {
    in.refuse(std::string(name) + " must hold as many arrays as parameters = " + std::to_string(count) + ", got " +
              std::to_string(arrays.size()));
  }
  for (const auto& array : arrays) in.shape(array, {length}, formula);
}

/// Moments of matrices of `length` elements: float32, or codes with their scales.
std::vector<MomentBuffer> read_moments(Arguments& in, size_t count, size_t length) {
  std::vector<MomentBuffer> moments;
  const Fields fields(in, "moments");
  if (!in.is_null("values")) {
    const auto values = in.list<float>("values");
    each_of(in, "moments.values", values, count, length, "length of its parameter");
    for (const auto& value : values) moments.push_back({value, nullptr, nullptr});
    return moments;
  }
  const auto codes = in.list<int8_t>("codes");
  const auto scales = in.list<float>("scales");
  each_of(in, "moments.codes", codes, count, length, "length of its parameter");
  each_of(in, "moments.scales", scales, count, (length + moments_per_scale - 1) / moments_per_scale,
          "blocks of its parameter");
  for (size_t i = 0; i < count; i++) moments.push_back({nullptr, codes[i], scales[i]});
  return moments;
}

/// parameters, gradients and moments of `length` elements each; without gradients the parameters are only read.
std::vector<MuonBuffers> read_matrices(Arguments& in, const char* name, size_t length, const char* formula) {
  const Fields fields(in, name);
  const auto parameters = in.list<float>("parameters");
  each_of(in, "parameters", parameters, parameters.size(), length, formula);
  std::vector<MuonBuffers> buffers;
  if (in.is_null("gradients")) {
    for (const auto& parameter : parameters) buffers.push_back({parameter, nullptr, {}});
    return buffers;
  }
  const auto gradients = in.list<const float>("gradients");
  each_of(in, "gradients", gradients, parameters.size(), length, formula);
  const auto moments = read_moments(in, parameters.size(), length);
  for (size_t i = 0; i < parameters.size(); i++) buffers.push_back({parameters[i], gradients[i], moments[i]});
  return buffers;
}

MuonOptions muon_options(Arguments& in) {
  const Fields fields(in, "options");
  MuonOptions options;
  options.learning_rate = in.number("learningRate");
  options.momentum = in.number("momentum");
  options.weight_decay = in.number("weightDecay");
  options.gradient_scale = in.number("gradientScale");
  options.precision = in.precision("precision");
  return options;
}

napi_value muon_in_place(const Call& call) {
  Arguments& in = call.arguments;
  size_t rows, columns;
  {
    const Fields fields(in, "shape");
    rows = in.dimension("rows");
    columns = in.dimension("columns");
  }
  const auto matrices = read_matrices(in, "matrices", rows * columns, "rows * columns");
  const MuonOptions options = muon_options(in);
  if (!matrices.empty() && matrices.front().gradient == nullptr) in.refuse("matrices.gradients must be there");
  in.outputs_stand_alone();
  call.context().kernels.muon_in_place(call.context(), matrices, rows, columns, options);
  return undefined();
}

napi_value lora_muon_in_place(const Call& call) {
  Arguments& in = call.arguments;
  LoraMuonShape shape;
  {
    const Fields fields(in, "shape");
    shape.in = in.dimension("inFeatures");
    shape.out = in.dimension("outFeatures");
    shape.rank = in.dimension("rank");
  }
  if (shape.rank > std::min(shape.in, shape.out)) {
    in.refuse("shape.rank must be at most the smaller side = " + std::to_string(std::min(shape.in, shape.out)) +
              ", got " + std::to_string(shape.rank));
  }
  const auto a = read_matrices(in, "a", shape.in * shape.rank, "inFeatures * rank");
  const auto b = read_matrices(in, "b", shape.rank * shape.out, "rank * outFeatures");
  const double scale = in.number("scale");
  const MuonOptions options = muon_options(in);
  if (a.size() != b.size()) in.refuse("a and b must hold as many matrices");
  if (!b.empty() && b.front().gradient == nullptr) in.refuse("b.gradients must be there");
  if (scale == 0 || !std::isfinite(scale)) in.refuse("scale must be finite and not 0, got " + std::to_string(scale));
  in.outputs_stand_alone();
  std::vector<LoraMuonBuffers> buffers;
  for (size_t i = 0; i < a.size(); i++) buffers.push_back({a[i], b[i]});
  call.context().kernels.lora_muon_in_place(call.context(), buffers, shape, scale, options);
  return undefined();
}

napi_value apollo_mini_in_place(const Call& call) {
  Arguments& in = call.arguments;
  size_t rows, columns;
  {
    const Fields fields(in, "shape");
    rows = in.dimension("rows");
    columns = in.dimension("columns");
  }
  std::vector<ApolloBuffers> buffers;
  {
    const Fields fields(in, "matrices");
    const auto parameters = in.list<float>("parameters");
    const auto gradients = in.list<const float>("gradients"), projections = in.list<const float>("projections");
    const auto first = in.list<float>("first"), second = in.list<float>("second"), norms = in.list<float>("norms");
    const size_t count = parameters.size(), less = std::min(rows, columns), more = std::max(rows, columns);
    each_of(in, "parameters", parameters, count, rows * columns, "rows * columns");
    each_of(in, "gradients", gradients, count, rows * columns, "rows * columns");
    each_of(in, "projections", projections, count, less, "the smaller side");
    each_of(in, "first", first, count, more, "the larger side");
    each_of(in, "second", second, count, more, "the larger side");
    each_of(in, "norms", norms, count, 1, "1");
    for (size_t i = 0; i < count; i++) {
      buffers.push_back({parameters[i], gradients[i], projections[i], first[i], second[i], norms[i]});
    }
  }
  const napi_value object = in.object("options");
  const auto option = [&](const char* name) { return in.option(object, name); };
  const AdamWOptions options{option("learningRate"), option("beta1"),       option("beta2"),       option("epsilon"),
                             option("weightDecay"),  option("correction1"), option("correction2"), option("gradientScale")};
  in.outputs_stand_alone();
  call.context().kernels.apollo_mini_in_place(call.context(), buffers, rows, columns, options);
  return undefined();
}

constexpr Entry entries[] = {
    {"muonInPlace", 3, muon_in_place},
    {"loraMuonInPlace", 5, lora_muon_in_place},
    {"apolloMiniInPlace", 3, apollo_mini_in_place},
};

}  // namespace

constinit const std::span<const Entry> optimizer_entries = entries;

}  // namespace relora
