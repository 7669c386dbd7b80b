// The border of the layers around the products: checks types, shapes and values, on which kernels rely.
#include "../kernels/kernels.h"
#include "../layers/embedding.h"
#include "attention_shape.h"
#include "call.h"

namespace relora {

namespace {

using Fields = Arguments::Fields;

/// cos and sin of the positions.
struct Angles {
  Array<const float> cosines, sines;
};
Angles read_angles(Arguments& in) {
  const Fields fields(in, "angles");
  return {in.input("cos"), in.input("sin")};
}

napi_value rms_norm_forward(const Call& call) {
  Arguments& in = call.arguments;
  const auto y = in.output("y"), rstd = in.output("rstd");
  const auto x = in.input("x"), gain = in.input("gain");
  const size_t rows = in.dimension("rows"), dim = in.dimension("dim");
  const float epsilon = static_cast<float>(in.number("epsilon"));
  in.shape(y, {rows, dim}, "rows * dim");
  in.shape(rstd, {rows}, "rows");
  in.shape(x, {rows, dim}, "rows * dim");
  in.shape(gain, {dim}, "dim");
  in.outputs_stand_alone();
  call.context().kernels.rms_norm_forward(call.context(), y, rstd, x, gain, rows, dim, epsilon);
  return undefined();
}

napi_value rms_norm_backward(const Call& call) {
  Arguments& in = call.arguments;
  const auto dx = in.output("dx"), dgain = in.output("dgain");
  const auto dy = in.input("dy"), x = in.input("x"), gain = in.input("gain"), rstd = in.input("rstd");
  const size_t rows = in.dimension("rows"), dim = in.dimension("dim");
  in.shape(dx, {rows, dim}, "rows * dim");
  in.shape(dgain, {dim}, "dim");
  in.shape(dy, {rows, dim}, "rows * dim");
  in.shape(x, {rows, dim}, "rows * dim");
  in.shape(gain, {dim}, "dim");
  in.shape(rstd, {rows}, "rows");
  in.outputs_stand_alone();
  call.context().kernels.rms_norm_backward(call.context(), dx, dgain, dy, x, gain, rstd, nullptr, rows, dim);
  return undefined();
}

napi_value rotary(const Call& call) {
  Arguments& in = call.arguments;
  const auto y = in.output("y");
  const auto x = in.input("x");
  const auto [cosines, sines] = read_angles(in);
  RotaryShape shape{};
  {
    const Fields fields(in, "shape");
    shape.batch = in.dimension("batch");
    shape.time = in.dimension("time");
    shape.heads = in.dimension("heads");
    shape.head_dim = in.dimension("headDim");
    shape.first_position = in.dimension("firstPosition", 0);
  }
  const bool inverse = in.boolean("inverse");
  if (shape.head_dim % 2 != 0) in.refuse("shape.headDim must be even, got " + std::to_string(shape.head_dim));
  in.shape(y, {shape.batch, shape.time, shape.heads, shape.head_dim}, "batch * time * heads * headDim");
  in.shape(x, {shape.batch, shape.time, shape.heads, shape.head_dim}, "batch * time * heads * headDim");
  in.shape(cosines, {shape.first_position + shape.time, shape.head_dim / 2},
           "(firstPosition + time) * headDim / 2", true);
  in.shape(sines, {shape.first_position + shape.time, shape.head_dim / 2},
           "(firstPosition + time) * headDim / 2", true);
  in.outputs_stand_alone();
  call.context().kernels.rotary(call.context(), y, x, cosines, sines, shape, inverse);
  return undefined();
}

/// Of queries, keys and values, or their gradients where T is not const.
template <class T>
struct Heads {
  Array<T> q, k, v;
};

Heads<const float> read_heads(Arguments& in) {
  const Fields fields(in, "heads");
  return {in.input("q"), in.input("k"), in.input("v")};
}

template <class T>
void check_heads_of(const Arguments& in, const AttentionShape& s, const Heads<T>& heads) {
  in.shape(heads.q, {s.batch, s.time, s.heads, s.head_dim}, "batch * time * heads * headDim");
  in.shape(heads.k, {s.batch, s.time, s.kv_heads, s.head_dim}, "batch * time * kvHeads * headDim");
  in.shape(heads.v, {s.batch, s.time, s.kv_heads, s.head_dim}, "batch * time * kvHeads * headDim");
}

template <class T>
void check_attended(const Arguments& in, const AttentionShape& s, const Array<T>& out,
                    const Array<T>& log_sum_exp) {
  in.shape(out, {s.batch, s.time, s.heads, s.head_dim}, "batch * time * heads * headDim");
  in.shape(log_sum_exp, {s.batch, s.heads, s.time}, "batch * heads * time");
}

napi_value attention_forward(const Call& call) {
  Arguments& in = call.arguments;
  const auto out = in.output("out"), log_sum_exp = in.output("logSumExp");
  const auto heads = read_heads(in);
  const AttentionShape shape = attention_shape(in);
  const Precision precision = in.precision("precision");
  check_heads_of(in, shape, heads);
  check_attended(in, shape, out, log_sum_exp);
  in.outputs_stand_alone();
  call.context().kernels.attention_forward(call.context(), out, log_sum_exp, heads.q, heads.k, heads.v, shape,
                                           precision);
  return undefined();
}

Heads<float> read_head_gradients(Arguments& in) {
  const Fields fields(in, "gradients");
  return {in.output("q"), in.output("k"), in.output("v")};
}

napi_value attention_backward(const Call& call) {
  Arguments& in = call.arguments;
  const auto gradients = read_head_gradients(in);
  const auto dout = in.input("dout");
  const auto heads = read_heads(in);
  const auto out = in.input("out"), log_sum_exp = in.input("logSumExp");
  const AttentionShape shape = attention_shape(in);
  const Precision precision = in.precision("precision");
  check_heads_of(in, shape, gradients);
  check_heads_of(in, shape, heads);
  check_attended(in, shape, out, log_sum_exp);
  in.shape(dout, {shape.batch, shape.time, shape.heads, shape.head_dim}, "batch * time * heads * headDim");
  in.outputs_stand_alone();
  call.context().kernels.attention_backward(call.context(), gradients.q, gradients.k, gradients.v, dout, heads.q,
                                            heads.k, heads.v, out, log_sum_exp, shape, precision);
  return undefined();
}

napi_value swiglu_forward(const Call& call) {
  Arguments& in = call.arguments;
  const auto h = in.output("h");
  const auto gate = in.input("gate"), up = in.input("up");
  const size_t length = h.length;
  in.shape(gate, {length}, "length of h");
  in.shape(up, {length}, "length of h");
  in.outputs_stand_alone();
  call.context().kernels.swiglu_forward(call.context(), h, gate, up, length);
  return undefined();
}

napi_value swiglu_backward(const Call& call) {
  Arguments& in = call.arguments;
  const auto dgate = in.output("dgate"), dup = in.output("dup");
  const auto dh = in.input("dh"), gate = in.input("gate"), up = in.input("up");
  const size_t length = dgate.length;
  for (const auto& array : {Array<const float>(dup), dh, gate, up}) {
    in.shape(array, {length}, "length of dgate");
  }
  in.outputs_stand_alone();
  call.context().kernels.swiglu_backward(call.context(), dgate, dup, dh, gate, up, length);
  return undefined();
}

napi_value embedding_forward(const Call& call) {
  Arguments& in = call.arguments;
  const auto y = in.output("y");
  const auto table = in.input("table");
  const auto ids = in.ids("ids");
  const size_t rows = in.dimension("rows");
  const size_t vocabulary = in.dimension("vocabulary");
  const size_t dim = in.dimension("dim");
  in.shape(y, {rows, dim}, "rows * dim");
  in.shape(table, {vocabulary, dim}, "vocabulary * dim");
  in.shape(ids, {rows}, "rows");
  in.values(ids, 0, static_cast<int64_t>(vocabulary));
  in.outputs_stand_alone();
  relora::embedding_forward(call.context(), y, table, ids, rows, dim);
  return undefined();
}

napi_value embedding_backward(const Call& call) {
  Arguments& in = call.arguments;
  const auto dtable = in.output("dtable");
  const auto dy = in.input("dy");
  const auto ids = in.ids("ids");
  const size_t rows = in.dimension("rows");
  const size_t vocabulary = in.dimension("vocabulary");
  const size_t dim = in.dimension("dim");
  in.shape(dtable, {vocabulary, dim}, "vocabulary * dim");
  in.shape(dy, {rows, dim}, "rows * dim");
  in.shape(ids, {rows}, "rows");
  in.values(ids, 0, static_cast<int64_t>(vocabulary));
  in.outputs_stand_alone();
  relora::embedding_backward(call.context(), dtable, dy, ids, rows, vocabulary, dim);
  return undefined();
}

napi_value head_cross_entropy(const Call& call) {
  Arguments& in = call.arguments;
  const auto losses = in.output("losses");
  const auto dx = in.output_or_null("dx"), dhead = in.output_or_null("dhead");
  const auto x = in.input("x"), head = in.input("head");
  const auto targets = in.ids("targets");
  HeadShape shape{};
  {
    const Fields fields(in, "shape");
    shape.rows = in.dimension("rows");
    shape.dim = in.dimension("hidden");
    shape.vocabulary = in.dimension("vocabulary");
    shape.gradient_scale = static_cast<float>(in.number("gradientScale"));
    shape.in_int8 = in.boolean("inInt8");
  }
  const Precision precision = in.precision("precision");
  if (dx == nullptr && dhead != nullptr) in.refuse("dhead must be null when dx is null");
  in.shape(losses, {shape.rows}, "rows");
  in.shape(dx, {shape.rows, shape.dim}, "rows * hidden");
  in.shape(dhead, {shape.vocabulary, shape.dim}, "vocabulary * hidden");
  in.shape(x, {shape.rows, shape.dim}, "rows * hidden");
  in.shape(head, {shape.vocabulary, shape.dim}, "vocabulary * hidden");
  in.shape(targets, {shape.rows}, "rows");
  in.values(targets, -1, static_cast<int64_t>(shape.vocabulary));
  in.outputs_stand_alone();
  call.context().kernels.head_cross_entropy(call.context(), losses, dx, dhead, x, head, targets, shape,
                                            precision);
  return undefined();
}

constexpr Entry entries[] = {
    {"rmsNormForward", 7, rms_norm_forward},
    {"rmsNormBackward", 8, rms_norm_backward},
    {"rotary", 5, rotary},
    {"attentionForward", 5, attention_forward},
    {"attentionBackward", 7, attention_backward},
    {"swigluForward", 3, swiglu_forward},
    {"swigluBackward", 5, swiglu_backward},
    {"embeddingForward", 6, embedding_forward},
    {"embeddingBackward", 6, embedding_backward},
    {"headCrossEntropy", 8, head_cross_entropy},
};

}  // namespace

constinit const std::span<const Entry> layer_entries = entries;

}  // namespace relora
