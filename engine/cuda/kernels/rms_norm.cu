// Root mean square normalization (Zhang & Sennrich 2019): y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + epsilon). Activations between
// the halves, and their gradients, are float32; y and its gradient have the type of products.
#include "codes.h"

/// x: float32 activations, or rounded as in the state of a half.
#ifndef INPUT
#define INPUT float
#endif
typedef INPUT input;

struct RmsNormForwardParameters {
  activation* y;  // [rows, dim], `y_stride` apart
  float* rstd;  // [rows]
  const input* x;  // [rows, dim]
  bf16* kept;  // [rows, dim]: x rounded, for the backward pass; null: not wanted
  const float* gain;
  u8* codes;  // [rows, codes_columns]: y also in e4m3; null: not wanted. For a multiple of eight columns
  float* scales;  // [rows] of the codes
  int rows;
  int dim;
  int y_stride;
  int codes_columns;
  float epsilon;
};
/// A warp for each row.
KERNEL(rms_norm_forward, RmsNormForwardParameters, 256) {
  const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= p.rows) return;  // the whole warp, and no barrier follows
  const u64 at = static_cast<u64>(row) * p.dim;
  const input* const x = p.x + at;
  activation* const y = p.y + static_cast<u64>(row) * p.y_stride;
  float squares = 0;
  if (p.dim % 8 == 0) {
    for (int i = 8 * lane; i < p.dim; i += 256) {
      float v[8];
      load_eight(v, x + i, 8);
#pragma unroll
      for (int j = 0; j < 8; j++) squares += v[j] * v[j];
    }
  } else {
    for (int i = lane; i < p.dim; i += 32) squares += to_float(x[i]) * to_float(x[i]);
  }
  const float rstd = 1.0f / sqrtf(sum_of_warp(squares) / static_cast<float>(p.dim) + p.epsilon);
  if (lane == 0) p.rstd[row] = rstd;
  if (p.dim % 8 == 0) {
    float largest = 0;
    for (int i = 8 * lane; i < p.dim; i += 256) {
      float v[8], gain[8];
      load_eight(v, x + i, 8);
      load_eight(gain, p.gain + i, 8);
      if (p.kept != nullptr) store_eight(p.kept + at + i, v, 8);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        v[j] = v[j] * rstd * gain[j];
        largest = fmaxf(largest, fabsf(v[j]));
      }
      store_eight(y + i, v, 8);
    }
    if (p.codes != nullptr) code_written_row(p.codes, p.scales, row, y, p.dim, p.codes_columns, largest, lane);
  } else {
    for (int i = lane; i < p.dim; i += 32) {
      const float v = to_float(x[i]);
      y[i] = rounded_to<activation>(v * rstd * p.gain[i]);
      if (p.kept != nullptr) p.kept[at + i] = rounded_to<bf16>(v);
    }
  }
}

struct RmsNormBackwardParameters {
  float* dx;  // [rows, dim]
  const activation* dy;  // [rows, dim], `dy_stride` apart
  const input* x;
  const float* residual;  // [rows, dim], added to dx; null for none
  const float* gain;
  const float* rstd;
  int rows;
  int dim;
  int dy_stride;
};
/// dx = rstd * (dy * gain - x * rstd^2 * mean(dy * gain * x)) + residual.
KERNEL(rms_norm_backward, RmsNormBackwardParameters, 256) {
  const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= p.rows) return;
  const u64 at = static_cast<u64>(row) * p.dim;
  const activation* const dy = p.dy + static_cast<u64>(row) * p.dy_stride;
  const float rstd = p.rstd[row];
  float along = 0;
  for (int i = lane; i < p.dim; i += 32) along += to_float(dy[i]) * p.gain[i] * to_float(p.x[at + i]);
  along = sum_of_warp(along) * rstd * rstd / static_cast<float>(p.dim);
  for (int i = lane; i < p.dim; i += 32) {
    const float through = rstd * (to_float(dy[i]) * p.gain[i] - to_float(p.x[at + i]) * along);
    p.dx[at + i] = p.residual == nullptr ? through : through + p.residual[at + i];
  }
}

