// The language model's head and its loss in one: a chunk of rows at a time gets its logits, its losses, and
// has its logits turned into their gradients in place. [rows, vocabulary] never exists, and fresh pages for
// it are never faulted in.
#include <cmath>

#include "../gemm/product.h"
#include "../vector.h"
#include "kernels.h"

namespace relora::RELORA_ISA {

namespace {

constexpr size_t chunk_rows = 384;

/// Loss of one row in nats: log(sum e^logit) - logit[target]. NaN and infinite logits come out as a NaN or
/// infinite loss. When `keep`, the row becomes e^(logit - largest), and `inverse_sum` makes it probabilities.
template <bool keep>
float row_loss(float* logits, size_t n, int32_t target, float& inverse_sum) {
  Vec most[2] = {broadcast(logits[0]), broadcast(logits[0])};
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    most[0] = larger(load(logits + i), most[0]);
    most[1] = larger(load(logits + i + lanes), most[1]);
  }
  float largest = largest_lane(larger(most[0], most[1]));
  for (; i < n; i++) largest = logits[i] > largest ? logits[i] : largest;

  const float at_target = logits[target];
  double sum = 0;
  constexpr size_t piece = 4096;  // float32 sums of a piece, float64 sum of the pieces
  for (size_t begin = 0; begin < n; begin += piece) {
    Vec part = {};
    for_vectors(n - begin < piece ? n - begin : piece, [&](size_t j, size_t count) {
      float* p = logits + begin + j;
      Vec e = exponential(load(p, count) - largest);
      if constexpr (keep) store(p, e, count);
      if (count < lanes) {  // lanes behind the row must not count
        float last[lanes] = {};
        store(last, e, count);
        e = load(last);
      }
      part += e;
    });
    sum += static_cast<double>(sum_lanes(part));
  }
  inverse_sum = static_cast<float>(1.0 / sum);
  return static_cast<float>(static_cast<double>(largest) - static_cast<double>(at_target) + std::log(sum));
}

}  // namespace

/// losses[rows], dx[rows, dim] and dhead[vocabulary, dim] of x[rows, dim] head[vocabulary, dim]^T. Null dx:
/// losses only.
void head_cross_entropy(Context& context, float* losses, float* dx, float* dhead, const float* x,
                        const float* head, const int32_t* targets, const HeadShape& shape,
                        Precision precision) {
  const ProductKernel& kernel = context.product_kernel(precision);
  const size_t dim = shape.dim, vocabulary = shape.vocabulary;
  const size_t stride = (vocabulary + 15) / 16 * 16 + 16;
  const size_t rows_max = shape.rows < chunk_rows ? shape.rows : chunk_rows;
  float* logits = context.shared(Shared::third).floats(rows_max * stride);

  // The head is packed once for all chunks, in both directions.
  uint32_t* words = context.shared(Shared::first).words(right_panels_words(kernel, dim, vocabulary));
  const RightPanels forward = pack_right_panels(context, kernel, words, {head, dim, true}, dim, vocabulary);
  RightPanels backward{};
  if (dx != nullptr) {
    words = context.shared(Shared::second).words(right_panels_words(kernel, vocabulary, dim));
    backward = pack_right_panels(context, kernel, words, {head, dim, false}, vocabulary, dim);
  }

  for (size_t row = 0; row < shape.rows; row += chunk_rows) {
    const size_t rows = shape.rows - row < chunk_rows ? shape.rows - row : chunk_rows;
    const Operand inputs{x + row * dim, dim, false};
    product_of_panels(context, {logits, stride, 1.0f, false}, inputs, forward, rows);

    context.pool.run(rows, [&](size_t i, unsigned) {
      float* from = logits + i * stride;
      const int32_t target = targets[row + i];
      if (target < 0) {
        losses[row + i] = 0;
        if (dx != nullptr) std::memset(from, 0, vocabulary * sizeof(float));
        return;
      }
      float inverse_sum;
      if (dx == nullptr) {
        losses[row + i] = row_loss<false>(from, vocabulary, target, inverse_sum);
        return;
      }
      losses[row + i] = row_loss<true>(from, vocabulary, target, inverse_sum);
      const float factor = shape.gradient_scale * inverse_sum;
      for_vectors(vocabulary, [&](size_t j, size_t count) {
        store(from + j, load(from + j, count) * factor, count);
      });
      from[target] -= shape.gradient_scale;
    });

    if (dx == nullptr) continue;
    product_of_panels(context, {dx + row * dim, dim, 1.0f, false}, {logits, stride, false}, backward,
                      rows);
    if (dhead != nullptr) {
      product(context, kernel, {dhead, dim, 1.0f, row > 0}, {logits, stride, true}, inputs, vocabulary, dim,
              rows);
    }
  }
}

}  // namespace relora::RELORA_ISA
