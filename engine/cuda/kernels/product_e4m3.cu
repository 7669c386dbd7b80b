// c[m, n] = scales of rows and columns * a b^T, of e4m3 with float32 sums, by mma.sync: a plain version of cuBLASLt's product, for cards on
// which the library does not support scales by row and column. Both matrices are stored along k, in rows of a multiple of 16 bytes; two
// codes are moved like one bfloat16.
#include "tiles.h"

struct ProductE4m3Parameters {
  bf16* c_bf16;  // [m, n], `c_stride` apart; one of the two is null
  float* c_float;
  const u8* a;  // [m, k]
  const u8* b;  // [n, k]
  const float* row_scales;  // [m]
  const float* column_scales;  // [n]
  const float* addend;  // [m, n] of floats, `addend_stride` apart, added before the one rounding; null for none
  int m;
  int n;
  int k;
  int c_stride;
  int addend_stride;
};

constexpr int tile_m = 128, tile_n = 128, tile_pairs = 32, stages = 3;

struct E4m3Shared {
  struct Stage {
    bf16 a[tile_m][tile_pairs + tile_padding];
    bf16 b[tile_n][tile_pairs + tile_padding];
  } stage[stages];
};

KERNEL(product_e4m3, ProductE4m3Parameters, 256) {
#if defined(RELORA_MODEL) || __CUDA_ARCH__ >= 890
  DYNAMIC_SHARED(E4m3Shared, shared);
  const int first_m = blockIdx.y * tile_m, first_n = blockIdx.x * tile_n, pairs = p.k / 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp / 4 * 64, warp_n = warp % 4 * 32;
  const int steps = (pairs + tile_pairs - 1) / tile_pairs;
  const bf16* const a = reinterpret_cast<const bf16*>(p.a) + static_cast<u64>(first_m) * pairs;
  const bf16* const b = reinterpret_cast<const bf16*>(p.b) + static_cast<u64>(first_n) * pairs;

  const auto bring = [&](int step) {
    if (step < steps) {
      auto& stage = shared.stage[step % stages];
      const int at = step * tile_pairs;
      copy_tile<tile_m, tile_pairs, 256>(stage.a, a + at, pairs, p.m - first_m, pairs - at);
      copy_tile<tile_n, tile_pairs, 256>(stage.b, b + at, pairs, p.n - first_n, pairs - at);
    }
    commit_copies();  // also without copies, so that groups can be counted
  };

  float sums[4][4][4] = {};  // [16 rows][8 columns][of a lane]
  bring(0);
  bring(1);
  for (int step = 0; step < steps; step++) {
    wait_copies<stages - 2>();
    __syncthreads();  // all threads have copied this step's tile, and have finished reading the one before
    bring(step + stages - 1);
    const auto& stage = shared.stage[step % stages];
#pragma unroll
    for (int at = 0; at < tile_pairs; at += 16) {
      u32 left[4][4], right[2][2][2];
#pragma unroll
      for (int i = 0; i < 4; i++) load_left(left[i], stage.a, warp_m + 16 * i, at);
#pragma unroll
      for (int j = 0; j < 2; j++) load_right_transposed(right[j], stage.b, at, warp_n + 16 * j);
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) multiply_e4m3(sums[i][j], left[i], right[j / 2][j % 2]);
      }
    }
  }
  wait_copies<0>();  // no copies are left: none may outlive its block

#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
      for (int part = 0; part < 4; part++) {
        const int row = first_m + warp_m + 16 * i + lane / 4 + part / 2 * 8;
        const int column = first_n + warp_n + 8 * j + 2 * (lane % 4) + part % 2;
        if (row >= p.m || column >= p.n) continue;
        float value = sums[i][j][part] * (p.row_scales[row] * p.column_scales[column]);
        if (p.addend != nullptr) value += p.addend[static_cast<u64>(row) * p.addend_stride + column];
        const u64 at = static_cast<u64>(row) * p.c_stride + column;
        if (p.c_float == nullptr) p.c_bf16[at] = rounded_to<bf16>(value);
        else p.c_float[at] = value;
      }
    }
  }
#endif
}
