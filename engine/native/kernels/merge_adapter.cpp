// The ReLoRA merge of one linear layer: merged = w + scale * (a b).
#include <cmath>

#include "../gemm/product.h"
#include "kernels.h"

namespace relora::RELORA_ISA {

namespace {

/// Rows whose delta is stored at a time and whose squares form one partial sum of the norm: a fixed number, so that the norm does not
/// depend on threads.
constexpr size_t block = 48;

/// to = w + scale * delta for one row; adds the squares of scale * delta to `squares`, counts elements that
/// are not finite.
size_t add_row(float* __restrict to, const float* __restrict w, const float* __restrict delta, float scale,
               size_t n, double& squares) {
  constexpr size_t ways = 16;
  double sums[ways] = {};
  const auto square = [&](size_t i) {
    const double d = static_cast<double>(scale) * static_cast<double>(delta[i]);
    return d * d;
  };
  size_t i = 0;
  for (; i + ways <= n; i += ways) {
    for (size_t j = 0; j < ways; j++) sums[j] += square(i + j);
  }
  for (; i < n; i++) sums[i % ways] += square(i);
  for (const double part : sums) squares += part;

  unsigned infinite = 0;
  for (size_t j = 0; j < n; j++) {
    to[j] = w[j] + scale * delta[j];
    infinite += !(std::fabs(to[j]) <= 3.4028235e38f);
  }
  return infinite;
}

}  // namespace

/// merged, w[in, out]; a[in, rank]; b[rank, out]. The delta is summed separately and added once: adding each rank-1 term to w directly
/// would round `rank` times against a much larger weight. Always with float32 products, whatever training uses.
MergeResult merge_adapter(Context& context, float* merged, const float* w, const float* a, const float* b,
                          float scale, size_t in, size_t rank, size_t out) {
  const ProductKernel& kernel = context.product_kernel(Precision::float32);
  const size_t blocks = (in + block - 1) / block;
  uint32_t* words = context.shared(Shared::right_panels).words(right_panels_words(kernel, rank, out));
  const RightPanels right = pack_right_panels(context, kernel, words, {b, out, false}, rank, out);
  struct Partial {
    double squares;
    size_t infinite;
  };
  static_assert(sizeof(Partial) == 2 * sizeof(double));
  Partial* partial = reinterpret_cast<Partial*>(context.shared(Shared::first).doubles(2 * blocks));
  context.reserve_worker_memory(block * out);
  context.pool.run(blocks, [&](size_t task, unsigned worker) {
    const size_t row = task * block, rows = in - row < block ? in - row : block;
    float* delta = context.worker_memory(worker);
    product_of_panels_here(context, worker, {delta, out, 1.0f, false}, {a + row * rank, rank, false},
                           right, rows, out);
    partial[task] = {0, 0};
    for (size_t i = 0; i < rows; i++) {
      const size_t at = (row + i) * out;
      partial[task].infinite += add_row(merged + at, w + at, delta + i * out, scale, out,
                                        partial[task].squares);
    }
  });
  double squares = 0;
  size_t infinite = 0;
  for (size_t i = 0; i < blocks; i++) {
    squares += partial[i].squares;
    infinite += partial[i].infinite;
  }
  return {infinite == 0 && std::isfinite(squares), std::sqrt(squares)};
}

}  // namespace relora::RELORA_ISA
