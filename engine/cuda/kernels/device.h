// Included by every kernel: types, conversions, sums over a warp or a block, and the card's instructions as inline PTX. NVIDIA's headers
// are not used. Under the model of a card its own device.h is included before this file and replaces what is PTX here.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef RELORA_MODEL

/// Declares a kernel: its parameters are one struct, whose fields the host parses from this text.
#define KERNEL(name, Parameters, threads) extern "C" __global__ void __launch_bounds__(threads, 1) name(const Parameters p)
/// Shared memory whose size the launch sets: the only way to get more than 48 KiB.
#define DYNAMIC_SHARED(Type, name)                            \
  extern __shared__ __align__(128) unsigned char name##_bytes[]; \
  Type& name = *reinterpret_cast<Type*>(name##_bytes)

__device__ __forceinline__ u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

/// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
/// d[16, 8] += a[16, 16] b[16, 8], sums in float32.
__device__ __forceinline__ void multiply_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/// The nearest bfloat16 of each, ties to even; `low` in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
#if __CUDA_ARCH__ >= 890
/// d[16, 8] += a[16, 32] b[32, 8] of e4m3.
__device__ __forceinline__ void multiply_e4m3(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/// The nearest e4m3 of each, saturating at 448; `low` in the low byte.
__device__ __forceinline__ u32 pack_e4m3(float low, float high) {
  u16 packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}
#endif
/// 2^x to two units in the last place; results below 2^-126 become zero.
__device__ __forceinline__ float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
/// 16 bytes from global to shared memory, both aligned to 16; those from `source_bytes` on become zeros.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, u32 source_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(source_bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most this many of the latest groups are pending.
template <u32 pending_groups>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending_groups) : "memory");
}

#endif  // RELORA_MODEL

#define infinity __uint_as_float(0x7f800000u)

struct bf16 {
  u16 bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) { return __uint_as_float(static_cast<u32>(value.bits) << 16); }
template <class T>
__device__ __forceinline__ T rounded_to(float value);
template <>
__device__ __forceinline__ float rounded_to<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ bf16 rounded_to<bf16>(float value) {
  return {static_cast<u16>(pack_bf16(value, 0.0f))};
}
__device__ __forceinline__ float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

/// 16 bytes that are moved at once.
struct __align__(16) Words4 {
  u32 words[4];
};

/// The same sum in every lane, in a fixed order, so that bits do not depend on how warps are scheduled.
__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}
__device__ __forceinline__ float largest_of_warp(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

/// The same sum in every thread of a block of `threads`. `scratch` may be used again after the next barrier.
template <int threads>
__device__ __forceinline__ float sum_of_block(float value, float (&scratch)[threads / 32]) {
  value = sum_of_warp(value);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < threads / 32; warp++) sum += scratch[warp];
  return sum;
}
template <int threads>
__device__ __forceinline__ float largest_of_block(float value, float (&scratch)[threads / 32]) {
  value = largest_of_warp(value);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float largest = scratch[0];
#pragma unroll
  for (int warp = 1; warp < threads / 32; warp++) largest = fmaxf(largest, scratch[warp]);
  return largest;
}

// Rows of activations are `stride` elements apart, a multiple of eight: eight neighbors are moved at once if the row has them.

/// v = from[0 .. count), zeros behind; count of 8 or more moves them as one.
__device__ __forceinline__ void load_eight(float (&v)[8], const bf16* from, int count) {
  if (count >= 8) {
    const Words4 packed = *reinterpret_cast<const Words4*>(from);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      v[2 * i] = low_bf16(packed.words[i]);
      v[2 * i + 1] = high_bf16(packed.words[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = i < count ? to_float(from[i]) : 0.0f;
  }
}
__device__ __forceinline__ void load_eight(float (&v)[8], const float* from, int count) {
  if (count >= 8) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Words4 packed = reinterpret_cast<const Words4*>(from)[half];
#pragma unroll
      for (int i = 0; i < 4; i++) v[4 * half + i] = __uint_as_float(packed.words[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = i < count ? from[i] : 0.0f;
  }
}
__device__ __forceinline__ void store_eight(bf16* to, const float (&v)[8], int count) {
  if (count >= 8) {
    Words4 packed;
#pragma unroll
    for (int i = 0; i < 4; i++) packed.words[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
    *reinterpret_cast<Words4*>(to) = packed;
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (i < count) to[i] = rounded_to<bf16>(v[i]);
    }
  }
}
__device__ __forceinline__ void store_eight(float* to, const float (&v)[8], int count) {
  if (count >= 8) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      Words4 packed;
#pragma unroll
      for (int i = 0; i < 4; i++) packed.words[i] = __float_as_uint(v[4 * half + i]);
      reinterpret_cast<Words4*>(to)[half] = packed;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (i < count) to[i] = v[i];
    }
  }
}

/// The type of activations between the halves of a block, chosen at compile time.
#ifndef ACTIVATION
#define ACTIVATION bf16
#endif
typedef ACTIVATION activation;
