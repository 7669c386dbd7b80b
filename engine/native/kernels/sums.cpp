// Gradient accumulation and the sum of squares behind gradient clipping.
#include "kernels.h"

namespace relora::RELORA_ISA {

/// In float64: squares of each block in 32 interleaved sums, then the blocks in order.
double sum_squares(Context& context, const float* x, size_t length) {
  const size_t blocks = (length + element_block - 1) / element_block;
  double* partial = context.shared(Shared::first).doubles(blocks);
  context.pool.run(blocks, [&](size_t task, unsigned) {
    constexpr size_t ways = 32;
    const float* from = x + task * element_block;
    const size_t rest = length - task * element_block;
    const size_t count = rest < element_block ? rest : element_block;
    double sums[ways] = {};
    size_t i = 0;
    for (; i + ways <= count; i += ways) {
      for (size_t j = 0; j < ways; j++) {
        sums[j] += static_cast<double>(from[i + j]) * static_cast<double>(from[i + j]);
      }
    }
    for (; i < count; i++) sums[i % ways] += static_cast<double>(from[i]) * static_cast<double>(from[i]);
    double sum = 0;
    for (const double part : sums) sum += part;
    partial[task] = sum;
  });
  double sum = 0;
  for (size_t block = 0; block < blocks; block++) sum += partial[block];
  return sum;
}

void add_in_place(Context& context, float* accumulator, const float* x, size_t length) {
  context.pool.run((length + element_block - 1) / element_block, [&](size_t task, unsigned) {
    const size_t begin = task * element_block;
    const size_t count = length - begin < element_block ? length - begin : element_block;
    float* __restrict to = accumulator + begin;
    const float* __restrict from = x + begin;
    for (size_t i = 0; i < count; i++) to[i] += from[i];
  });
}

}  // namespace relora::RELORA_ISA
