// The border of the halves of a block: checks arguments, which are structs named as in engine/src/device/cpu/nativeAddon.ts; kernels rely
// on them.
#include "attention_shape.h"
#include "packed_base.h"

namespace relora {

namespace {

using Fields = Arguments::Fields;

size_t rows_of(const MlpPass& pass) { return pass.rows; }
size_t rows_of(const AttentionPass& pass) { return pass.shape.batch * pass.shape.time; }

/// A layer: its packed base, or null and its trained weight; its adapter or null; its bias or null.
template <class Pass>
LinearPass linear_pass(const Call& call, const Pass& pass, const char* name, size_t in_features, size_t out_features) {
  Arguments& in = call.arguments;
  const Fields fields(in, name);
  LinearPass l{.in = in_features, .out = out_features};
  if (!in.is_null("base")) {
    l.base = &usable_base(call);
    if (l.base->in != l.in || l.base->out != l.out) {
      in.refuse(std::string(name) + ".base must be " + std::to_string(l.in) + " x " + std::to_string(l.out) +
                ", got " + std::to_string(l.base->in) + " x " + std::to_string(l.base->out));
    }
  } else {
    const auto weight = in.input("weight");
    in.shape(weight, {l.in, l.out}, "inFeatures * outFeatures");
    l.weight = weight;
  }
  if (!in.is_null("adapter")) {
    const Fields of_adapter(in, "adapter");
    if (l.base == nullptr) in.refuse(std::string(name) + ".adapter must be null where the weight is trained");
    l.rank = in.dimension("rank");
    const auto a = in.input("a"), b = in.input("b");
    l.scale = static_cast<float>(in.number("scale"));
    l.graph = in.graph("graph");
    const auto mask = in.input_or_null("mask");
    if (pass.apart && l.graph != Graph::separate) in.refuse(std::string(name) + ".adapter.graph must be separate in a half that is apart");
    if (!pass.apart && mask != nullptr) in.refuse(std::string(name) + ".adapter.mask must be null in a half that is not apart");
    in.shape(mask, {rows_of(pass), l.in}, "rows * inFeatures");
    l.mask = mask;
    in.shape(a, {l.in, l.rank}, "inFeatures * rank");
    in.shape(b, {l.rank, l.out}, "rank * outFeatures");
    l.a = a;
    l.b = b;
  }
  const auto bias = in.input_or_null("bias");
  in.shape(bias, {l.out}, "outFeatures");
  l.bias = bias;
  return l;
}

/// Gradients of a layer, null for those not wanted: of a trained weight, or of a frozen one without an adapter; of an adapter; of a bias.
void gradients_of(Arguments& in, const char* name, LinearPass& l, bool apart) {
  const Fields fields(in, name);
  const auto weight = in.output_or_null("weight"), a = in.output_or_null("a"), b = in.output_or_null("b");
  const auto scale = in.output_or_null("scale"), bias = in.output_or_null("bias");
  const auto refuse = [&](const char* what) { in.refuse(std::string("gradients.") + name + what); };
  if (weight != nullptr && l.rank > 0) refuse(".weight must be null beside an adapter");
  if (l.rank > 0 && b == nullptr) refuse(".b must be there where there is an adapter");
  if (l.rank == 0 && (a != nullptr || b != nullptr)) refuse(".a and .b must be null without an adapter");
  if (scale != nullptr && (l.rank == 0 || !apart)) refuse(".scale must be null but beside an adapter of a half that is apart");
  if (l.bias == nullptr && bias != nullptr) refuse(".bias must be null where there is no bias");
  in.shape(weight, {l.in, l.out}, "inFeatures * outFeatures");
  in.shape(a, {l.in, l.rank}, "inFeatures * rank");
  in.shape(b, {l.rank, l.out}, "rank * outFeatures");
  in.shape(scale, {1}, "1");
  in.shape(bias, {l.out}, "outFeatures");
  l.dscale = scale;
  l.dweight = weight;
  l.da = a;
  l.db = b;
  l.dbias = bias;
}

/// The gradients that both halves have.
struct InputGradients {
  Array<float> dx, gain;
};
InputGradients input_gradients(Arguments& in, size_t rows, size_t hidden) {
  const auto dx = in.output("dx"), gain = in.output("gain");
  in.shape(dx, {rows, hidden}, "rows * hidden");
  in.shape(gain, {hidden}, "hidden");
  return {dx, gain};
}

/// gain, epsilon, precision, compact, apart
template <class Pass>
void common_fields(Arguments& in, Pass& pass, size_t hidden) {
  const auto gain = in.input("gain");
  in.shape(gain, {hidden}, "hidden");
  pass.gain = gain;
  pass.epsilon = static_cast<float>(in.number("epsilon"));
  pass.precision = in.precision("precision");
  pass.compact = in.boolean("compact");
  pass.apart = in.boolean("apart");
  if (pass.apart && pass.compact) in.refuse("half.compact must be false in a half that is apart");
}

MlpPass mlp_pass(const Call& call) {
  Arguments& in = call.arguments;
  const Fields fields(in, "half");
  MlpPass pass;
  size_t hidden, inner;
  {
    const Fields shape(in, "shape");
    pass.rows = in.dimension("rows");
    hidden = in.dimension("hidden");
    inner = in.dimension("intermediate");
  }
  common_fields(in, pass, hidden);
  pass.gate = linear_pass(call, pass, "gate", hidden, inner);
  pass.up = linear_pass(call, pass, "up", hidden, inner);
  pass.down = linear_pass(call, pass, "down", inner, hidden);
  return pass;
}

AttentionPass attention_pass(const Call& call) {
  Arguments& in = call.arguments;
  const Fields fields(in, "half");
  AttentionPass pass;
  AttentionShape& s = pass.shape;
  size_t hidden;
  {
    const Fields shape(in, "shape");
    hidden = in.dimension("hidden");
    s.batch = in.dimension("batch");
    s.time = in.dimension("time");
    s.heads = in.dimension("heads");
    s.kv_heads = in.dimension("kvHeads");
    s.head_dim = in.dimension("headDim");
    s.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(s.head_dim)));
    check_heads(in, s);
    if (s.head_dim % 2 != 0) in.refuse("half.shape.headDim must be even, got " + std::to_string(s.head_dim));
  }
  s.documents = documents_of(in, s);
  common_fields(in, pass, hidden);
  const auto cosines = in.input_or_null("cos"), sines = in.input_or_null("sin");
  if ((cosines == nullptr) != (sines == nullptr)) in.refuse("half.cos and half.sin must both be null, or neither");
  in.shape(cosines, {s.time, s.head_dim / 2}, "time * headDim / 2", true);
  in.shape(sines, {s.time, s.head_dim / 2}, "time * headDim / 2", true);
  pass.cosines = cosines;
  pass.sines = sines;
  if (!in.is_null("headNorms")) {
    const Fields norms(in, "headNorms");
    const auto gain_of = [&](const char* name) {
      const auto gain = in.input(name);
      in.shape(gain, {s.head_dim}, "headDim");
      return gain;
    };
    pass.q_norm.gain = gain_of("q");
    pass.k_norm.gain = gain_of("k");
  }
  const size_t width = s.heads * s.head_dim, key_width = s.kv_heads * s.head_dim;
  pass.q = linear_pass(call, pass, "q", hidden, width);
  pass.k = linear_pass(call, pass, "k", hidden, key_width);
  pass.v = linear_pass(call, pass, "v", hidden, key_width);
  pass.o = linear_pass(call, pass, "o", width, hidden);
  if (pass.o.bias != nullptr) in.refuse("half.o.bias must be null: queries, keys and values alone have one");
  return pass;
}

