// Parameters and their moments, as read and written by updates: in float32, or in 8 bits.
#pragma once
#include "device.h"

/// One of the parameters of a group, all of one length.
struct Member {
  float* parameter;
  const float* gradient;
  void* first;  // moments: floats, or codes
  float* first_scales;  // of codes: one for each 256
  void* second;
  float* second_scales;
  bf16* rounded;  // the copy of the parameter that products read; null for none
  u64 rounded_stride;
};

/// Factor of gradients; negative if loss or norm are not finite, so that nothing may change.
__device__ __forceinline__ float factor_of(const double* result, float norm_max) {
  const double loss = result[0], squares = result[2];
  if (!(fabs(loss) <= 1e300) || !(squares <= 1e300)) return -1.0f;
  const double norm = sqrt(squares);
  return norm > norm_max ? static_cast<float>(norm_max / norm) : 1.0f;
}

/// The sum over a block's 256 threads, in all of them: in a fixed order, so that bits do not vary.
__device__ __forceinline__ double sum_of_threads(double sum, double (&sums)[256]) {
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (u32 half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  return sums[0];
}

/// Stores element i of rows with this many columns, and the copy that products read.
__device__ __forceinline__ void store_updated(const Member& member, u32 columns, u64 i, float value) {
  member.parameter[i] = value;
  if (member.rounded == nullptr) return;
  const u32 row = static_cast<u32>(i) / columns, column = static_cast<u32>(i) % columns;
  member.rounded[row * member.rounded_stride + column] = rounded_to<bf16>(value);
}

// Moments in 8 bits, in blocks of 256 with one scale each: the same codes as in the kernels for CPUs (moment_codes.h). Cell k of decade d
// stands for slope[d] k + offset[d]; a magnitude y relative to the scale is in cell floor(rate[d] y + start[d]).

template <int decades>
struct CodeTable {
  float edge[8], slope[8], offset[8], rate[8], start[8];

  __device__ constexpr CodeTable() : edge{}, slope{}, offset{}, rate{}, start{} {
    const double last = static_cast<double>(1 << (decades - 1));
    const double top = 1 - 0.45 / last;
    double power = 1;
    for (int d = decades - 1; d >= 0; d--) {
      const double cells = static_cast<double>(1 << d);
      edge[d] = static_cast<float>(0.1 * power / top);
      slope[d] = static_cast<float>(0.9 * power / cells / top);
      offset[d] = static_cast<float>((0.45 / cells - 0.8) * power / top);
      rate[d] = static_cast<float>(top * cells / 0.9 / power);
      start[d] = static_cast<float>(cells * 8 / 9);
      power /= 10;
    }
  }
};
__constant__ constexpr CodeTable<7> first_codes;
__constant__ constexpr CodeTable<8> second_codes;

template <int decades>
__device__ __forceinline__ float decoded(const CodeTable<decades>& table, int cell) {
  if (cell == 0) return 0;
  const int decade = static_cast<int>(__float_as_uint(static_cast<float>(cell)) >> 23) - 127;  // its exponent
  return table.slope[decade] * static_cast<float>(cell) + table.offset[decade];
}

template <int decades>
__device__ __forceinline__ int encoded(const CodeTable<decades>& table, float share) {
  int decade = 0;
#pragma unroll
  for (int d = 1; d < decades; d++) decade += share >= table.edge[d];
  return min(static_cast<int>(table.rate[decade] * share + table.start[decade]), (1 << decades) - 1);
}

/// A first moment of its scale.
__device__ __forceinline__ float decoded_first(u8 bits, float scale) {
  const int code = static_cast<signed char>(bits);
  const float m = decoded(first_codes, code < 0 ? -code : code) * scale;
  return code < 0 ? -m : m;
}
__device__ __forceinline__ u8 encoded_first(float m, float scale) {
  // Divided, since the inverse of a tiny scale is infinite.
  const int first = encoded(first_codes, fabsf(m) / (scale > 0 ? scale : 1.0f));
  return static_cast<u8>(m < 0 ? -first : first);
}
