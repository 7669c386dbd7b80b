// The matrix sign by Newton-Schulz steps, for the optimizers that step along it.
#pragma once
#include "kernels.h"

namespace relora::RELORA_ISA {

/// The threads that work on one matrix: all of them, or the worker that calls.
class Team {
 public:
  explicit Team(Context& context) : context_(context), worker_(everybody) {}
  Team(Context& context, unsigned worker) : context_(context), worker_(worker) {}

  /// body(task, worker) for each task.
  template <class Body>
  void run(size_t tasks, const Body& body) const {
    if (worker_ == everybody) return context_.pool.run(tasks, body);
    for (size_t task = 0; task < tasks; task++) body(task, worker_);
  }
  RightPanels pack(const ProductKernel& kernel, uint32_t* words, const Operand& right, size_t k, size_t n) const;
  /// target[m, n] (+)= alpha op(left)[m, k] op(right)[k, n], with `words` for the packed right side.
  void product(const ProductKernel& kernel, uint32_t* words, const Target& target, const Operand& left,
               const Operand& right, size_t m, size_t n, size_t k) const;
  /// target[m, m] = op(x)[m, k] op(x)ᵀ, x with its stride: each entry is computed once, and entries above the diagonal are copied.
  void gram(const ProductKernel& kernel, uint32_t* words, float* target, const float* x, size_t stride,
            bool transposed, size_t m, size_t k) const;

  Context& context() const { return context_; }

 private:
  static constexpr unsigned everybody = static_cast<unsigned>(-1);
  Context& context_;
  unsigned worker_;
};

/// Buffers for the sign of an x[m, n], m <= n.
struct SignMemory {
  float *x, *next;         // [m, n]
  float *square, *fourth;  // [m, m]
  uint32_t* words;

  /// `take(count)` returns memory for that many floats.
  static SignMemory of(size_t m, size_t n, const ProductKernel& kernel, const auto& take) {
    return {take(m * n), take(m * n), take(m * m), take(m * m),
            reinterpret_cast<uint32_t*>(take(words_for(m, n, kernel)))};
  }
  static size_t words_for(size_t m, size_t n, const ProductKernel& kernel);
};

/// memory.x / |memory.x| after five steps, in memory.x: every singular value that is not tiny is then close to 1.
void matrix_sign(const Team& team, const ProductKernel& kernel, SignMemory& memory, size_t m, size_t n);

/// Sum of squares in float64, in an order that depends only on the length.
double squares_of(const Team& team, const float* x, size_t length, double* partial);

/// to[columns, rows] = from[rows, columns]ᵀ
void transpose(const Team& team, float* to, const float* from, size_t rows, size_t columns);

/// Below this many operations of its products (half of them), a matrix is not worth more than one thread.
constexpr size_t alone_operations_max = size_t{1} << 24;

}  // namespace relora::RELORA_ISA