size_t hidden_of(const MlpPass& pass) { return pass.gate.in; }
size_t hidden_of(const AttentionPass& pass) { return pass.q.in; }

void read_gradients(Arguments& in, MlpPass& pass) {
  gradients_of(in, "gate", pass.gate, pass.apart);
  gradients_of(in, "up", pass.up, pass.apart);
  gradients_of(in, "down", pass.down, pass.apart);
}
void read_gradients(Arguments& in, AttentionPass& pass) {
  if (in.is_null("headNorms") != (pass.q_norm.gain == nullptr)) {
    in.refuse("gradients.headNorms must be null where the half has none, and only there");
  }
  if (pass.q_norm.gain != nullptr) {
    const Fields norms(in, "headNorms");
    const auto gain_of = [&](const char* name) {
      const auto gain = in.output(name);
      in.shape(gain, {pass.shape.head_dim}, "headDim");
      return gain;
    };
    pass.q_norm.dgain = gain_of("q");
    pass.k_norm.dgain = gain_of("k");
  }
  gradients_of(in, "q", pass.q, pass.apart);
  gradients_of(in, "k", pass.k, pass.apart);
  gradients_of(in, "v", pass.v, pass.apart);
  gradients_of(in, "o", pass.o, pass.apart);
}

template <class T>
void check_state(Arguments& in, const Array<T>& state, size_t bytes) {
  in.shape(state, {(bytes + 3) / 4}, "floats of the state", true);
}