struct RmsNormGainParameters {
  float* partial;  // [slices, dim]
  const activation* dy;
  const input* x;
  const float* rstd;
  int rows;
  int dim;
  int dy_stride;
  int slice_rows;
};
/// Sums of dy * x * rstd over the rows of a slice; sum_slices adds the slices.
KERNEL(rms_norm_gain, RmsNormGainParameters, 128) {
  const int column = blockIdx.x * 128 + threadIdx.x, begin = blockIdx.y * p.slice_rows;
  if (column >= p.dim) return;
  const int end = min(begin + p.slice_rows, p.rows);
  float sum = 0;
  for (int row = begin; row < end; row++) {
    const float dy = to_float(p.dy[static_cast<u64>(row) * p.dy_stride + column]);
    sum += dy * to_float(p.x[static_cast<u64>(row) * p.dim + column]) * p.rstd[row];
  }
  p.partial[static_cast<u64>(blockIdx.y) * p.dim + column] = sum;
}

struct RmsNormBothParameters {
  float* dx;  // [rows, dim]
  bf16* rounded;  // dx in the type of products, `rounded_stride` apart; null for none
  float* partial;  // [slices, dim] of the gain's gradient
  const activation* dy;  // [rows, dim], `dy_stride` apart
  const input* x;
  const float* residual;  // [rows, dim], added to dx; null for none
  const float* gain;
  const float* rstd;
  u8* codes;  // [rows, codes_columns]: `rounded` also in e4m3; null: not wanted
  float* scales;  // [rows] of the codes
  int rows;
  int dim;  // a multiple of eight, 2,048 at most
  int dy_stride;
  int rounded_stride;
  int codes_columns;
  int slice_rows;
};
struct GainSums {
  float of[8 * 2048];  // the launch provides 8 * dim of them
};
/// Both gradients at once, for a slice of rows: each warp takes every eighth row, and has its own sums.
KERNEL(rms_norm_both, RmsNormBothParameters, 256) {
  DYNAMIC_SHARED(GainSums, sums);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int begin = blockIdx.x * p.slice_rows, end = min(begin + p.slice_rows, p.rows);
  float* const own = sums.of + warp * p.dim;
  const float nothing[8] = {};
  for (int i = 8 * lane; i < p.dim; i += 256) store_eight(own + i, nothing, 8);
  for (int row = begin + warp; row < end; row += 8) {
    const u64 at = static_cast<u64>(row) * p.dim;
    const activation* const dy = p.dy + static_cast<u64>(row) * p.dy_stride;
    const float rstd = p.rstd[row];
    float along = 0;
    for (int i = 8 * lane; i < p.dim; i += 256) {
      float d[8], x[8], gain[8];
      load_eight(d, dy + i, 8);
      load_eight(x, p.x + at + i, 8);
      load_eight(gain, p.gain + i, 8);
#pragma unroll
      for (int j = 0; j < 8; j++) along += d[j] * gain[j] * x[j];
    }
    along = sum_of_warp(along) * rstd * rstd / static_cast<float>(p.dim);
    float largest = 0;
    for (int i = 8 * lane; i < p.dim; i += 256) {
      float d[8], x[8], gain[8], sum[8], residual[8];
      load_eight(d, dy + i, 8);
      load_eight(x, p.x + at + i, 8);
      load_eight(gain, p.gain + i, 8);
      load_eight(sum, own + i, 8);
      if (p.residual != nullptr) load_eight(residual, p.residual + at + i, 8);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        sum[j] += d[j] * x[j] * rstd;
        d[j] = rstd * (d[j] * gain[j] - x[j] * along);
        if (p.residual != nullptr) d[j] += residual[j];
        largest = fmaxf(largest, fabsf(d[j]));
      }
      store_eight(own + i, sum, 8);
      store_eight(p.dx + at + i, d, 8);
      if (p.rounded != nullptr) store_eight(p.rounded + static_cast<u64>(row) * p.rounded_stride + i, d, 8);
    }
    if (p.codes != nullptr) {
      const bf16* const rounded = p.rounded + static_cast<u64>(row) * p.rounded_stride;
      code_written_row(p.codes, p.scales, row, rounded, p.dim, p.codes_columns, largest, lane);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < p.dim; i += 256) {
    float sum = sums.of[i];
#pragma unroll
    for (int other = 1; other < 8; other++) sum += sums.of[other * p.dim + i];
    p.partial[static_cast<u64>(blockIdx.x) * p.dim + i] = sum;
  }
}
