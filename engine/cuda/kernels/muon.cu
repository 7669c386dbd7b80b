// Muon (Jordan and others 2024), LoRA-Muon (arXiv 2606.12921) and APOLLO-Mini (2412.05270), except for their products: defined by
// engine/src/device/tfjs/matrixOptimizers.ts. Matrices of the same shape are stacked, with `stride` elements per row, and processed
// together.
#include "moments.h"

constexpr u64 elements_of_a_sum = 8192;

/// Index of element i of [rows, columns] in the transposed, or untransposed, output.
__device__ __forceinline__ u64 place_of(u32 i, u32 columns, u32 rows, u32 stride, u32 matrix, int is_turned) {
  const u32 row = i / columns, column = i % columns;
  const u64 first = static_cast<u64>(matrix) * (is_turned != 0 ? columns : rows);
  return is_turned != 0 ? (first + column) * stride + row : (first + row) * stride + column;
}

struct MomentumParameters {
  const Member* members;
  const double* result;  // [loss, sum of losses, squared norm]
  float* u;  // [members, rows, columns], or turned
  u32 rows;
  u32 columns;
  u32 stride;
  int is_turned;
  float momentum;
  float norm_max;
};
/// m = beta m + g, u = g + beta m. If nothing may change u is zero. Grid [blocks of a matrix, matrices].
KERNEL(momentum, MomentumParameters, 256) {
  const u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= static_cast<u64>(p.rows) * p.columns) return;
  const float factor = factor_of(p.result, p.norm_max);
  const u64 to = place_of(i, p.columns, p.rows, p.stride, blockIdx.y, p.is_turned);
  if (factor < 0) {
    p.u[to] = 0;
    return;
  }
  const Member& member = p.members[blockIdx.y];
  float* const first = static_cast<float*>(member.first);
  const float gradient = factor * member.gradient[i];
  const float m = p.momentum * first[i] + gradient;
  first[i] = m;
  p.u[to] = gradient + p.momentum * m;
}

/// The same for 8-bit moments: one block per 256 values with the same scale.
KERNEL(coded_momentum, MomentumParameters, 256) {
  __shared__ float scratch[8];
  const u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  const bool is_there = i < static_cast<u64>(p.rows) * p.columns;
  const float factor = factor_of(p.result, p.norm_max);
  const Member& member = p.members[blockIdx.y];
  u8* const codes = static_cast<u8*>(member.first);
  float m = 0, u = 0;
  if (is_there && factor >= 0) {
    const float gradient = factor * member.gradient[i];
    m = p.momentum * decoded_first(codes[i], member.first_scales[blockIdx.x]) + gradient;
    u = gradient + p.momentum * m;
  }
  if (is_there) p.u[place_of(i, p.columns, p.rows, p.stride, blockIdx.y, p.is_turned)] = u;
  if (factor < 0) return;  // the same for all threads
  // Its barrier is between the reads of the old scale and the write of the new one.
  const float scale = largest_of_block<256>(fabsf(m), scratch);
  if (is_there) codes[i] = encoded_first(m, scale);
  if (threadIdx.x == 0) member.first_scales[blockIdx.x] = scale;
}

struct MatrixSquaresParameters {
  double* partial;  // [matrices, parts]
  const float* x;  // [matrices, rows, columns]
  u32 rows;
  u32 columns;
  u32 stride;
};
/// Grid [parts, matrices].
KERNEL(matrix_squares, MatrixSquaresParameters, 256) {
  __shared__ double sums[256];
  const u64 begin = blockIdx.x * elements_of_a_sum, length = static_cast<u64>(p.rows) * p.columns;
  double sum = 0;
  for (u64 i = begin + threadIdx.x; i < begin + elements_of_a_sum && i < length; i += 256) {
    const double value = p.x[place_of(i, p.columns, p.rows, p.stride, blockIdx.y, 0)];
    sum += value * value;
  }
  sum = sum_of_threads(sum, sums);
  if (threadIdx.x == 0) p.partial[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

struct InverseNormsParameters {
  float* inverse;  // [matrices]
  const double* partial;  // [matrices, parts]
  int parts;
};
/// 0 for a matrix of zeros, which has no sign.
KERNEL(inverse_norms, InverseNormsParameters, 256) {
  __shared__ double sums[256];
  double sum = 0;
  for (int i = threadIdx.x; i < p.parts; i += 256) sum += p.partial[static_cast<u64>(blockIdx.x) * p.parts + i];
  const double norm = sqrt(sum_of_threads(sum, sums));
  if (threadIdx.x == 0) p.inverse[blockIdx.x] = norm > 0 ? static_cast<float>(1 / norm) : 0.0f;
}

struct BeginSignStepParameters {
  float* next;  // [matrices, rows, columns]: factor x, which the product is added to
  bf16* operand;  // x in the type of products; null: they read x itself
  float* x;
  const float* inverse;  // [matrices]: factor of x; null: x was scaled before
  u32 rows;
  u32 columns;
  u32 stride;
  float factor;
};
/// Grid [blocks of a matrix, matrices].
KERNEL(begin_sign_step, BeginSignStepParameters, 256) {
  const u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= static_cast<u64>(p.rows) * p.columns) return;
  const u64 at = place_of(i, p.columns, p.rows, p.stride, blockIdx.y, 0);
  float x = p.x[at];
  if (p.inverse != nullptr) {
    x *= p.inverse[blockIdx.y];
    p.x[at] = x;
  }
  p.next[at] = p.factor * x;
  if (p.operand != nullptr) p.operand[at] = rounded_to<bf16>(x);
}

struct SignPolynomialParameters {
  bf16* rounded;  // [rows, columns]; one of the two is null
  float* plain;
  const float* square;
  const float* fourth;
  u32 rows;  // of all matrices
  u32 columns;
  u32 stride;
  float third;
  float fifth;
};
/// third x² + fifth x⁴, for a factor of x.
KERNEL(sign_polynomial, SignPolynomialParameters, 256) {
  const u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= static_cast<u64>(p.rows) * p.columns) return;
  const u64 at = i / p.columns * p.stride + i % p.columns;
  const float value = p.third * p.square[at] + p.fifth * p.fourth[at];
  if (p.rounded != nullptr) p.rounded[at] = rounded_to<bf16>(value);
  else p.plain[at] = value;
}

