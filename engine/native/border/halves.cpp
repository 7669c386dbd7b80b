// The border of the halves of a block: shapes are checked here, kernels assume that they are right.
#include "attention_shape.h"
#include "packed_base.h"

namespace relora {

namespace {

/// base or null, weight, a, b, scale, rank, graph; with `differentiated` dweight, da, db before them. Without a
/// base the weight is trained, else it is empty; without an adapter a and b are. The gradient of a frozen weight or
/// a frozen a is empty, but that of a frozen weight may be asked for where there is no adapter.
LinearPass linear_pass(const Call& call, size_t in_features, size_t out_features, bool differentiated) {
  Arguments& in = call.arguments;
  LinearPass l{.in = in_features, .out = out_features};
  Array<float> dweight{}, da{}, db{};
  if (differentiated) {
    dweight = in.output("dweight");
    da = in.output("da");
    db = in.output("db");
  }
  if (!in.skip_null()) {
    l.base = &usable_base(call);
    if (l.base->in != l.in || l.base->out != l.out) {
      in.refuse("base must be " + std::to_string(l.in) + " x " + std::to_string(l.out) + ", got " +
                std::to_string(l.base->in) + " x " + std::to_string(l.base->out));
    }
  }
  const auto weight = in.input("weight"), a = in.input("a"), b = in.input("b");
  l.scale = static_cast<float>(in.number("scale"));
  l.rank = in.dimension("rank", 0);
  l.graph = in.graph("graph");
  if (l.base == nullptr && l.rank > 0) in.refuse("rank must be 0 where the weight is trained");
  const size_t trained = l.base == nullptr ? l.in : 0;
  in.shape(weight, {trained, l.out}, "inFeatures * outFeatures of a trained weight");
  in.shape(a, {l.in, l.rank}, "inFeatures * rank");
  in.shape(b, {l.rank, l.out}, "rank * outFeatures");
  if (differentiated) {
    const bool is_watched = l.base != nullptr && l.rank == 0 && dweight.length > 0;
    in.shape(dweight, {is_watched ? l.in : trained, l.out}, "inFeatures * outFeatures of a trained weight");
    if (da.length > 0) in.shape(da, {l.in, l.rank}, "inFeatures * rank");
    in.shape(db, {l.rank, l.out}, "rank * outFeatures");
  }
  l.weight = weight;
  l.a = a;
  l.b = b;
  if (dweight.length > 0) l.dweight = dweight;
  if (da.length > 0) l.da = da;
  l.db = db;
  return l;
}

/// What both halves end with.
template <class Pass>
void end_of_pass(Arguments& in, Pass& pass) {
  pass.epsilon = static_cast<float>(in.number("epsilon"));
  pass.precision = in.precision("precision");
  pass.compact = in.boolean("compact");
}

template <class T>
void check_state(Arguments& in, const Array<T>& state, size_t bytes) {
  in.shape(state, {(bytes + 3) / 4}, "floats of the state", true);
}

struct Rows {
  Array<const float> x, gain;
  size_t rows, hidden;
};

/// x, gain, rows, hidden
Rows input_rows(Arguments& in) {
  const auto x = in.input("x"), gain = in.input("gain");
  const size_t rows = in.dimension("rows"), hidden = in.dimension("hidden");
  in.shape(x, {rows, hidden}, "rows * hidden");
  in.shape(gain, {hidden}, "hidden");
  return {x, gain, rows, hidden};
}

MlpPass mlp_pass(const Call& call, const Rows& input, bool differentiated) {
  MlpPass pass{.rows = input.rows, .x = input.x, .gain = input.gain};
  const size_t inner = call.arguments.dimension("intermediate");
  pass.gate = linear_pass(call, input.hidden, inner, differentiated);
  pass.up = linear_pass(call, input.hidden, inner, differentiated);
  pass.down = linear_pass(call, inner, input.hidden, differentiated);
  end_of_pass(call.arguments, pass);
  return pass;
}

napi_value mlp_half_forward(const Call& call) {
  Arguments& in = call.arguments;
  const Kernels& kernels = call.context().kernels;
  const auto y = in.output_or_null("y"), state = in.output_or_null("state");
  const Rows input = input_rows(in);
  const MlpPass pass = mlp_pass(call, input, false);
  in.shape(y, {input.rows, input.hidden}, "rows * hidden");
  check_state(in, state, kernels.mlp_half_state_bytes(pass));
  in.outputs_stand_alone();
  kernels.mlp_half_forward(call.context(), y, state, pass);
  return undefined();
}

napi_value mlp_half_backward(const Call& call) {
  Arguments& in = call.arguments;
  const Kernels& kernels = call.context().kernels;
  const auto dx = in.output("dx"), dgain = in.output("dgain");
  const auto dy = in.input("dy"), state = in.input("state");
  const Rows input = input_rows(in);
  const MlpPass pass = mlp_pass(call, input, true);
  in.shape(dx, {input.rows, input.hidden}, "rows * hidden");
  in.shape(dgain, {input.hidden}, "hidden");
  in.shape(dy, {input.rows, input.hidden}, "rows * hidden");
  check_state(in, state, kernels.mlp_half_state_bytes(pass));
  in.outputs_stand_alone();
  kernels.mlp_half_backward(call.context(), dx, dgain, dy, state, pass);
  return undefined();
}

AttentionPass attention_pass(const Call& call, const Rows& input, bool differentiated) {
  Arguments& in = call.arguments;
  AttentionPass pass{.x = input.x, .gain = input.gain};
  const auto cosines = in.input("cos"), sines = in.input("sin");
  const AttentionShape& shape = pass.shape = attention_shape(in);
  if (shape.head_dim % 2 != 0) in.refuse("headDim must be even, got " + std::to_string(shape.head_dim));
  in.shape(input.x, {shape.batch, shape.time, input.hidden}, "batch * time * hidden");
  in.shape(cosines, {shape.time, shape.head_dim / 2}, "time * headDim / 2", true);
  in.shape(sines, {shape.time, shape.head_dim / 2}, "time * headDim / 2", true);
  pass.cosines = cosines;
  pass.sines = sines;
  const size_t width = shape.heads * shape.head_dim, key_width = shape.kv_heads * shape.head_dim;
  pass.q = linear_pass(call, input.hidden, width, differentiated);
  pass.k = linear_pass(call, input.hidden, key_width, differentiated);
  pass.v = linear_pass(call, input.hidden, key_width, differentiated);
  pass.o = linear_pass(call, width, input.hidden, differentiated);
  end_of_pass(in, pass);
  return pass;
}

napi_value attention_half_forward(const Call& call) {
  Arguments& in = call.arguments;
  const Kernels& kernels = call.context().kernels;
  const auto y = in.output_or_null("y"), state = in.output_or_null("state");
  const Rows input = input_rows(in);
  const AttentionPass pass = attention_pass(call, input, false);
  in.shape(y, {input.rows, input.hidden}, "rows * hidden");
  check_state(in, state, kernels.attention_half_state_bytes(pass));
  in.outputs_stand_alone();
  kernels.attention_half_forward(call.context(), y, state, pass);
  return undefined();
}

napi_value attention_half_backward(const Call& call) {
  Arguments& in = call.arguments;
  const Kernels& kernels = call.context().kernels;
  const auto dx = in.output("dx"), dgain = in.output("dgain");
  const auto dy = in.input("dy"), state = in.input("state");
  const Rows input = input_rows(in);
  const AttentionPass pass = attention_pass(call, input, true);
  in.shape(dx, {input.rows, input.hidden}, "rows * hidden");
  in.shape(dgain, {input.hidden}, "hidden");
  in.shape(dy, {input.rows, input.hidden}, "rows * hidden");
  check_state(in, state, kernels.attention_half_state_bytes(pass));
  in.outputs_stand_alone();
  kernels.attention_half_backward(call.context(), dx, dgain, dy, state, pass);
  return undefined();
}

/// Floats of a state: rows, the sizes that decide it, and the rank of each separate path (0 for other layers).
napi_value mlp_half_state_length(const Call& call) {
  Arguments& in = call.arguments;
  MlpPass pass{.rows = in.dimension("rows")};
  const size_t inner = in.dimension("intermediate");
  for (LinearPass* layer : {&pass.gate, &pass.up, &pass.down}) {
    *layer = {.in = 0, .out = inner, .rank = in.dimension("rank", 0)};
  }
  pass.compact = in.boolean("compact");
  return number(call.env, (call.context().kernels.mlp_half_state_bytes(pass) + 3) / 4);
}

napi_value attention_half_state_length(const Call& call) {
  Arguments& in = call.arguments;
  AttentionPass pass{};
  pass.shape.batch = in.dimension("batch");
  pass.shape.time = in.dimension("time");
  pass.shape.heads = in.dimension("heads");
  pass.shape.kv_heads = in.dimension("kvHeads");
  pass.shape.head_dim = in.dimension("headDim");
  const size_t width = pass.shape.heads * pass.shape.head_dim;
  const size_t key_width = pass.shape.kv_heads * pass.shape.head_dim;
  pass.q = {.out = width, .rank = in.dimension("rankQ", 0)};
  pass.k = {.out = key_width, .rank = in.dimension("rankK", 0)};
  pass.v = {.out = key_width, .rank = in.dimension("rankV", 0)};
  pass.o = {.rank = in.dimension("rankO", 0)};
  pass.compact = in.boolean("compact");
  return number(call.env, (call.context().kernels.attention_half_state_bytes(pass) + 3) / 4);
}

constexpr size_t layer_arguments = 7, layer_gradients = 3;

constexpr Entry entries[] = {
    {"mlpHalfStateLength", 6, mlp_half_state_length},
    {"mlpHalfForward", 10 + 3 * layer_arguments, mlp_half_forward},
    {"mlpHalfBackward", 12 + 3 * (layer_arguments + layer_gradients), mlp_half_backward},
    {"attentionHalfStateLength", 10, attention_half_state_length},
    {"attentionHalfForward", 17 + 4 * layer_arguments, attention_half_forward},
    {"attentionHalfBackward", 19 + 4 * (layer_arguments + layer_gradients), attention_half_backward},
};

}  // namespace

constinit const std::span<const Entry> half_entries = entries;

}  // namespace relora
