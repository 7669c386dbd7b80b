// Tiles of bfloat16 in shared memory, and the fragments of them that a warp multiplies.
#pragma once
#include "device.h"

/// Rows of a tile are padded by this many elements, so that the eight rows that ldmatrix reads are in different banks.
constexpr int tile_padding = 8;

/// Starts copying rows x columns elements of a matrix whose rows are `stride` apart; elements beyond `rows_left` and `columns_left` become
/// zero. Both addresses are multiples of 16 bytes.
template <int rows, int columns, int threads>
__device__ __forceinline__ void copy_tile(bf16 (&to)[rows][columns + tile_padding], const bf16* from, int stride, int rows_left,
                                          int columns_left) {
  static_assert(columns % 8 == 0, "chunks of eight elements");
  constexpr int row_chunks = columns / 8;
  for (int chunk = threadIdx.x; chunk < rows * row_chunks; chunk += threads) {
    const int row = chunk / row_chunks, column = chunk % row_chunks * 8;
    const int left = row < rows_left ? columns_left - column : 0;
    const u32 bytes = left >= 8 ? 16 : left > 0 ? 2 * left : 0;
    const bf16* const source = from + (bytes > 0 ? static_cast<u64>(row) * stride + column : 0);
    copy_async_16(&to[row][column], source, bytes);
  }
}

/// a[16, 16] at (row, column) of a tile that holds it row by row.
template <int columns>
__device__ __forceinline__ void load_left(u32 (&a)[4], const bf16 (*tile)[columns], int row, int column) {
  const int lane = threadIdx.x % 32;
  load_matrices(a, &tile[row + lane % 16][column + lane / 16 * 8]);
}
/// The same of a tile that holds the transposed matrix: a's row is a column of the tile.
template <int columns>
__device__ __forceinline__ void load_left_transposed(u32 (&a)[4], const bf16 (*tile)[columns], int row, int column) {
  const int lane = threadIdx.x % 32;
  load_matrices_transposed(a, &tile[column + lane / 16 * 8 + lane % 8][row + lane / 8 % 2 * 8]);
}
/// b[16, 8] twice, side by side, at (row, column), of a tile that holds b row by row.
template <int columns>
__device__ __forceinline__ void load_right(u32 (&b)[2][2], const bf16 (*tile)[columns], int row, int column) {
  const int lane = threadIdx.x % 32;
  u32 r[4];
  load_matrices_transposed(r, &tile[row + lane % 16][column + lane / 16 * 8]);
  b[0][0] = r[0];
  b[0][1] = r[1];
  b[1][0] = r[2];
  b[1][1] = r[3];
}
/// The same of a tile that holds b transposed: b's column is a row of the tile.
template <int columns>
__device__ __forceinline__ void load_right_transposed(u32 (&b)[2][2], const bf16 (*tile)[columns], int row, int column) {
  const int lane = threadIdx.x % 32;
  u32 r[4];
  load_matrices(r, &tile[column + lane / 16 * 8 + lane % 8][row + lane / 8 % 2 * 8]);
  b[0][0] = r[0];
  b[0][1] = r[1];
  b[1][0] = r[2];
  b[1][1] = r[3];
}
