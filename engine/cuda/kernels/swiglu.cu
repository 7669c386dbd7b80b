// SwiGLU (Shazeer 2020): h = silu(gate) * up, silu(g) = g / (1 + e^-g). Gate and up are made by one product and lie beside each other.
#include "device.h"

struct SwigluForwardParameters {
  activation* h;  // [rows, width], `h_stride` apart
  const activation* gate_up;  // [rows, gate | up], up begins `up_offset` behind gate
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

struct SwigluBackwardParameters {
  activation* d_gate_up;  // as gate_up
  activation* h;  // made again for the gradient of what reads it, as in the forward pass; null for not
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
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const float below = 1.0f + expf(-gate[j]), sigmoid = 1.0f / below, silu = gate[j] / below;
    h[j] = silu * up[j];
    const float d_up = dh[j] * silu;
    gate[j] = dh[j] * up[j] * (sigmoid + silu * (1.0f - sigmoid));
    up[j] = d_up;
  }
  store_eight(p.d_gate_up + row * p.stride + i, gate, count);
  store_eight(p.d_gate_up + row * p.stride + p.up_offset + i, up, count);
  if (p.h != nullptr) store_eight(p.h + row * p.h_stride + i, h, count);
}
