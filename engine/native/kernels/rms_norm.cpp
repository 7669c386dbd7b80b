// Root mean square normalization (Zhang & Sennrich 2019): y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) +
// epsilon).
#include "kernels.h"
#include "rows.h"

namespace relora::RELORA_ISA {

namespace {

/// Rows of one task, and of one partial sum of the gain's gradient: fixed, so that sums do not depend on
/// threads.
constexpr size_t block = 32;

size_t blocks_of(size_t rows) { return (rows + block - 1) / block; }

template <class Body>
void for_rows(Context& context, size_t rows, const Body& body) {
  context.pool.run(blocks_of(rows), [&](size_t task, unsigned) {
    const size_t end = (task + 1) * block < rows ? (task + 1) * block : rows;
    body(task, task * block, end);
  });
}

}  // namespace

/// y, x[rows, dim]; rstd[rows]; gain[dim].
void rms_norm_forward(Context& context, float* y, float* rstd, const float* x, const float* gain, size_t rows,
                      size_t dim, float epsilon) {
  for_rows(context, rows, [&](size_t, size_t begin, size_t end) {
    for (size_t row = begin; row < end; row++) {
      rstd[row] = inverse_root_mean_square(x + row * dim, dim, epsilon);
      normalize_row(y + row * dim, x + row * dim, gain, rstd[row], dim);
    }
  });
}

/// dx = rstd * (dy * gain - x * rstd^2 * mean(dy * gain * x)) + residual, which may be null; dgain = sum over
/// rows of dy * x * rstd.
void rms_norm_backward(Context& context, float* dx, float* dgain, const float* dy, const float* x,
                       const float* gain, const float* rstd, const float* residual, size_t rows,
                       size_t dim) {
  float* partial = context.shared(Shared::first).floats(blocks_of(rows) * dim);
  for_rows(context, rows, [&](size_t task, size_t begin, size_t end) {
    float* dgain_part = partial + task * dim;
    std::memset(dgain_part, 0, dim * sizeof(float));
    for (size_t row = begin; row < end; row++) {
      const float* in = x + row * dim;
      const float* dout = dy + row * dim;
      float* din = dx + row * dim;
      const float r = rstd[row];
      const float dot = sum_row(dim, [&](Vec sum, size_t i, size_t count) {
        return multiply_add(load(dout + i, count) * load(gain + i, count), load(in + i, count), sum);
      });
      const float along = dot * r * r / static_cast<float>(dim);
      for_vectors(dim, [&](size_t i, size_t count) {
        const Vec d = load(dout + i, count), v = load(in + i, count);
        const Vec through = (d * load(gain + i, count) - v * along) * r;
        store(din + i, residual ? through + load(residual + row * dim + i, count) : through, count);
        store(dgain_part + i, load(dgain_part + i, count) + d * v * r, count);
      });
    }
  });
  std::memset(dgain, 0, dim * sizeof(float));
  for (size_t part = 0; part < blocks_of(rows); part++) {
    const float* from = partial + part * dim;
    for_vectors(dim, [&](size_t i, size_t count) {
      store(dgain + i, load(dgain + i, count) + load(from + i, count), count);
    });
  }
}

}  // namespace relora::RELORA_ISA
