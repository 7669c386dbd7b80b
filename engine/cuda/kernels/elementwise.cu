// What goes element by element, and conversions between what parameters are kept in and what products read.
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

struct AddActivationsParameters {
  activation* y;  // [rows, columns], all three `stride` apart
  const activation* a;
  const activation* b;
  int rows;
  int columns;
  int stride;
};
KERNEL(add_activations, AddActivationsParameters, 256) {
  const u32 chunks = (p.columns + 7) / 8;
  const u64 index = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= static_cast<u64>(p.rows) * chunks) return;
  const int i = static_cast<int>(index % chunks) * 8, count = p.columns - i;
  const u64 at = index / chunks * p.stride + i;
  float a[8], b[8];
  load_eight(a, p.a + at, count);
  load_eight(b, p.b + at, count);
#pragma unroll
  for (int j = 0; j < 8; j++) a[j] += b[j];
  store_eight(p.y + at, a, count);
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
/// From float32, rounded to nearest even: weights for products. Elements behind a row's columns stay as they are.
KERNEL(round_matrix, RoundMatrixParameters, 256) {
  const u64 index = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= static_cast<u64>(p.rows) * p.columns) return;
  const u64 row = index / p.columns, column = index % p.columns;
  p.to[row * p.to_stride + column] = rounded_to<activation>(p.factor * p.from[row * p.from_stride + column]);
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
