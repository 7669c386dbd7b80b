// SwiGLU (Shazeer 2020): h = silu(gate) * up, silu(g) = g / (1 + e^-g). Gate and up are adjacent columns, computed by one product.
#include "codes.h"

struct SwigluForwardParameters {
  activation* h;  // [rows, width], `h_stride` apart
  const activation* gate_up;  // [rows, gate | up], up begins `up_offset` after gate
  int rows;
  int width;
  int h_stride;
  int stride;
  int up_offset;
};
/// One thread for eight elements.
KERNEL(swiglu_forward, SwigluForwardParameters, 256) {
  const u32 chunks = (p.width + 7) / 8;
  const u64 index = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= static_cast<u64>(p.rows) * chunks) return;
  const u64 row = index / chunks;
  const int i = static_cast<int>(index % chunks) * 8, count = p.width - i;
  float gate[8], up[8];
  load_eight(gate, p.gate_up + row * p.stride + i, count);
  load_eight(up, p.gate_up + row * p.stride + p.up_offset + i, count);
#pragma unroll
  for (int j = 0; j < 8; j++) gate[j] = gate[j] / (1.0f + expf(-gate[j])) * up[j];
  store_eight(p.h + row * p.h_stride + i, gate, count);
}

/// Replaces gate and up by their gradients, and h by its value in the forward pass.
__device__ __forceinline__ void differentiate_eight(float (&gate)[8], float (&up)[8], float (&h)[8], const float (&dh)[8]) {
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const float below = 1.0f + expf(-gate[j]), sigmoid = 1.0f / below, silu = gate[j] / below;
    h[j] = silu * up[j];
    const float d_up = dh[j] * silu;
    gate[j] = dh[j] * up[j] * (sigmoid + silu * (1.0f - sigmoid));
    up[j] = d_up;
  }
}

struct SwigluBackwardParameters {
  activation* d_gate_up;  // as gate_up
  activation* h;  // recomputed for the gradient of the layer that reads it; null: not wanted
  const activation* dh;
  const activation* gate_up;
  int rows;
  int width;
  int h_stride;
  int stride;
  int up_offset;
};
KERNEL(swiglu_backward, SwigluBackwardParameters, 256) {
  const u32 chunks = (p.width + 7) / 8;
  const u64 index = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= static_cast<u64>(p.rows) * chunks) return;
  const u64 row = index / chunks;
  const int i = static_cast<int>(index % chunks) * 8, count = p.width - i;
  float gate[8], up[8], dh[8], h[8];
  load_eight(gate, p.gate_up + row * p.stride + i, count);
  load_eight(up, p.gate_up + row * p.stride + p.up_offset + i, count);
  load_eight(dh, p.dh + row * p.h_stride + i, count);
  differentiate_eight(gate, up, h, dh);
  store_eight(p.d_gate_up + row * p.stride + i, gate, count);
  store_eight(p.d_gate_up + row * p.stride + p.up_offset + i, up, count);
  if (p.h != nullptr) store_eight(p.h + row * p.h_stride + i, h, count);
}

// For a base in e4m3 a warp processes a whole row, since codes need its largest value.

struct SwigluForwardCodesParameters {
  activation* h;  // [rows, width], `h_stride` apart
  u8* codes;  // [rows, codes_columns]: h in e4m3
  float* scales;  // [rows] of the codes
  const activation* gate_up;
  int rows;
  int width;
  int h_stride;
  int stride;
  int up_offset;
  int codes_columns;
};
KERNEL(swiglu_forward_codes, SwigluForwardCodesParameters, 256) {
  const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= p.rows) return;  // the whole warp, and no barrier follows
  const activation* const gate_up = p.gate_up + static_cast<u64>(row) * p.stride;
  activation* const own = p.h + static_cast<u64>(row) * p.h_stride;
  float largest = 0;
  for (int i = 8 * lane; i < p.width; i += 256) {
    const int count = p.width - i;
    float gate[8], up[8];
    load_eight(gate, gate_up + i, count);
    load_eight(up, gate_up + p.up_offset + i, count);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      gate[j] = gate[j] / (1.0f + expf(-gate[j])) * up[j];
      largest = fmaxf(largest, fabsf(gate[j]));
    }
    store_eight(own + i, gate, count);
  }
  code_written_row(p.codes, p.scales, row, own, p.width, p.codes_columns, largest, lane);
}

struct SwigluBackwardCodesParameters {
  activation* d_gate_up;  // as gate_up; `width` of it is a multiple of eight, and up follows gate at once
  activation* h;
  u8* codes;  // [rows, codes_columns]: d_gate_up in e4m3
  float* scales;  // [rows] of the codes
  const activation* dh;
  const activation* gate_up;
  int rows;
  int width;
  int h_stride;
  int stride;
  int codes_columns;
};
KERNEL(swiglu_backward_codes, SwigluBackwardCodesParameters, 256) {
  const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= p.rows) return;
  const u64 at = static_cast<u64>(row) * p.stride, at_h = static_cast<u64>(row) * p.h_stride;
  const activation *const gates = p.gate_up + at, *const ups = gates + p.width;
  activation *const d_gates = p.d_gate_up + at, *const d_ups = d_gates + p.width;
  float largest = 0;
  for (int i = 8 * lane; i < p.width; i += 256) {
    float gate[8], up[8], dh[8], h[8];
    load_eight(gate, gates + i, 8);
    load_eight(up, ups + i, 8);
    load_eight(dh, p.dh + at_h + i, 8);
    differentiate_eight(gate, up, h, dh);
#pragma unroll
    for (int j = 0; j < 8; j++) largest = fmaxf(largest, fmaxf(fabsf(gate[j]), fabsf(up[j])));
    store_eight(d_gates + i, gate, 8);
    store_eight(d_ups + i, up, 8);
    store_eight(p.h + at_h + i, h, 8);
  }
#if defined(RELORA_MODEL) || __CUDA_ARCH__ >= 890
  const float inverse = scale_row(p.scales + row, largest_written<activation>(largest), lane);
  u8* const codes = p.codes + static_cast<u64>(row) * p.codes_columns;
  code_written(codes, d_gates, p.width, p.width, inverse, lane);
  code_written(codes + p.width, d_ups, p.width, p.codes_columns - p.width, inverse, lane);
#endif
}
