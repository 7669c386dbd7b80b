// Products in true float32, for probes, for merges and for runs in FLOAT32. Matrices are given by row and column strides, so a transposed
// one is read in place. A sum over k has a fixed order.
#include "device.h"

constexpr int tile = 64, depth = 16;

struct FloatTiles {
  float a[depth][tile + 4];
  float b[depth][tile + 4];
};

/// sums[i][j] of rows (thread / 16) + 16 i and columns (thread % 16) + 16 j of the block's tile.
__device__ __forceinline__ void multiply_tile(float (&sums)[4][4], FloatTiles& tiles, const float* a, int a_row, int a_column,
                                              const float* b, int b_row, int b_column, int m, int n, int k, int first_m,
                                              int first_n) {
  for (int begin = 0; begin < k; begin += depth) {
    for (int i = threadIdx.x; i < tile * depth; i += 256) {
      // Neighboring threads read neighboring elements.
      const int across = a_column == 1 ? i / depth : i % tile, along = a_column == 1 ? i % depth : i / tile;
      const int row = first_m + across, in = begin + along;
      tiles.a[along][across] =
          row < m && in < k ? a[static_cast<u64>(row) * a_row + static_cast<u64>(in) * a_column] : 0.0f;
    }
    for (int i = threadIdx.x; i < tile * depth; i += 256) {
      const int across = b_row == 1 ? i / depth : i % tile, along = b_row == 1 ? i % depth : i / tile;
      const int column = first_n + across, in = begin + along;
      tiles.b[along][across] =
          column < n && in < k ? b[static_cast<u64>(in) * b_row + static_cast<u64>(column) * b_column] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int along = 0; along < depth; along++) {
      float left[4], right[4];
#pragma unroll
      for (int i = 0; i < 4; i++) left[i] = tiles.a[along][threadIdx.x / 16 + 16 * i];
#pragma unroll
      for (int j = 0; j < 4; j++) right[j] = tiles.b[along][threadIdx.x % 16 + 16 * j];
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
      }
    }
    __syncthreads();
  }
}

struct FloatProductParameters {
  float* c;  // [m, n], `c_stride` apart
  const float* a;
  const float* b;
  const float* addend;  // [m, n], `addend_stride` apart; null for none
  const float* bias;  // [n], likewise
  const float* factor;  // [1], multiplies `scale`; null for 1
  int m;
  int n;
  int k;
  int a_row;
  int a_column;
  int b_row;
  int b_column;
  int c_stride;
  int addend_stride;
  float scale;
  int adds;  // to what c holds
};
KERNEL(product_float, FloatProductParameters, 256) {
  __shared__ FloatTiles tiles;
  const int first_m = blockIdx.y * tile, first_n = blockIdx.x * tile;
  float sums[4][4] = {};
  multiply_tile(sums, tiles, p.a, p.a_row, p.a_column, p.b, p.b_row, p.b_column, p.m, p.n, p.k, first_m, first_n);
  const float scale = p.factor == nullptr ? p.scale : p.scale * *p.factor;
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int row = first_m + threadIdx.x / 16 + 16 * i, column = first_n + threadIdx.x % 16 + 16 * j;
      if (row >= p.m || column >= p.n) continue;
      const u64 at = static_cast<u64>(row) * p.c_stride + column;
      float value = scale * sums[i][j];
      if (p.addend != nullptr) value += p.addend[static_cast<u64>(row) * p.addend_stride + column];
      if (p.bias != nullptr) value += p.bias[column];
      p.c[at] = p.adds != 0 ? p.c[at] + value : value;
    }
  }
}

struct FloatSquaresParameters {
  float* c;  // [matrices, m, m], `c_stride` apart
  const float* x;  // [matrices, m, k], `x_stride` apart
  int m;
  int k;
  int c_stride;
  int x_stride;
};
/// x x^T of stacked matrices, one for each z: tiles above the diagonal are mirrored.
KERNEL(squares_float, FloatSquaresParameters, 256) {
  __shared__ FloatTiles tiles;
  if (blockIdx.x > blockIdx.y) return;
  const int first_m = blockIdx.y * tile, first_n = blockIdx.x * tile;
  const u64 matrix = static_cast<u64>(blockIdx.z) * p.m;
  const float* const x = p.x + matrix * p.x_stride;
  float* const c = p.c + matrix * p.c_stride;
  float sums[4][4] = {};
  multiply_tile(sums, tiles, x, p.x_stride, 1, x, 1, p.x_stride, p.m, p.m, p.k, first_m, first_n);
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int row = first_m + threadIdx.x / 16 + 16 * i, column = first_n + threadIdx.x % 16 + 16 * j;
      if (row >= p.m || column >= p.m) continue;
      c[static_cast<u64>(row) * p.c_stride + column] = sums[i][j];
      if (blockIdx.x < blockIdx.y) c[static_cast<u64>(column) * p.c_stride + row] = sums[i][j];
    }
  }
}

struct MergeParameters {
  float* merged;  // [in, out]; may be w itself; null: only check the result
  const float* w;
  const float* a;  // [in, rank]
  const float* b;  // [rank, out]
  double* squares;  // [blocks] of scale a b
  int* infinite;  // [blocks] counts of elements that are not finite
  int in;
  int rank;
  int out;
  float scale;
};
/// merged = w + scale (a b): the delta is summed separately and added once; otherwise it would be rounded `rank` times against a larger
/// weight.
KERNEL(merge_adapter, MergeParameters, 256) {
  __shared__ FloatTiles tiles;
  __shared__ double square_sums[256];
  __shared__ int counts[256];
  const int first_m = blockIdx.y * tile, first_n = blockIdx.x * tile;
  float sums[4][4] = {};
  multiply_tile(sums, tiles, p.a, p.rank, 1, p.b, p.out, 1, p.in, p.out, p.rank, first_m, first_n);
  double squares = 0;
  int count = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int row = first_m + threadIdx.x / 16 + 16 * i, column = first_n + threadIdx.x % 16 + 16 * j;
      if (row >= p.in || column >= p.out) continue;
      const u64 at = static_cast<u64>(row) * p.out + column;
      const float merged = p.w[at] + p.scale * sums[i][j];
      const double delta = static_cast<double>(p.scale) * static_cast<double>(sums[i][j]);
      squares += delta * delta;
      count += !(fabsf(merged) <= 3.4028235e38f);
      if (p.merged != nullptr) p.merged[at] = merged;
    }
  }
  square_sums[threadIdx.x] = squares;
  counts[threadIdx.x] = count;
  __syncthreads();
  for (u32 half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      square_sums[threadIdx.x] += square_sums[threadIdx.x + half];
      counts[threadIdx.x] += counts[threadIdx.x + half];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    const u32 block = blockIdx.y * gridDim.x + blockIdx.x;
    p.squares[block] = square_sums[0];
    p.infinite[block] = counts[0];
  }
}
