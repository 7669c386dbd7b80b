// Gradient accumulation, and the sum of squares for gradient clipping.
#include "kernels.h"

namespace relora::RELORA_ISA {

namespace {

/// In float64, in 32 interleaved sums.
double sum_squares_of(const float* x, size_t length) {
  constexpr size_t ways = 32;
  double sums[ways] = {};
  size_t i = 0;
  for (; i + ways <= length; i += ways) {
    for (size_t j = 0; j < ways; j++) {
      sums[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
    }
  }
  for (; i < length; i++) sums[i % ways] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

}  // namespace

/// The sum over all arrays: each block is summed by itself, then the blocks of an array in order, then the arrays in order.
double sum_squares(Context& context, std::span<const std::span<const float>> arrays) {
  const auto blocks = blocks_of_arrays(arrays.size(), [&](size_t array) { return arrays[array].size(); });
  double* partial = context.shared(Shared::first).doubles(blocks.size());
  context.pool.run(blocks.size(), [&](size_t task, unsigned) {
    const auto [array, begin, count] = blocks[task];
    partial[task] = sum_squares_of(arrays[array].data() + begin, count);
  });
  double sum = 0;
  for (size_t block = 0; block < blocks.size();) {
    const size_t array = blocks[block].array;
    double of_array = 0;
    for (; block < blocks.size() && blocks[block].array == array; block++) of_array += partial[block];
    sum += of_array;
  }
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
