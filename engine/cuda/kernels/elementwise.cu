// Elementwise operations, and conversions between the types of parameters and of products.
#include "device.h"

struct AddInPlaceParameters {
  float* accumulator;
  const float* x;
  u32 length;
};
KERNEL(add_in_place, AddInPlaceParameters, 256) {
  const u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (i < p.length) p.accumulator[i] += p.x[i];
}

struct ScaleInPlaceParameters {
  float* values;
  u32 length;
  float factor;
};
KERNEL(scale_in_place, ScaleInPlaceParameters, 256) {
  const u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (i < p.length) p.values[i] *= p.factor;
}

struct RoundMatrixParameters {
  activation* to;  // [rows, columns], `to_stride` apart
  const float* from;  // `from_stride` apart
  int rows;
  int columns;
  int to_stride;
  int from_stride;
  float factor;
};
/// From float32, rounded to nearest even: weights for products. Elements after a row's columns are not changed.
KERNEL(round_matrix, RoundMatrixParameters, 256) {
  const u64 index = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= static_cast<u64>(p.rows) * p.columns) return;
  const u64 row = index / p.columns, column = index % p.columns;
  p.to[row * p.to_stride + column] = rounded_to<activation>(p.factor * p.from[row * p.from_stride + column]);
}

struct CopyMatrixParameters {
  activation* to;  // [rows, columns], `to_stride` apart
  const activation* from;  // `from_stride` apart
  int rows;
  int columns;
  int to_stride;
  int from_stride;
};
KERNEL(copy_matrix, CopyMatrixParameters, 256) {
  const u64 index = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= static_cast<u64>(p.rows) * p.columns) return;
  const u64 row = index / p.columns, column = index % p.columns;
  p.to[row * p.to_stride + column] = p.from[row * p.from_stride + column];
}

struct WidenMatrixParameters {
  float* to;  // [rows, columns], `to_stride` apart
  const activation* from;  // `from_stride` apart
  int rows;
  int columns;
  int to_stride;
  int from_stride;
};
KERNEL(widen_matrix, WidenMatrixParameters, 256) {
  const u64 index = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= static_cast<u64>(p.rows) * p.columns) return;
  const u64 row = index / p.columns, column = index % p.columns;
  p.to[row * p.to_stride + column] = to_float(p.from[row * p.from_stride + column]);
}

// For adapters with dropout or with a trained scale.

struct DropoutMaskParameters {
  float* mask;  // [rows, features]: 0, or 1 / (1 - share)
  const u32* place;  // [first sequence, step]
  u32 length;
  u32 sequence_length;  // elements of a sequence
  u32 layer;
  u32 key_low;
  u32 key_high;
  u32 threshold;  // share * 2^32, rounded up
  float kept;
};
/// Philox4x32-10 (Salmon and others 2011), as dropout.ts has it: four elements a thread.
KERNEL(dropout_mask, DropoutMaskParameters, 256) {
  const u32 quads = (p.sequence_length + 3) / 4;
  const u64 index = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  const u32 sequence = static_cast<u32>(index / quads), quad = static_cast<u32>(index % quads);
  u32 a = quad, b = p.place[0] + sequence, c = p.place[1], d = p.layer, left = p.key_low, right = p.key_high;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u32 high_a = __umulhi(0xd2511f53u, a), low_a = 0xd2511f53u * a;
    const u32 high_c = __umulhi(0xcd9e8d57u, c), low_c = 0xcd9e8d57u * c;
    a = high_c ^ b ^ left;
    b = low_c;
    c = high_a ^ d ^ right;
    d = low_a;
    left += 0x9e3779b9u;
    right += 0xbb67ae85u;
  }
  const u32 words[4] = {a, b, c, d};
#pragma unroll
  for (u32 word = 0; word < 4; word++) {
    const u32 element = 4 * quad + word;
    const u64 at = static_cast<u64>(sequence) * p.sequence_length + element;
    if (element < p.sequence_length && at < p.length) p.mask[at] = words[word] < p.threshold ? 0.0f : p.kept;
  }
}

struct MultiplyMaskParameters {
  activation* to;  // [rows, columns], `to_stride` apart
  const activation* from;  // `from_stride` apart
  const float* mask;  // [rows, columns]
  int rows;
  int columns;
  int to_stride;
  int from_stride;
};
KERNEL(multiply_mask, MultiplyMaskParameters, 256) {
  const u64 index = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= static_cast<u64>(p.rows) * p.columns) return;
  const u64 row = index / p.columns, column = index % p.columns;
  p.to[row * p.to_stride + column] = rounded_to<activation>(to_float(p.from[row * p.from_stride + column]) * p.mask[index]);
}

struct AddMaskedParameters {
  float* to;  // [rows, columns], `to_stride` apart, added to
  const float* from;  // [rows, columns], as the mask
  const float* mask;
  int rows;
  int columns;
  int to_stride;
};
KERNEL(add_masked, AddMaskedParameters, 256) {
  const u64 index = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= static_cast<u64>(p.rows) * p.columns) return;
  p.to[index / p.columns * p.to_stride + index % p.columns] += p.from[index] * p.mask[index];
}

struct AdapterScaleParameters {
  float* factor;  // [1] = tanh(g)
  const float* g;  // [1]
};
KERNEL(adapter_scale, AdapterScaleParameters, 32) {
  if (threadIdx.x == 0) *p.factor = tanhf(*p.g);
}

struct ScaleGradientParameters {
  float* dg;  // [1] = (1 - factor^2) * sum(dp * xa)
  const activation* dp;  // [rows, rank], `stride` apart
  const activation* xa;
  const float* factor;
  int rows;
  int rank;
  int stride;
};
/// In one block, in an order that depends only on shapes.
KERNEL(scale_gradient, ScaleGradientParameters, 256) {
  __shared__ double sums[256];
  double sum = 0;
  for (u64 i = threadIdx.x; i < static_cast<u64>(p.rows) * p.rank; i += 256) {
    const u64 at = i / p.rank * p.stride + i % p.rank;
    sum += static_cast<double>(to_float(p.dp[at]) * to_float(p.xa[at]));
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (u32 half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) *p.dg = static_cast<float>(sums[0]) * (1.0f - *p.factor * *p.factor);
}
