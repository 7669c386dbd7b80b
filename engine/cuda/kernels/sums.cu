// Sums whose order depends only on shapes.
#include "device.h"

struct ColumnSumParameters {
  float* partial;  // [slices, columns]
  const activation* x;  // [rows, columns]
  int rows;
  int columns;
  int stride;
  int slice_rows;
};
/// Sums of each column over the rows of a slice: the gradient of a bias, one slice at a time.
KERNEL(column_sum, ColumnSumParameters, 128) {
  const int column = blockIdx.x * 128 + threadIdx.x, begin = blockIdx.y * p.slice_rows;
  if (column >= p.columns) return;
  const int end = min(begin + p.slice_rows, p.rows);
  float sum = 0;
  for (int row = begin; row < end; row++) sum += to_float(p.x[static_cast<u64>(row) * p.stride + column]);
  p.partial[static_cast<u64>(blockIdx.y) * p.columns + column] = sum;
}

struct SumSlicesParameters {
  float* to;  // [columns]
  const float* partial;  // [slices, columns]
  int slices;
  int columns;
  int adds;  // to what is there
};
/// 32 columns per block: each of its warps adds every eighth slice, and their sums are added in order.
KERNEL(sum_slices, SumSlicesParameters, 256) {
  __shared__ float sums[8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
  float sum = 0;
  if (column < p.columns) {
    for (int slice = warp; slice < p.slices; slice += 8) sum += p.partial[static_cast<u64>(slice) * p.columns + column];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || column >= p.columns) return;
  sum = sums[0][lane];
#pragma unroll
  for (int other = 1; other < 8; other++) sum += sums[other][lane];
  p.to[column] = p.adds != 0 ? p.to[column] + sum : sum;
}

struct SumSquaresParameters {
  double* partial;  // [blocks]
  const float* x;
  u32 length;
};
/// A block adds up 8,192 elements.
KERNEL(sum_squares, SumSquaresParameters, 256) {
  __shared__ double sums[256];
  const u64 begin = static_cast<u64>(blockIdx.x) * 8192;
  double sum = 0;
  for (u64 i = begin + threadIdx.x; i < begin + 8192 && i < p.length; i += 256) {
    const double value = p.x[i];
    sum += value * value;
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (u32 half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) p.partial[blockIdx.x] = sums[0];
}

struct AddPartialsParameters {
  double* total;  // [1], added to
  const double* partial;
  int count;
};
KERNEL(add_partials, AddPartialsParameters, 256) {
  __shared__ double sums[256];
  double sum = 0;
  for (int i = threadIdx.x; i < p.count; i += 256) sum += p.partial[i];
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (u32 half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) *p.total += sums[0];
}
