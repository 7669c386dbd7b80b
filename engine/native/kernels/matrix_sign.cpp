#include "matrix_sign.h"

#include <algorithm>
#include <cmath>

namespace relora::RELORA_ISA {

namespace {

/// Coefficients of the polynomial a x + b x³ + c x⁵ (Jordan and others 2024): they raise small singular values fastest and leave all of
/// them between 0.7 and 1.2.
constexpr float first = 3.4445f, third = -4.7750f, fifth = 2.0315f;
constexpr int step_count = 5;

/// Rows and columns that are transposed together: lines of a width that is a power of two share few sets of a first-level cache.
constexpr size_t block_side = 16;

size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

void for_elements(const Team& team, size_t length, const auto& body) {
  team.run(divide_up(length, element_block), [&](size_t task, unsigned) {
    const size_t begin = task * element_block;
    body(begin, std::min(length, begin + element_block));
  });
}

}  // namespace

RightPanels Team::pack(const ProductKernel& kernel, uint32_t* words, const Operand& right, size_t k, size_t n) const {
  return worker_ == everybody ? pack_right_panels(context_, kernel, words, right, k, n)
                              : pack_right_panels_here(kernel, words, right, k, n);
}

void Team::product(const ProductKernel& kernel, uint32_t* words, const Target& target, const Operand& left,
                   const Operand& right, size_t m, size_t n, size_t k) const {
  const RightPanels panels = pack(kernel, words, right, k, n);
  if (worker_ == everybody) return product_of_panels(context_, target, left, panels, m);
  product_of_panels_here(context_, worker_, target, left, panels, m, n);
}

void Team::gram(const ProductKernel& kernel, uint32_t* words, float* target, const float* x, size_t stride,
                bool transposed, size_t m, size_t k) const {
  const RightPanels panels = pack(kernel, words, {x, stride, !transposed}, k, m);
  // A few tiles of rows per task, so that the triangle is divided evenly, and little above the diagonal is computed: tasks of 96 rows would
  // compute three quarters of a square of 192, these five eighths.
  const size_t gram_rows = 48 / kernel.tile_rows * kernel.tile_rows, tasks = divide_up(m, gram_rows);
  // The longest rows first: shorter ones then fill the threads that finish early.
  run(tasks, [&](size_t task, unsigned worker) {
    const size_t begin = (tasks - 1 - task) * gram_rows, end = std::min(m, begin + gram_rows);
    const Operand rows{x + (transposed ? begin : begin * stride), stride, transposed};
    product_of_panels_here(context_, worker, {target + begin * m, m, 1.0f, false}, rows, panels, end - begin, end);
  });
  run(tasks, [&](size_t task, unsigned) {
    const size_t begin = task * gram_rows, end = std::min(m, begin + gram_rows);
    for (size_t rows = begin; rows < end; rows += block_side) {
      const size_t rows_end = std::min(end, rows + block_side);
      for (size_t columns = rows; columns < m; columns += block_side) {
        const size_t columns_end = std::min(m, columns + block_side);
        for (size_t row = rows; row < rows_end; row++) {
          for (size_t column = std::max(columns, row + 1); column < columns_end; column++)
            target[row * m + column] = target[column * m + row];
        }
      }
    }
  });
}

size_t SignMemory::words_for(size_t m, size_t n, const ProductKernel& kernel) {
  return std::max({right_panels_words(kernel, n, m), right_panels_words(kernel, m, m),
                   right_panels_words(kernel, m, n)});
}

void matrix_sign(const Team& team, const ProductKernel& kernel, SignMemory& memory, size_t m, size_t n) {
  double* const partial = reinterpret_cast<double*>(memory.words);  // packed words are needed later, and take more
  const double norm = std::sqrt(squares_of(team, memory.x, m * n, partial));
  // A gradient of zero has no sign: it stays zero.
  const float inverse = norm > 0 ? static_cast<float>(1 / norm) : 0.0f;
  for_elements(team, m * n, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) memory.x[i] *= inverse;
  });
  for (int step = 0; step < step_count; step++) {
    float* const x = memory.x;
    float* const next = memory.next;
    team.gram(kernel, memory.words, memory.square, x, n, false, m, n);
    team.gram(kernel, memory.words, memory.fourth, memory.square, m, false, m, m);
    for_elements(team, m * m, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; i++) memory.fourth[i] = third * memory.square[i] + fifth * memory.fourth[i];
    });
    for_elements(team, m * n, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; i++) next[i] = first * x[i];
    });
    team.product(kernel, memory.words, {next, n, 1.0f, true}, {memory.fourth, m, false}, {x, n, false}, m, n, m);
    std::swap(memory.x, memory.next);
  }
}

double squares_of(const Team& team, const float* x, size_t length, double* partial) {
  const size_t blocks = divide_up(length, element_block);
  team.run(blocks, [&](size_t task, unsigned) {
    constexpr size_t ways = 16;
    double sums[ways] = {};
    const size_t begin = task * element_block, end = std::min(length, begin + element_block);
    for (size_t i = begin; i < end; i++) sums[i % ways] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    double sum = 0;
    for (const double part : sums) sum += part;
    partial[task] = sum;
  });
  double sum = 0;
  for (size_t block = 0; block < blocks; block++) sum += partial[block];
  return sum;
}

void transpose(const Team& team, float* to, const float* from, size_t rows, size_t columns) {
  team.run(divide_up(rows, block_side), [&](size_t task, unsigned) {
    const size_t begin = task * block_side, end = std::min(rows, begin + block_side);
    for (size_t column = 0; column < columns; column++) {
      for (size_t row = begin; row < end; row++) to[column * rows + row] = from[row * columns + column];
    }
  });
}

}  // namespace relora::RELORA_ISA
