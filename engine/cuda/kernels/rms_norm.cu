// Root mean square normalisation (Zhang & Sennrich 2019): y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + epsilon).
#include "device.h"

struct RmsNormForwardParameters {
  activation* y;  // [rows, dim], `stride` apart
  float* rstd;  // [rows]
  const activation* x;
  const float* gain;
  int rows;
  int dim;
  int stride;
  float epsilon;
};
/// A warp for each row.
KERNEL(rms_norm_forward, RmsNormForwardParameters, 256) {
  const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= p.rows) return;  // the whole warp, and no barrier follows
  const activation* const x = p.x + static_cast<u64>(row) * p.stride;
  activation* const y = p.y + static_cast<u64>(row) * p.stride;
  float squares = 0, v[8];
  for (int i = lane * 8; i < p.dim; i += 256) {
    load_eight(v, x + i, p.dim - i);
#pragma unroll
    for (int j = 0; j < 8; j++) squares += v[j] * v[j];
  }
  const float rstd = 1.0f / sqrtf(sum_of_warp(squares) / static_cast<float>(p.dim) + p.epsilon);
  if (lane == 0) p.rstd[row] = rstd;
  for (int i = lane * 8; i < p.dim; i += 256) {
    float gain[8];
    load_eight(v, x + i, p.dim - i);
    load_eight(gain, p.gain + i, p.dim - i);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = v[j] * rstd * gain[j];
    store_eight(y + i, v, p.dim - i);
  }
}

struct RmsNormBackwardParameters {
  activation* dx;
  const activation* dy;
  const activation* x;
  const activation* residual;  // added to dx; null for none
  const float* gain;
  const float* rstd;
  int rows;
  int dim;
  int stride;
};
/// dx = rstd * (dy * gain - x * rstd^2 * mean(dy * gain * x)) + residual.
KERNEL(rms_norm_backward, RmsNormBackwardParameters, 256) {
  const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= p.rows) return;
  const u64 at = static_cast<u64>(row) * p.stride;
  const float rstd = p.rstd[row];
  float along = 0;
  for (int i = lane * 8; i < p.dim; i += 256) {
    float x[8], dy[8], gain[8];
    load_eight(x, p.x + at + i, p.dim - i);
    load_eight(dy, p.dy + at + i, p.dim - i);
    load_eight(gain, p.gain + i, p.dim - i);
#pragma unroll
    for (int j = 0; j < 8; j++) along += dy[j] * gain[j] * x[j];
  }
  along = sum_of_warp(along) * rstd * rstd / static_cast<float>(p.dim);
  for (int i = lane * 8; i < p.dim; i += 256) {
    float x[8], dy[8], gain[8], residual[8];
    load_eight(x, p.x + at + i, p.dim - i);
    load_eight(dy, p.dy + at + i, p.dim - i);
    load_eight(gain, p.gain + i, p.dim - i);
    load_eight(residual, p.residual == nullptr ? p.dy + at + i : p.residual + at + i, p.dim - i);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float through = rstd * (dy[j] * gain[j] - x[j] * along);
      x[j] = p.residual == nullptr ? through : through + residual[j];
    }
    store_eight(p.dx + at + i, x, p.dim - i);
  }
}

struct RmsNormGainParameters {
  float* partial;  // [slices, dim]
  const activation* dy;
  const activation* x;
  const float* rstd;
  int rows;
  int dim;
  int stride;
  int slice_rows;
};
/// Sums of dy * x * rstd over the rows of a slice; sum_slices adds them up.
KERNEL(rms_norm_gain, RmsNormGainParameters, 128) {
  const int column = blockIdx.x * 128 + threadIdx.x, begin = blockIdx.y * p.slice_rows;
  if (column >= p.dim) return;
  const int end = min(begin + p.slice_rows, p.rows);
  float sum = 0;
  for (int row = begin; row < end; row++) {
    const u64 at = static_cast<u64>(row) * p.stride + column;
    sum += to_float(p.dy[at]) * to_float(p.x[at]) * p.rstd[row];
  }
  p.partial[static_cast<u64>(blockIdx.y) * p.dim + column] = sum;
}
