// Root mean square norms of individual heads of queries and keys, between their projection and their rotation: a warp per head.
#include "device.h"

constexpr int most = 4;  // elements of a head in a lane: at most 128 in all

struct HeadNormForwardParameters {
  activation* x;  // [rows, heads, dim] in place, rows `stride` apart
  activation* made;  // what x was, rows `made_stride` apart
  const float* gain;  // [dim]
  int rows;
  int heads;
  int dim;
  int stride;
  int made_stride;
  float epsilon;
};
/// Eight heads to a block.
KERNEL(head_norm_forward, HeadNormForwardParameters, 256) {
  const u64 index = static_cast<u64>(blockIdx.x) * 8 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (index >= static_cast<u64>(p.rows) * p.heads) return;  // the whole warp, and no barrier follows
  const u32 row = static_cast<u32>(index / p.heads), head = static_cast<u32>(index % p.heads);
  activation* const x = p.x + static_cast<u64>(row) * p.stride + head * p.dim;
  activation* const made = p.made + static_cast<u64>(row) * p.made_stride + head * p.dim;
  float v[most], squares = 0;
#pragma unroll
  for (int i = 0; i < most; i++) {
    const int element = lane + 32 * i;
    v[i] = 0;
    if (element >= p.dim) continue;
    made[element] = x[element];
    v[i] = to_float(x[element]);
    squares += v[i] * v[i];
  }
  const float rstd = 1.0f / sqrtf(sum_of_warp(squares) / static_cast<float>(p.dim) + p.epsilon);
#pragma unroll
  for (int i = 0; i < most; i++) {
    const int element = lane + 32 * i;
    if (element < p.dim) x[element] = rounded_to<activation>(v[i] * rstd * p.gain[element]);
  }
}

struct HeadNormBackwardParameters {
  activation* d;  // [rows, heads, dim], `stride` apart: the gradient of the norm's output, replaced by that of its input
  float* partial;  // [slices, dim] of the gain's gradient
  const activation* made;  // as d, `made_stride` apart
  const float* gain;
  int rows;
  int heads;
  int dim;
  int stride;
  int made_stride;
  int slice_rows;
  float epsilon;
};
/// One block per slice of rows: each warp takes every eighth row with all its heads, and has its own sums; sum_slices adds the slices.
KERNEL(head_norm_backward, HeadNormBackwardParameters, 256) {
  __shared__ float sums[8][32 * most];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int begin = blockIdx.x * p.slice_rows, end = min(begin + p.slice_rows, p.rows);
  float gain[most], own[most];
#pragma unroll
  for (int i = 0; i < most; i++) {
    gain[i] = lane + 32 * i < p.dim ? p.gain[lane + 32 * i] : 0.0f;
    own[i] = 0;
  }
  for (int row = begin + warp; row < end; row += 8) {
    for (int head = 0; head < p.heads; head++) {
      activation* const d = p.d + static_cast<u64>(row) * p.stride + head * p.dim;
      const activation* const made = p.made + static_cast<u64>(row) * p.made_stride + head * p.dim;
      float x[most], up[most], squares = 0, along = 0;
#pragma unroll
      for (int i = 0; i < most; i++) {
        const int element = lane + 32 * i;
        x[i] = element < p.dim ? to_float(made[element]) : 0.0f;
        up[i] = element < p.dim ? to_float(d[element]) : 0.0f;
        squares += x[i] * x[i];
        along += up[i] * gain[i] * x[i];
      }
      const float size = static_cast<float>(p.dim), rstd = 1.0f / sqrtf(sum_of_warp(squares) / size + p.epsilon);
      along = sum_of_warp(along) * rstd * rstd / size;
#pragma unroll
      for (int i = 0; i < most; i++) {
        const int element = lane + 32 * i;
        own[i] += up[i] * x[i] * rstd;
        if (element < p.dim) d[element] = rounded_to<activation>(rstd * (up[i] * gain[i] - x[i] * along));
      }
    }
  }
#pragma unroll
  for (int i = 0; i < most; i++) sums[warp][lane + 32 * i] = own[i];
  __syncthreads();
  for (int i = threadIdx.x; i < p.dim; i += 256) {
    float sum = sums[0][i];
#pragma unroll
    for (int other = 1; other < 8; other++) sum += sums[other][i];
    p.partial[static_cast<u64>(blockIdx.x) * p.dim + i] = sum;
  }
}
