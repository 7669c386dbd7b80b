// Causal attention in tiles of query rows, forward and backward. A tile's scores against all its visible keys fit the L2 cache, so the
// softmax needs no rescaling; scores above the diagonal tile, or before the document of its first row, are never computed. The backward
// pass recomputes the probabilities from the kept log-sum-exp (Dao et al. 2022).
//
// q, out[batch, time, heads, head_dim]; k, v[batch, time, kv_heads, head_dim].
// Query head h uses key head h * kv_heads / heads.
#include "attention.h"

#include <cmath>
#include <numeric>

#include "rows.h"

namespace relora::RELORA_ISA {

namespace {

/// Query rows whose contribution to dk and dv is summed at a time: bits depend on it.
constexpr size_t tile = 64;
/// Query rows that are computed against the same keys (those visible to the last of them), forward and backward. Fewer rows compute less
/// beyond the diagonal, but in more products. They are whole tiles of the kernel; going back, panels also begin at them.
constexpr size_t strip_max = 32;
size_t strip_rows(const ProductKernel& kernel) { return (23 / kernel.tile_rows + 1) * kernel.tile_rows; }
size_t backward_strip_rows(const ProductKernel& kernel) {
  const size_t unit = std::lcm(kernel.tile_rows, kernel.k_per_step * kernel.step_quantum);
  return strip_max / unit * unit;
}

struct Layout {
  explicit Layout(const AttentionShape& s)
      : time(s.time),
        dim(s.head_dim),
        q_stride(s.heads * s.head_dim),
        kv_stride(s.kv_heads * s.head_dim),
        score_stride((s.time + 15) / 16 * 16 + 16) {}  // an extra cache line, so that rows do not share cache sets

  size_t q_at(size_t batch, size_t t, size_t head) const {
    return (batch * time + t) * q_stride + head * dim;
  }
  size_t kv_at(size_t batch, size_t head) const { return batch * time * kv_stride + head * dim; }

