// The second half of a block as one kernel: y = x + down(silu(gate(n)) * up(n)), n = RMSNorm(x). A worker takes its rows from x to y while
// they are in its caches; only gate, up and the adapters' x A are kept for the backward pass, which recomputes n and h.
#include <algorithm>

#include "../layers/apart_sums.h"
#include "kernels.h"
#include "rows.h"

namespace relora::RELORA_ISA {

namespace {

/// What the forward pass keeps; without memory only its size counts.
template <class Element>
struct State {
  State(const MlpPass& pass, void* memory) {
    Cutter cut(memory);
    const size_t rows = pass.rows;
    rstd = cut.take<float>(rows);
    gate = cut.take<Element>(rows * pass.gate.out);
    up = cut.take<Element>(rows * pass.up.out);
    xa_gate = cut.take<Element>(pass.gate.has_path() ? rows * pass.gate.rank : 0);
    xa_up = cut.take<Element>(pass.up.has_path() ? rows * pass.up.rank : 0);
    xa_down = cut.take<Element>(pass.down.has_path() ? rows * pass.down.rank : 0);
    bytes = cut.used();
  }
  float* rstd;
  Element *gate, *up, *xa_gate, *xa_up, *xa_down;
  size_t bytes;
};

size_t rank_max(const MlpPass& pass) { return std::max({pass.gate.rank, pass.up.rank, pass.down.rank}); }

/// For the layer that needs most; 0 if layers accumulate in place.
size_t spare_floats(const MlpPass& pass, size_t rows) {
  return pass.apart ? std::max({apart_floats(pass.gate, rows), apart_floats(pass.up, rows), apart_floats(pass.down, rows)}) : 0;
}

template <class Element>
void forward(Context& context, float* y, void* memory, const MlpPass& pass) {
  const LinearPass &gate = pass.gate, &up = pass.up, &down = pass.down;
  const size_t rows = pass.rows, hidden = gate.in, inner = gate.out, rank = rank_max(pass);
  const ProductKernel& kernel = context.product_kernel(pass.precision);
  context.arena.reset();
  const ForwardPanels gate_panels(context, kernel, gate), up_panels(context, kernel, up);
  const ForwardPanels down_panels(context, kernel, down);
  const State<Element> state(pass, memory);
  const RowBlocks blocks(kernel, rows, context.pool.threads());
  const size_t block = blocks.longest;
  const size_t taken = block * (hidden + 2 * inner + 2 * rank);
  context.reserve_worker_memory(taken + spare_floats(pass, block));

  for_row_blocks(context, blocks, [&](unsigned worker, size_t begin, size_t count) {
    const float* const in = pass.x + begin * hidden;
    float* const n = context.worker_memory(worker);
    float* const gates = n + block * hidden;
    float* const ups = gates + block * inner;
    float* const xa = ups + block * inner;
    float* const xa_of_up = xa + block * rank;
    const WorkerRows here{context, worker, begin, count, pass.apart ? n + taken : nullptr};
    for (size_t i = 0; i < count; i++) {
      const float rstd = inverse_root_mean_square(in + i * hidden, hidden, pass.epsilon);
      if (memory) state.rstd[begin + i] = rstd;
      normalize_row(n + i * hidden, in + i * hidden, pass.gain, rstd, hidden);
    }
    const LinearRows both[] = {{gate, gate_panels, {gates, inner, 1.0f, false}, xa},
                               {up, up_panels, {ups, inner, 1.0f, false}, xa_of_up}};
    linear_rows(here, {n, hidden, false}, both);
    if (memory) {
      keep_rows(state.gate + begin * inner, inner, gates, inner, count, inner);
      keep_rows(state.up + begin * inner, inner, ups, inner, count, inner);
      if (gate.has_path()) keep_rows(state.xa_gate + begin * gate.rank, gate.rank, xa, gate.rank, count, gate.rank);
      if (up.has_path()) keep_rows(state.xa_up + begin * up.rank, up.rank, xa_of_up, up.rank, count, up.rank);
    }
    if (y == nullptr && !down.has_path()) return;  // called only for the state
    for_vectors(count * inner, [&](size_t i, size_t n) {
      store(gates + i, gate_with_silu(load(gates + i, n), load(ups + i, n)), n);
    });
    const LinearRows last{down, down_panels, {y ? y + begin * hidden : nullptr, hidden, 1.0f, true}, xa};
    if (y == nullptr) {
      linear_through_a(here, {gates, inner, false}, last);
    } else {
      std::copy_n(in, count * hidden, last.y.data);
      linear_rows(here, {gates, inner, false}, {&last, 1});
    }
    if (memory && down.has_path()) {
      keep_rows(state.xa_down + begin * down.rank, down.rank, xa, down.rank, count, down.rank);
    }
  });
}

template <class Element>
void backward(Context& context, float* dx, float* dgain, const float* dy, const void* memory,
              const MlpPass& pass) {
  const LinearPass &gate = pass.gate, &up = pass.up, &down = pass.down;
  const size_t rows = pass.rows, hidden = gate.in, inner = gate.out, rank = rank_max(pass);
  const ProductKernel& kernel = context.product_kernel(pass.precision);
  context.arena.reset();
  const BackwardPanels gate_panels(context, kernel, gate), up_panels(context, kernel, up);
  const BackwardPanels down_panels(context, kernel, down);
  const State<Element> state(pass, const_cast<void*>(memory));
  Arena& arena = context.arena;
  float* const dn = arena.take<float>(rows * hidden);
  Element* const n = arena.take<Element>(rows * hidden);
  Element* const h = arena.take<Element>(rows * inner);
  Element* const dgate = arena.take<Element>(rows * inner);
  Element* const dup = arena.take<Element>(rows * inner);
  Element* const p_gate = arena.take<Element>(rows * gate.rank);
  Element* const p_up = arena.take<Element>(rows * up.rank);
  Element* const p_down = arena.take<Element>(rows * down.rank);
  const RowBlocks blocks(kernel, rows, context.pool.threads());
  const size_t block = blocks.longest;
  const size_t taken = block * (inner + rank);
  context.reserve_worker_memory(taken + spare_floats(pass, block));

  for_row_blocks(context, blocks, [&](unsigned worker, size_t begin, size_t count) {
    float* const dh = context.worker_memory(worker);
    float* const p = dh + block * inner;
    const auto keep_p = [&](Element* to, const LinearPass& linear) {
      if (linear.has_p()) keep_rows(to + begin * linear.rank, linear.rank, p, linear.rank, count, linear.rank);
    };
    const WorkerRows here{context, worker, begin, count, pass.apart ? dh + taken : nullptr};
    linear_rows_backward(here, {dh, inner, 1.0f, false}, down, down_panels, {dy + begin * hidden, hidden, false}, p);
    keep_p(p_down, down);
    const size_t at = begin * inner;
    for_vectors(count * inner, [&](size_t i, size_t c) {
      const Vec g = load(state.gate + at + i, c), u = load(state.up + at + i, c), s = sigmoid(g);
      Vec dg, du;
      differentiate_swiglu(load(dh + i, c), g, u, s, dg, du);
      store(h + at + i, pass.apart ? gate_with_silu(g, u) : g * s * u, c);
      store(dgate + at + i, dg, c);
      store(dup + at + i, du, c);
    });
    const auto add = [&](const LinearPass& layer, const BackwardPanels& panels, const Element* d, Element* p_kept,
                         bool accumulate) {
      linear_rows_backward(here, {dn + begin * hidden, hidden, 1.0f, accumulate}, layer, panels, {d + at, inner, false}, p);
      keep_p(p_kept, layer);
    };
    // Summed apart, they are added in the order of a backward tape: the last first.
    if (pass.apart) add(up, up_panels, dup, p_up, false);
    add(gate, gate_panels, dgate, p_gate, pass.apart);
    if (!pass.apart) add(up, up_panels, dup, p_up, true);
    for (size_t i = begin; i < begin + count; i++) {
      normalize_row(n + i * hidden, pass.x + i * hidden, pass.gain, state.rstd[i], hidden);
    }
  });

  const LinearGradients of_h[] = {
      {down, {dy, hidden, false}, {p_down, down.rank, false}, {state.xa_down, down.rank, false}}};
  linear_gradients(context, kernel, {h, inner, false}, of_h, rows, pass.apart);
  const LinearGradients of_n[] = {
      {gate, {dgate, inner, false}, {p_gate, gate.rank, false}, {state.xa_gate, gate.rank, false}},
      {up, {dup, inner, false}, {p_up, up.rank, false}, {state.xa_up, up.rank, false}}};
  linear_gradients(context, kernel, {n, hidden, false}, of_n, rows, pass.apart);
  rms_norm_backward(context, dx, dgain, dn, pass.x, pass.gain, state.rstd, dy, rows, hidden);
}

}  // namespace

size_t mlp_half_state_bytes(const MlpPass& pass) {
  return pass.compact ? State<uint16_t>(pass, nullptr).bytes : State<float>(pass, nullptr).bytes;
}

/// y[rows, hidden], or null when only the state is wanted; state as large as mlp_half_state_bytes says, or null
/// when there will be no backward pass.
void mlp_half_forward(Context& context, float* y, void* state, const MlpPass& pass) {
  pass.compact ? forward<uint16_t>(context, y, state, pass) : forward<float>(context, y, state, pass);
}

/// dx[rows, hidden], dgain[hidden] and the gradients that the layers name, of dy[rows, hidden].
void mlp_half_backward(Context& context, float* dx, float* dgain, const float* dy, const void* state,
                       const MlpPass& pass) {
  pass.compact ? backward<uint16_t>(context, dx, dgain, dy, state, pass)
               : backward<float>(context, dx, dgain, dy, state, pass);
}

}  // namespace relora::RELORA_ISA
