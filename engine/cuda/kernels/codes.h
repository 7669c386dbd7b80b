// Rows in e4m3: the largest value of a row becomes 448, and a value is its code times the row's scale. A kernel that writes rows for a base
// in e4m3 also writes their codes: a separate pass would read all of them again.
#pragma once

#include "device.h"

#if defined(RELORA_MODEL) || __CUDA_ARCH__ >= 890

/// What values of a row are multiplied by; its scale is written by the first lane.
__device__ __forceinline__ float scale_row(float* scale, float largest_of_row, int lane) {
  const bool is_zero = !(largest_of_row > 0);
  if (lane == 0) *scale = is_zero ? 1.0f : largest_of_row / 448.0f;
  return is_zero ? 1.0f : 448.0f / largest_of_row;
}

__device__ __forceinline__ void store_codes(u8* to, const float (&v)[8], float inverse) {
#pragma unroll
  for (int word = 0; word < 2; word++) {
    const float* const of = v + 4 * word;
    const u32 low = pack_e4m3(of[0] * inverse, of[1] * inverse), high = pack_e4m3(of[2] * inverse, of[3] * inverse);
    reinterpret_cast<u32*>(to)[word] = low | high << 16;
  }
}

/// Codes of rows written by a warp; each lane encodes what it wrote itself: eight elements of every 256, starting at `8 * lane`. Zeros
/// after the columns, up to `to_columns`.
template <class T>
__device__ __forceinline__ void code_written(u8* to, const T* from, int columns, int to_columns, float inverse, int lane) {
  for (int i = 8 * lane; i < to_columns; i += 256) {
    float v[8] = {};
    if (i < columns) load_eight(v, from + i, columns - i);
    store_codes(to + i, v, inverse);
  }
}

/// The largest of a row after rounding, from the lane's largest before rounding, which preserves the order.
template <class T>
__device__ __forceinline__ float largest_written(float largest) {
  return largest_of_warp(to_float(rounded_to<T>(largest)));
}

/// A whole row, `to_columns` of codes: a multiple of 16.
template <class T>
__device__ __forceinline__ void code_written_row(u8* codes, float* scales, int row, const T* from, int columns, int to_columns,
                                                 float largest, int lane) {
  const float inverse = scale_row(scales + row, largest_written<T>(largest), lane);
  code_written(codes + static_cast<u64>(row) * to_columns, from, columns, to_columns, inverse, lane);
}

#else  // kernels that would call them are never launched

template <class T>
__device__ __forceinline__ void code_written_row(u8*, float*, int, const T*, int, int, float, int) {}

#endif
