// The first half of a block as one kernel: y = x + o(attention(rotate(q(n)), rotate(k(n)), v(n))), n = RMSNorm(x). Kept for the backward
// pass are the rotated queries and keys, the values, attention's output and the adapters' x A. With head norms, the normalized q(n) and
// k(n) are rotated, and q(n) and k(n) are kept as well.
#include <algorithm>

#include "../layers/apart_sums.h"
#include "attention.h"
#include "head_norm.h"
#include "kernels.h"
#include "rows.h"

namespace relora::RELORA_ISA {

namespace {

/// What the forward pass keeps; without memory only its size counts.
template <class Element>
struct State {
  State(const AttentionPass& pass, void* memory) {
    Cutter cut(memory);
    const size_t rows = pass.shape.batch * pass.shape.time;
    const auto xa = [&](const LinearPass& linear) {
      return cut.take<Element>(linear.has_path() ? rows * linear.rank : 0);
    };
    rstd = cut.take<float>(rows);
    log_sum_exp = cut.take<float>(rows * pass.shape.heads);
    q = cut.take<Element>(rows * pass.q.out);
    k = cut.take<Element>(rows * pass.k.out);
    v = cut.take<Element>(rows * pass.v.out);
    mixed = cut.take<Element>(rows * pass.q.out);
    xa_q = xa(pass.q);
    xa_k = xa(pass.k);
    xa_v = xa(pass.v);
    xa_o = xa(pass.o);
    made_q = cut.take<Element>(pass.q_norm.gain ? rows * pass.q.out : 0);
    made_k = cut.take<Element>(pass.k_norm.gain ? rows * pass.k.out : 0);
    bytes = cut.used();
  }
  float *rstd, *log_sum_exp;
  Element *q, *k, *v, *mixed;  // mixed: the values weighted by attention
  Element *xa_q, *xa_k, *xa_v, *xa_o;
  Element *made_q, *made_k;  // queries and keys before the norms of their heads
  size_t bytes;
};

size_t rank_max(const AttentionPass& pass) {
  return std::max({pass.q.rank, pass.k.rank, pass.v.rank, pass.o.rank});
}

/// For the layer that needs most; 0 if layers accumulate in place.
size_t spare_floats(const AttentionPass& pass, size_t rows) {
  const auto floats = [&](const LinearPass& layer) { return apart_floats(layer, rows); };
  return pass.apart ? std::max({floats(pass.q), floats(pass.k), floats(pass.v), floats(pass.o)}) : 0;
}

/// Rotates the heads of rows [begin, begin + count) of a batch by their positions, in place.
void rotate_rows(float* heads, const AttentionPass& pass, size_t width, size_t begin, size_t count) {
  if (pass.cosines == nullptr) return;
  const size_t dim = pass.shape.head_dim, half = dim / 2;
  for (size_t i = 0; i < count; i++) {
    const size_t batch = (begin + i) / pass.shape.time, t = (begin + i) % pass.shape.time;
    const size_t angle = (t - pass.shape.document(batch, t)) * half;
    for (float* head = heads + i * width; head < heads + (i + 1) * width; head += dim) {
      rotate_head(head, head, pass.cosines + angle, pass.sines + angle, half, 1.0f);
    }
  }
}

/// dbias = sum over rows of dy[rows, out]. Partial sums are over a fixed number of rows, so that a long sum loses little precision; each
/// column is summed by one thread.
template <class Element>
void differentiate_bias(Context& context, const LinearPass& layer, const Element* dy, size_t rows) {
  if (layer.dbias == nullptr) return;
  constexpr size_t columns = 64, block = 32;
  context.pool.run((layer.out + columns - 1) / columns, [&](size_t task, unsigned) {
    const size_t first = task * columns, left = layer.out - first;
    for_vectors(left < columns ? left : columns, [&](size_t i, size_t count) {
      Vec total{};
      for (size_t begin = 0; begin < rows; begin += block) {
        const size_t end = rows - begin < block ? rows : begin + block;
        Vec part{};
        for (size_t row = begin; row < end; row++) {
          part = part + load(dy + row * layer.out + first + i, count);
        }
        total = total + part;
      }
      store(layer.dbias + first + i, total, count);
    });
  });
}

template <class Element>
void forward(Context& context, float* y, void* memory, const AttentionPass& pass) {
  const LinearPass &q = pass.q, &k = pass.k, &v = pass.v, &o = pass.o;
  const size_t rows = pass.shape.batch * pass.shape.time, hidden = q.in, rank = rank_max(pass);
  const ProductKernel& kernel = context.product_kernel(pass.precision);
  context.arena.reset();
  const ForwardPanels q_panels(context, kernel, q), k_panels(context, kernel, k), v_panels(context, kernel, v);
  const ForwardPanels o_panels(context, kernel, o);
  // Attention needs all rows at once: if no state is kept they are in the arena.
  const State<Element> size(pass, nullptr);
  const State<Element> state(pass, memory ? memory : context.arena.take<char>(size.bytes));
  const RowBlocks blocks(kernel, rows, context.pool.threads());
  const size_t block = blocks.longest;
  const size_t taken = block * (hidden + q.out + k.out + v.out + 3 * rank);
  context.reserve_worker_memory(taken + spare_floats(pass, block));

  for_row_blocks(context, blocks, [&](unsigned worker, size_t begin, size_t count) {
    const float* const in = pass.x + begin * hidden;
    float* const n = context.worker_memory(worker);
    float* const queries = n + block * hidden;
    float* const keys = queries + block * q.out;
    float* const values = keys + block * k.out;
    float* const xa = values + block * v.out;
    for (size_t i = 0; i < count; i++) {
      const float rstd = inverse_root_mean_square(in + i * hidden, hidden, pass.epsilon);
      state.rstd[begin + i] = rstd;
      normalize_row(n + i * hidden, in + i * hidden, pass.gain, rstd, hidden);
    }
    const LinearRows layers[] = {
        {q, q_panels, {queries, q.out, 1.0f, false}, xa},
        {k, k_panels, {keys, k.out, 1.0f, false}, xa + block * rank},
        {v, v_panels, {values, v.out, 1.0f, false}, xa + 2 * block * rank},
    };
    linear_rows({context, worker, begin, count, pass.apart ? n + taken : nullptr}, {n, hidden, false}, layers);
    const auto keep = [&](Element* to, const float* from, size_t width) {
      keep_rows(to + begin * width, width, from, width, count, width);
    };
    const auto normalize = [&](const HeadNorm& norm, float* heads, Element* made, size_t width) {
      if (norm.gain == nullptr) return;
      keep(made, heads, width);
      normalize_heads(heads, norm.gain, count * width / pass.shape.head_dim, pass.shape.head_dim, pass.epsilon);
    };
    normalize(pass.q_norm, queries, state.made_q, q.out);
    normalize(pass.k_norm, keys, state.made_k, k.out);
    rotate_rows(queries, pass, q.out, begin, count);
    rotate_rows(keys, pass, k.out, begin, count);
    keep(state.q, queries, q.out);
    keep(state.k, keys, k.out);
    keep(state.v, values, v.out);
    if (q.has_path()) keep(state.xa_q, layers[0].xa, q.rank);
    if (k.has_path()) keep(state.xa_k, layers[1].xa, k.rank);
    if (v.has_path()) keep(state.xa_v, layers[2].xa, v.rank);
  });

  attend<Element>(context, state.mixed, state.log_sum_exp, state.q, state.k, state.v, pass.shape, kernel);

  if (y == nullptr && !o.has_path()) return;  // called only for the state
  context.reserve_worker_memory(block * rank + spare_floats(pass, block));
  for_row_blocks(context, blocks, [&](unsigned worker, size_t begin, size_t count) {
    float* const xa = context.worker_memory(worker);
    const WorkerRows here{context, worker, begin, count, pass.apart ? xa + block * rank : nullptr};
    const Operand mixed{state.mixed + begin * o.in, o.in, false};
    const LinearRows last{o, o_panels, {y ? y + begin * hidden : nullptr, hidden, 1.0f, true}, xa};
    if (y == nullptr) {
      linear_through_a(here, mixed, last);
    } else {
      std::copy_n(pass.x + begin * hidden, count * hidden, last.y.data);
      linear_rows(here, mixed, {&last, 1});
    }
    if (o.has_path()) keep_rows(state.xa_o + begin * o.rank, o.rank, xa, o.rank, count, o.rank);
  });
}

template <class Element>
void backward(Context& context, float* dx, float* dgain, const float* dy, const void* memory,
              const AttentionPass& pass) {
  const LinearPass &q = pass.q, &k = pass.k, &v = pass.v, &o = pass.o;
  const size_t rows = pass.shape.batch * pass.shape.time, hidden = q.in, rank = rank_max(pass);
  const ProductKernel& kernel = context.product_kernel(pass.precision);
  context.arena.reset();
  const BackwardPanels q_panels(context, kernel, q), k_panels(context, kernel, k), v_panels(context, kernel, v);
  const BackwardPanels o_panels(context, kernel, o);
  const State<Element> state(pass, const_cast<void*>(memory));
  Arena& arena = context.arena;
  float* const dn = arena.take<float>(rows * hidden);
  Element* const n = arena.take<Element>(rows * hidden);
  Element* const dmixed = arena.take<Element>(rows * o.in);
  Element* const dq = arena.take<Element>(rows * q.out);
  Element* const dk = arena.take<Element>(rows * k.out);
  Element* const dv = arena.take<Element>(rows * v.out);
  Element* const p_q = arena.take<Element>(rows * q.rank);
  Element* const p_k = arena.take<Element>(rows * k.rank);
  Element* const p_v = arena.take<Element>(rows * v.rank);
  Element* const p_o = arena.take<Element>(rows * o.rank);
  const RowBlocks blocks(kernel, rows, context.pool.threads());
  const size_t block = blocks.longest;

  context.reserve_worker_memory(block * (o.in + rank) + spare_floats(pass, block));
  for_row_blocks(context, blocks, [&](unsigned worker, size_t begin, size_t count) {
    float* const upstream = context.worker_memory(worker);
    float* const p = upstream + block * o.in;
    const WorkerRows here{context, worker, begin, count, pass.apart ? p + block * rank : nullptr};
    linear_rows_backward(here, {upstream, o.in, 1.0f, false}, o, o_panels, {dy + begin * hidden, hidden, false}, p);
    keep_rows(dmixed + begin * o.in, o.in, upstream, o.in, count, o.in);
    if (o.has_p()) keep_rows(p_o + begin * o.rank, o.rank, p, o.rank, count, o.rank);
  });

  differentiate_attention<Element>(context, {dq, dk, dv}, dmixed, {state.q, state.k, state.v},
                                   state.mixed, state.log_sum_exp, pass.shape, kernel,
                                   {pass.cosines, pass.sines});
  differentiate_heads(context, pass.q_norm, dq, state.made_q, rows, q.out, pass);
  differentiate_heads(context, pass.k_norm, dk, state.made_k, rows, k.out, pass);
  if (!pass.apart) {
    differentiate_bias(context, q, dq, rows);
    differentiate_bias(context, k, dk, rows);
    differentiate_bias(context, v, dv, rows);
  }

  context.reserve_worker_memory(block * rank + spare_floats(pass, block));
  for_row_blocks(context, blocks, [&](unsigned worker, size_t begin, size_t count) {
    float* const p = context.worker_memory(worker);
    const WorkerRows here{context, worker, begin, count, pass.apart ? p + block * rank : nullptr};
    const auto add = [&](const LinearPass& layer, const BackwardPanels& panels, const Element* d, Element* p_kept,
                         bool accumulate) {
      linear_rows_backward(here, {dn + begin * hidden, hidden, 1.0f, accumulate}, layer, panels,
                           {d + begin * layer.out, layer.out, false}, p);
      if (layer.has_p()) keep_rows(p_kept + begin * layer.rank, layer.rank, p, layer.rank, count, layer.rank);
    };
    // Summed apart, they are added in the order of a backward tape: the last first.
    if (pass.apart) add(v, v_panels, dv, p_v, false);
    else add(q, q_panels, dq, p_q, false);
    add(k, k_panels, dk, p_k, true);
    if (pass.apart) add(q, q_panels, dq, p_q, true);
    else add(v, v_panels, dv, p_v, true);
    for (size_t i = begin; i < begin + count; i++) {
      normalize_row(n + i * hidden, pass.x + i * hidden, pass.gain, state.rstd[i], hidden);
    }
  });

  const LinearGradients of_mixed[] = {
      {o, {dy, hidden, false}, {p_o, o.rank, false}, {state.xa_o, o.rank, false}}};
  linear_gradients(context, kernel, {state.mixed, o.in, false}, of_mixed, rows, pass.apart);
  const LinearGradients of_n[] = {
      {q, {dq, q.out, false}, {p_q, q.rank, false}, {state.xa_q, q.rank, false}},
      {k, {dk, k.out, false}, {p_k, k.rank, false}, {state.xa_k, k.rank, false}},
      {v, {dv, v.out, false}, {p_v, v.rank, false}, {state.xa_v, v.rank, false}},
  };
  linear_gradients(context, kernel, {n, hidden, false}, of_n, rows, pass.apart);
  rms_norm_backward(context, dx, dgain, dn, pass.x, pass.gain, state.rstd, dy, rows, hidden);
}

}  // namespace

size_t attention_half_state_bytes(const AttentionPass& pass) {
  return pass.compact ? State<uint16_t>(pass, nullptr).bytes : State<float>(pass, nullptr).bytes;
}

/// y[rows, hidden], or null when only the state is wanted; state as large as attention_half_state_bytes says, or
/// null when there will be no backward pass.
void attention_half_forward(Context& context, float* y, void* state, const AttentionPass& pass) {
  pass.compact ? forward<uint16_t>(context, y, state, pass) : forward<float>(context, y, state, pass);
}

/// dx[rows, hidden], dgain[hidden] and the gradients that the layers name, of dy[rows, hidden].
void attention_half_backward(Context& context, float* dx, float* dgain, const float* dy, const void* state,
                             const AttentionPass& pass) {
  pass.compact ? backward<uint16_t>(context, dx, dgain, dy, state, pass)
               : backward<float>(context, dx, dgain, dy, state, pass);
}

}  // namespace relora::RELORA_ISA
