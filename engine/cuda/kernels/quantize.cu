// Matrices in e4m3: each row has its own scale, its largest value becomes 448. Operands are stored along k, row by row.
#include "codes.h"

struct QuantizeParameters {
  u8* to;  // [rows, to_columns], contiguous, with zeros after the columns
  float* scales;  // [rows]: a value is its code times the scale
  const activation* from;  // [rows, columns], `stride` apart
  int rows;
  int columns;
  int to_columns;  // a multiple of 16
  int stride;
};
/// A warp for each row.
KERNEL(quantize_rows, QuantizeParameters, 256) {
#if defined(RELORA_MODEL) || __CUDA_ARCH__ >= 890
  const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= p.rows) return;  // the whole warp, and no barrier follows
  const activation* const from = p.from + static_cast<u64>(row) * p.stride;
  u8* const to = p.to + static_cast<u64>(row) * p.to_columns;
  // Rows of parameters need not be aligned; fewer than eight elements are read one by one.
  const bool is_even = p.stride % 8 == 0;
  float largest = 0;
  for (int i = 8 * lane; i < p.columns; i += 256) {
    float v[8];
    if (is_even) {
      load_eight(v, from + i, p.columns - i);
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] = i + j < p.columns ? to_float(from[i + j]) : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < 8; j++) largest = fmaxf(largest, fabsf(v[j]));
  }
  largest = largest_of_warp(largest);
  const float inverse = scale_row(p.scales + row, largest, lane);
  for (int i = 8 * lane; i < p.to_columns; i += 256) {
    float v[8];
    if (is_even && i < p.columns) {
      load_eight(v, from + i, p.columns - i);
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] = i + j < p.columns ? to_float(from[i + j]) : 0.0f;
    }
    store_codes(to + i, v, inverse);
  }
#endif
}

struct TransposeParameters {
  float* to;  // [columns, rows]
  const float* from;  // [rows, columns], `stride` apart
  int rows;
  int columns;
  int stride;
};
/// Tiles of 32 x 32: grid [columns, rows].
KERNEL(transpose, TransposeParameters, 256) {
  __shared__ float tile[32][33];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_row = blockIdx.y * 32, first_column = blockIdx.x * 32;
  for (int i = warp; i < 32; i += 8) {
    const int row = first_row + i, column = first_column + lane;
    if (row < p.rows && column < p.columns) tile[i][lane] = p.from[static_cast<u64>(row) * p.stride + column];
  }
  __syncthreads();
  for (int i = warp; i < 32; i += 8) {
    const int row = first_row + lane, column = first_column + i;
    if (row < p.rows && column < p.columns) p.to[static_cast<u64>(column) * p.rows + row] = tile[lane][i];
  }
}