  size_t time, dim, q_stride, kv_stride, score_stride;
};

/// Replaces scores by e^(score - largest) for the keys [hidden, visible), zeros elsewhere up to `keys`. Returns the sum.
float exponentiate(float* scores, size_t hidden, size_t visible, size_t keys, float& largest) {
  for (size_t i = 0; i < hidden; i++) scores[i] = 0;
  scores += hidden;
  visible -= hidden;
  keys -= hidden;
  largest = largest_of(scores, visible);

  Vec sum = {};
  size_t i = 0;
  for (; i + lanes <= visible; i += lanes) {
    const Vec e = exponential(load(scores + i) - largest);
    store(scores + i, e);
    sum += e;
  }
  float total = sum_lanes(sum);
  if (i < visible) {
    // Lanes that are read again must not come from a store of a partial vector, which is slow to be forwarded.
    float last[lanes];
    const Vec e = exponential(load(scores + i, visible - i) - largest);
    store(last, e);
    store(scores + i, e, visible - i);
    for (size_t j = 0; i < visible; i++, j++) total += last[j];
  }
  for (; i < keys; i++) scores[i] = 0;
  return total;
}

/// Probabilities from scores, then score gradients from probability gradients, in place; zeros where nothing
/// is visible. dscore = p * (dp - sum(dout * out)) * scale
void differentiate_row(float* scores, float* dscores, size_t hidden, size_t visible, size_t keys,
                       float log_sum_exp, float dot, float scale) {
  for (size_t i = 0; i < hidden; i++) scores[i] = dscores[i] = 0;
  scores += hidden;
  dscores += hidden;
  visible -= hidden;
  keys -= hidden;
  for_vectors(visible, [&](size_t i, size_t count) {
    const Vec p = exponential(load(scores + i, count) - log_sum_exp);
    store(scores + i, p, count);
    store(dscores + i, p * (load(dscores + i, count) - dot) * scale, count);
  });
  for (size_t i = visible; i < keys; i++) scores[i] = dscores[i] = 0;
}

template <class Element>
float dot_product(const Element* a, const Element* b, size_t n) {
  Vec sum = {};
  for_vectors(n, [&](size_t i, size_t count) {
    sum = multiply_add(load(a + i, count), load(b + i, count), sum);
  });
  return sum_lanes(sum);
}

size_t least(size_t a, size_t b) { return a < b ? a : b; }

/// The first key for a tile of queries: at or before the begin of its first row's document, since documents are in order.
size_t first_key_of(const AttentionShape& shape, const ProductKernel& kernel, size_t batch, size_t first) {
  const size_t unit = panels_unit(kernel);
  return shape.document(batch, first) / unit * unit;
}

}  // namespace

template <class Element>
void attend(Context& context, Element* out, float* log_sum_exp, const Element* q, const Element* k,
            const Element* v, const AttentionShape& shape, const ProductKernel& kernel) {
  const Layout at(shape);
  const size_t key_words = right_panels_words(kernel, at.dim, at.time);
  const size_t value_words = right_panels_words(kernel, at.time, at.dim);
  uint32_t* keys_packed = context.shared(Shared::first).words(shape.batch * shape.kv_heads * key_words);
  uint32_t* values_packed = context.shared(Shared::second).words(shape.batch * shape.kv_heads * value_words);
  context.pool.run(shape.batch * shape.kv_heads, [&](size_t task, unsigned) {
    const size_t from = at.kv_at(task / shape.kv_heads, task % shape.kv_heads);
    pack_right_panels_here(kernel, keys_packed + task * key_words, {k + from, at.kv_stride, true}, at.dim,
                           at.time);
    pack_right_panels_here(kernel, values_packed + task * value_words, {v + from, at.kv_stride, false},
                           at.time, at.dim);
  });

  const size_t strip = strip_rows(kernel), strips = (at.time + strip - 1) / strip;
  context.reserve_worker_memory(strip * (at.score_stride + at.dim));
  context.pool.run(shape.batch * shape.heads * strips, [&](size_t task, unsigned worker) {
    const size_t batch = task / strips / shape.heads, head = task / strips % shape.heads;
    const size_t first = task % strips * strip, rows = least(strip, at.time - first);
    const size_t begin = first_key_of(shape, kernel, batch, first), keys = first + rows - begin;
    const size_t key_head = batch * shape.kv_heads + head * shape.kv_heads / shape.heads;
    const size_t position = at.q_at(batch, first, head);
    float* scores = context.worker_memory(worker);
    float* mixed = scores + strip * at.score_stride;

    const RightPanels key_panels{&kernel, keys_packed + key_head * key_words, at.dim, at.time, at.dim};
    product_of_panels_here(context, worker, {scores, at.score_stride, shape.scale, false},
                           {q + position, at.q_stride, false}, behind_columns(key_panels, begin), rows, keys);
    float inverse_sums[strip_max];
    for (size_t i = 0; i < rows; i++) {
      float largest;
      const size_t t = first + i, hidden = shape.document(batch, t) - begin;
      const float sum = exponentiate(scores + i * at.score_stride, hidden, t + 1 - begin, keys, largest);
      inverse_sums[i] = 1.0f / sum;
      log_sum_exp[(batch * shape.heads + head) * at.time + first + i] = largest + std::log(sum);
    }
    const RightPanels value_panels{&kernel, values_packed + key_head * value_words, at.time, at.dim, keys, begin};
    product_of_panels_here(context, worker, {mixed, at.dim, 1.0f, false}, Operand(scores, at.score_stride, false).in_cache(),
                           value_panels, rows, at.dim);
    for (size_t i = 0; i < rows; i++) {
      for_vectors(at.dim, [&](size_t j, size_t count) {
        store(out + position + i * at.q_stride + j, load(mixed + i * at.dim + j, count) * inverse_sums[i], count);
      });
    }
  });
}

/// One task does all query heads of one key head, in order, so that dk and dv have a single writer.
template <class Element>
void differentiate_attention(Context& context, const HeadsOut<Element>& gradients, const Element* dout,
                             const HeadsIn<Element>& heads, const Element* out, const float* log_sum_exp,
                             const AttentionShape& shape, const ProductKernel& kernel, const Angles& angles) {
  const Layout at(shape);
  const Element *const q = heads.q, *const k = heads.k, *const v = heads.v;
  const size_t across_words = right_panels_words(kernel, at.dim, at.time);
  const size_t along_words = right_panels_words(kernel, at.time, at.dim);
  const size_t block_words = right_panels_words(kernel, tile, at.dim);
  const size_t backward_strip = backward_strip_rows(kernel);
  const size_t score_floats = tile * at.score_stride, key_floats = at.time * at.dim;
  context.reserve_worker_memory(2 * score_floats + tile * at.dim + 2 * key_floats + 2 * across_words +
                                along_words + 2 * block_words);
  /// Copies rows of one head from float32 to their destination, rotated back if they were rotated.
  const auto keep = [&](Element* to, size_t stride, float* from, size_t batch, size_t first, size_t rows,
                        bool turned) {
    for (size_t i = 0; turned && angles.cosines != nullptr && i < rows; i++) {
      const size_t angle = (first + i - shape.document(batch, first + i)) * (at.dim / 2);
      rotate_head(from + i * at.dim, from + i * at.dim, angles.cosines + angle, angles.sines + angle, at.dim / 2,
                  -1.0f);
    }
    keep_rows(to, stride, from, at.dim, rows, at.dim);
  };

  context.pool.run(shape.batch * shape.kv_heads, [&](size_t task, unsigned worker) {
    const size_t batch = task / shape.kv_heads, key_head = task % shape.kv_heads;
    const size_t kv = at.kv_at(batch, key_head);
    float* const scores = context.worker_memory(worker);
    float* const dscores = scores + score_floats;
    float* const dq_tile = dscores + score_floats;
    float* const dk_sum = dq_tile + tile * at.dim;
    float* const dv_sum = dk_sum + key_floats;
    uint32_t* words = reinterpret_cast<uint32_t*>(dv_sum + key_floats);
    const Operand key_rows{k + kv, at.kv_stride, false};
    const RightPanels keys_across =
        pack_right_panels_here(kernel, words, {k + kv, at.kv_stride, true}, at.dim, at.time);
    const RightPanels values_across =
        pack_right_panels_here(kernel, words += across_words, {v + kv, at.kv_stride, true}, at.dim, at.time);
    RightPanels keys_along = pack_right_panels_here(kernel, words += across_words, key_rows, at.time, at.dim);
    uint32_t* q_words = words + along_words;
    uint32_t* dout_words = q_words + block_words;

    std::memset(dk_sum, 0, 2 * key_floats * sizeof(float));
    for (size_t head = 0; head < shape.heads; head++) {
      if (head * shape.kv_heads / shape.heads != key_head) continue;
      for (size_t first = 0; first < at.time; first += tile) {
        const size_t rows = least(tile, at.time - first);
        const size_t begin = first_key_of(shape, kernel, batch, first), before = first - begin;
        const size_t position = at.q_at(batch, first, head);
        for (size_t row = 0; row < rows; row += backward_strip) {
          const size_t count = least(backward_strip, rows - row), keys = before + row + count;
          const size_t from = position + row * at.q_stride;
          float* const p = scores + row * at.score_stride;
          float* const dp = dscores + row * at.score_stride;
          product_of_panels_here(context, worker, {p, at.score_stride, shape.scale, false},
                                 {q + from, at.q_stride, false}, behind_columns(keys_across, begin), count, keys);
          product_of_panels_here(context, worker, {dp, at.score_stride, 1.0f, false},
                                 {dout + from, at.q_stride, false}, behind_columns(values_across, begin), count, keys);
          for (size_t i = 0; i < count; i++) {
            const size_t t = first + row + i, at_row = from + i * at.q_stride;
            differentiate_row(p + i * at.score_stride, dp + i * at.score_stride, shape.document(batch, t) - begin,
                              t + 1 - begin, keys, log_sum_exp[(batch * shape.heads + head) * at.time + t],
                              dot_product(dout + at_row, out + at_row, at.dim), shape.scale);
          }
          keys_along.k = keys;
          keys_along.k_begin = begin;
          product_of_panels_here(context, worker, {dq_tile + row * at.dim, at.dim, 1.0f, false},
                                 Operand(dp, at.score_stride, false).in_cache(), keys_along, count, at.dim);
        }
        keep(gradients.dq + position, at.q_stride, dq_tile, batch, first, rows, true);

        RightPanels q_panels = pack_right_panels_here(kernel, q_words, {q + position, at.q_stride, false}, rows, at.dim);
        RightPanels dout_panels =
            pack_right_panels_here(kernel, dout_words, {dout + position, at.q_stride, false}, rows, at.dim);
        // Keys before the tile are visible to all its rows, the others to those of their own strip and later ones.
        for (size_t key = 0, row = 0, count = before + least(backward_strip, rows); key < before + rows;) {
          q_panels.k_begin = dout_panels.k_begin = row;
          q_panels.k = dout_panels.k = rows - row;
          const size_t inside = row * at.score_stride + key, to = (begin + key) * at.dim;
          product_of_panels_here(context, worker, {dk_sum + to, at.dim, 1.0f, true},
                                 {dscores + inside, at.score_stride, true}, q_panels, count, at.dim);
          product_of_panels_here(context, worker, {dv_sum + to, at.dim, 1.0f, true},
                                 {scores + inside, at.score_stride, true}, dout_panels, count, at.dim);
          key += count;
          row += backward_strip;
          count = least(backward_strip, before + rows - key);
        }
      }
    }
    keep(gradients.dk + kv, at.kv_stride, dk_sum, batch, 0, at.time, true);
    keep(gradients.dv + kv, at.kv_stride, dv_sum, batch, 0, at.time, false);
  });
}

template void attend(Context&, float*, float*, const float*, const float*, const float*, const AttentionShape&,
                     const ProductKernel&);
template void attend(Context&, uint16_t*, float*, const uint16_t*, const uint16_t*, const uint16_t*,
                     const AttentionShape&, const ProductKernel&);
template void differentiate_attention(Context&, const HeadsOut<float>&, const float*, const HeadsIn<float>&,
                                      const float*, const float*, const AttentionShape&, const ProductKernel&,
                                      const Angles&);
template void differentiate_attention(Context&, const HeadsOut<uint16_t>&, const uint16_t*,
                                      const HeadsIn<uint16_t>&, const uint16_t*, const float*,
                                      const AttentionShape&, const ProductKernel&, const Angles&);

void attention_forward(Context& context, float* out, float* log_sum_exp, const float* q, const float* k,
                       const float* v, const AttentionShape& shape, Precision precision) {
  attend(context, out, log_sum_exp, q, k, v, shape, context.product_kernel(precision));
}

void attention_backward(Context& context, float* dq, float* dk, float* dv, const float* dout, const float* q,
                        const float* k, const float* v, const float* out, const float* log_sum_exp,
                        const AttentionShape& shape, Precision precision) {
  differentiate_attention<float>(context, {dq, dk, dv}, dout, {q, k, v}, out, log_sum_exp, shape,
                                 context.product_kernel(precision), {nullptr, nullptr});
}

}  // namespace relora::RELORA_ISA