/// half, x, y or null, state or null
template <class Pass>
napi_value forward(const Call& call, Pass pass, size_t (*state_bytes)(const Pass&),
                   void (*kernel)(Context&, float*, void*, const Pass&)) {
  Arguments& in = call.arguments;
  const auto x = in.input("x");
  const auto y = in.output_or_null("y"), state = in.output_or_null("state");
  in.shape(x, {rows_of(pass), hidden_of(pass)}, "rows * hidden");
  in.shape(y, {rows_of(pass), hidden_of(pass)}, "rows * hidden");
  check_state(in, state, state_bytes(pass));
  in.outputs_stand_alone();
  pass.x = x;
  kernel(call.context(), y, state, pass);
  return undefined();
}

/// half, x, state, dy, gradients
template <class Pass>
napi_value backward(const Call& call, Pass pass, size_t (*state_bytes)(const Pass&),
                    void (*kernel)(Context&, float*, float*, const float*, const void*, const Pass&)) {
  Arguments& in = call.arguments;
  const auto x = in.input("x"), state = in.input("state"), dy = in.input("dy");
  in.shape(x, {rows_of(pass), hidden_of(pass)}, "rows * hidden");
  in.shape(dy, {rows_of(pass), hidden_of(pass)}, "rows * hidden");
  check_state(in, state, state_bytes(pass));
  const Fields fields(in, "gradients");
  const InputGradients of_input = input_gradients(in, rows_of(pass), hidden_of(pass));
  read_gradients(in, pass);
  in.outputs_stand_alone();
  pass.x = x;
  kernel(call.context(), of_input.dx, of_input.gain, dy, state, pass);
  return undefined();
}

napi_value mlp_half_forward(const Call& call) {
  const Kernels& kernels = call.context().kernels;
  return forward(call, mlp_pass(call), kernels.mlp_half_state_bytes, kernels.mlp_half_forward);
}

napi_value mlp_half_backward(const Call& call) {
  const Kernels& kernels = call.context().kernels;
  return backward(call, mlp_pass(call), kernels.mlp_half_state_bytes, kernels.mlp_half_backward);
}

napi_value attention_half_forward(const Call& call) {
  const Kernels& kernels = call.context().kernels;
  return forward(call, attention_pass(call), kernels.attention_half_state_bytes, kernels.attention_half_forward);
}

napi_value attention_half_backward(const Call& call) {
  const Kernels& kernels = call.context().kernels;
  return backward(call, attention_pass(call), kernels.attention_half_state_bytes,
                  kernels.attention_half_backward);
}

/// Floats of the state that the half keeps for its backward pass.
napi_value mlp_half_state_length(const Call& call) {
  return number(call.env, (call.context().kernels.mlp_half_state_bytes(mlp_pass(call)) + 3) / 4);
}

napi_value attention_half_state_length(const Call& call) {
  return number(call.env, (call.context().kernels.attention_half_state_bytes(attention_pass(call)) + 3) / 4);
}

constexpr Entry entries[] = {
    {"mlpHalfStateLength", 1, mlp_half_state_length},
    {"mlpHalfForward", 4, mlp_half_forward},
    {"mlpHalfBackward", 5, mlp_half_backward},
    {"attentionHalfStateLength", 1, attention_half_state_length},
    {"attentionHalfForward", 4, attention_half_forward},
    {"attentionHalfBackward", 5, attention_half_backward},
};

}  // namespace

constinit const std::span<const Entry> half_entries = entries;

}  // namespace relora
