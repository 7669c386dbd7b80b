// c[m, n] = scale * op(a) op(b), in bfloat16 with float32 sums, by mma.sync: tiles of 128 x 128, of which the third next one is being
// copied while the current one is multiplied. Every sum has a fixed order, which depends only on shapes. Leading dimensions are multiples
// of eight elements and matrices begin at multiples of 16 bytes; sizes are arbitrary.
#include "tiles.h"

struct ProductParameters {
  bf16* c_bf16;  // [m, n], `c_stride` apart; one of the two is null
  float* c_float;
  const bf16* a;  // [m, k], or [k, m] where it is transposed
  const bf16* b;  // [k, n], or [n, k]
  const float* addend;  // [m, n], `addend_stride` apart, added before the one rounding; null for none
  const float* bias;  // [n], likewise
  const float* factor;  // [1], multiplies `scale`; null for 1
  int m;
  int n;
  int k;
  int a_stride;
  int b_stride;
  int c_stride;
  int addend_stride;
  int slice_k;  // block z sums over its slice of k into its own c; sum_slices adds the slices
  u32 slice_elements;  // between the c of two slices
  float scale;
  int adds;  // to what c_float holds
};

constexpr int tile_m = 128, tile_n = 128, tile_k = 32, stages = 3;

template <bool transposed_a, bool transposed_b>
struct ProductShared {
  struct Stage {
    bf16 a[transposed_a ? tile_k : tile_m][(transposed_a ? tile_m : tile_k) + tile_padding];
    bf16 b[transposed_b ? tile_n : tile_k][(transposed_b ? tile_k : tile_n) + tile_padding];
  } stage[stages];
};

/// `squares`: stacked matrices, one for each z, times their own transpose; tiles above the diagonal are mirrored.
template <bool transposed_a, bool transposed_b, bool squares = false>
__device__ __forceinline__ void multiply(const ProductParameters& p, ProductShared<transposed_a, transposed_b>& shared) {
  if (squares && blockIdx.x > blockIdx.y) return;
  const int first_m = blockIdx.y * tile_m, first_n = blockIdx.x * tile_n;
  const int begin_k = squares ? 0 : blockIdx.z * p.slice_k, end_k = squares ? p.k : min(begin_k + p.slice_k, p.k);
  const u64 matrix = squares ? static_cast<u64>(blockIdx.z) * p.m : 0;
  const bf16 *const left = p.a + matrix * p.a_stride, *const right = p.b + matrix * p.b_stride;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp / 4 * 64, warp_n = warp % 4 * 32;
  const int steps = (end_k - begin_k + tile_k - 1) / tile_k;

  const auto bring = [&](int step) {
    if (step < steps) {
      auto& stage = shared.stage[step % stages];
      const int k = begin_k + step * tile_k;
      if constexpr (transposed_a) {
        copy_tile<tile_k, tile_m, 256>(stage.a, left + static_cast<u64>(k) * p.a_stride + first_m, p.a_stride, end_k - k,
                                       p.m - first_m);
      } else {
        copy_tile<tile_m, tile_k, 256>(stage.a, left + static_cast<u64>(first_m) * p.a_stride + k, p.a_stride, p.m - first_m,
                                       end_k - k);
      }
      if constexpr (transposed_b) {
        copy_tile<tile_n, tile_k, 256>(stage.b, right + static_cast<u64>(first_n) * p.b_stride + k, p.b_stride, p.n - first_n,
                                       end_k - k);
      } else {
        copy_tile<tile_k, tile_n, 256>(stage.b, right + static_cast<u64>(k) * p.b_stride + first_n, p.b_stride, end_k - k,
                                       p.n - first_n);
      }
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
    for (int k = 0; k < tile_k; k += 16) {
      u32 a[4][4], b[2][2][2];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if constexpr (transposed_a) load_left_transposed(a[i], stage.a, warp_m + 16 * i, k);
        else load_left(a[i], stage.a, warp_m + 16 * i, k);
      }
#pragma unroll
      for (int j = 0; j < 2; j++) {
        if constexpr (transposed_b) load_right_transposed(b[j], stage.b, k, warp_n + 16 * j);
        else load_right(b[j], stage.b, k, warp_n + 16 * j);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) multiply_bf16(sums[i][j], a[i], b[j / 2][j % 2]);
      }
    }
  }
  wait_copies<0>();  // no copies are left: none may outlive its block

  const u64 slice = static_cast<u64>(blockIdx.z) * p.slice_elements;
  const float scale = p.factor == nullptr ? p.scale : p.scale * *p.factor;
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
      for (int part = 0; part < 4; part++) {
        const int row = first_m + warp_m + 16 * i + lane / 4 + part / 2 * 8;
        const int column = first_n + warp_n + 8 * j + 2 * (lane % 4) + part % 2;
        if (row >= p.m || column >= p.n) continue;
        const u64 at = static_cast<u64>(row) * p.c_stride + column;
        float value = scale * sums[i][j][part];
        if (p.addend != nullptr) value += p.addend[static_cast<u64>(row) * p.addend_stride + column];
        if (p.bias != nullptr) value += p.bias[column];
        if (squares && blockIdx.x < blockIdx.y) p.c_float[slice + static_cast<u64>(column) * p.c_stride + row] = value;
        if (p.c_float == nullptr) p.c_bf16[at] = rounded_to<bf16>(value);
        else p.c_float[slice + at] = p.adds != 0 ? p.c_float[slice + at] + value : value;
      }
    }
  }
}

/// y = x w.
KERNEL(product, ProductParameters, 256) {
  typedef ProductShared<false, false> Shared;
  DYNAMIC_SHARED(Shared, shared);
  multiply<false, false>(p, shared);
}
/// dx = dy w^T.
KERNEL(product_right_transposed, ProductParameters, 256) {
  typedef ProductShared<false, true> Shared;
  DYNAMIC_SHARED(Shared, shared);
  multiply<false, true>(p, shared);
}
/// dw = x^T dy.
KERNEL(product_left_transposed, ProductParameters, 256) {
  typedef ProductShared<true, false> Shared;
  DYNAMIC_SHARED(Shared, shared);
  multiply<true, false>(p, shared);
}
/// x x^T of several matrices, of which half is computed: only c_float, `slice_elements` between two matrices.
KERNEL(product_squares, ProductParameters, 256) {
  typedef ProductShared<false, true> Shared;
  DYNAMIC_SHARED(Shared, shared);
  multiply<false, true, true>(p, shared);
}