struct StepAlongParameters {
  const Member* members;
  const double* result;
  const float* d;  // [members, rows, columns], or turned
  u32 rows;
  u32 columns;
  u32 stride;
  int is_turned;
  float kept;
  float by;
  float norm_max;
};
/// w = kept w - by d. Grid [blocks of a matrix, matrices].
KERNEL(step_along, StepAlongParameters, 256) {
  const u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= static_cast<u64>(p.rows) * p.columns || factor_of(p.result, p.norm_max) < 0) return;
  const Member& member = p.members[blockIdx.y];
  const float d = p.d[place_of(i, p.columns, p.rows, p.stride, blockIdx.y, p.is_turned)];
  store_updated(member, p.columns, i, p.kept * member.parameter[i] - p.by * d);
}

struct InverseFactorParameters {
  float* inverse;  // [matrices, rank, rank]
  const float* gram;
  double* work;  // [matrices, 2, rank, rank]
  int rank;
  int stride;
  float damping;
};
/// Precision of float32 sums, relative to the mean diagonal of a Gram matrix.
constexpr double gram_resolution = 1e-6;
/// L⁻¹ of S + damping I = L Lᵀ, in float64: a block for each Gram matrix S.
KERNEL(inverse_factor, InverseFactorParameters, 128) {
  const int r = p.rank;
  const u64 size = static_cast<u64>(r) * p.stride;
  const float* const gram = p.gram + blockIdx.x * size;
  float* const inverse = p.inverse + blockIdx.x * size;
  double* const l = p.work + static_cast<u64>(blockIdx.x) * 2 * r * r;
  double* const columns = l + static_cast<u64>(r) * r;
  double trace = 0;
  for (int i = 0; i < r; i++) trace += static_cast<double>(gram[static_cast<u64>(i) * p.stride + i]);
  const double added = fmax(static_cast<double>(p.damping), gram_resolution * trace / r);
  for (int j = 0; j < r; j++) {
    double* const row_j = l + static_cast<u64>(j) * r;
    for (int i = j + static_cast<int>(threadIdx.x); i < r; i += 128) {
      double* const row_i = l + static_cast<u64>(i) * r;
      double sum = static_cast<double>(gram[static_cast<u64>(i) * p.stride + j]) + (i == j ? added : 0.0);
      for (int k = 0; k < j; k++) sum -= row_i[k] * row_j[k];
      row_i[j] = sum;
    }
    __syncthreads();
    const double diagonal = sqrt(row_j[j]);
    __syncthreads();  // all have read it
    for (int i = j + static_cast<int>(threadIdx.x); i < r; i += 128) {
      double* const row_i = l + static_cast<u64>(i) * r;
      row_i[j] = i == j ? diagonal : row_i[j] / diagonal;
    }
    __syncthreads();
  }
  // Column by column of L⁻¹, each kept in a row of `columns`.
  for (int column = threadIdx.x; column < r; column += 128) {
    double* const x = columns + static_cast<u64>(column) * r;
    for (int i = 0; i < r; i++) {
      const double* const row = l + static_cast<u64>(i) * r;
      double sum = i == column ? 1.0 : 0.0;
      for (int k = column; k < i; k++) sum -= row[k] * x[k];
      x[i] = i < column ? 0.0 : sum / row[i];
      inverse[static_cast<u64>(i) * p.stride + column] = static_cast<float>(x[i]);
    }
  }
}
