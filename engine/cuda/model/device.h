// The device language for g++: included before a kernel's source, in place of what is built into NVRTC and of the instructions that
// kernels/device.h writes as PTX. Each kernel becomes a function of its parameters.
#pragma once
#define RELORA_MODEL 1
#include <cmath>
#include <cstdint>
#include <cstring>

#include "runtime.h"

#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ static const
/// One for each worker that runs blocks; the model fills it with NaN before each block.
#define __shared__ static thread_local

// The model's own accesses are not the kernel's; an inlined checked function could not be distinguished from it.
#ifdef __SANITIZE_THREAD__
#define NOT_CHECKED __attribute__((noinline, no_sanitize("thread")))
#else
#define NOT_CHECKED
#endif

namespace {

using relora::model::WarpOperation;

const relora::model::Runtime* runtime;
thread_local const relora::model::ThreadView* worker_view;

NOT_CHECKED const relora::model::ThreadView& view() { return *worker_view; }

NOT_CHECKED relora::model::Dimensions thread_of_view() { return worker_view->thread; }
NOT_CHECKED relora::model::Dimensions block_of_view() { return worker_view->block; }
NOT_CHECKED relora::model::Dimensions block_size_of_view() { return worker_view->block_size; }
NOT_CHECKED relora::model::Dimensions grid_of_view() { return worker_view->grid; }
NOT_CHECKED void* dynamic_shared_memory() { return worker_view->dynamic_shared; }

}  // namespace

extern "C" {
NOT_CHECKED __attribute__((visibility("default"))) void relora_model_attach(const relora::model::Runtime* table) {
  runtime = table;
}
NOT_CHECKED __attribute__((visibility("default"))) void relora_model_enter(const relora::model::ThreadView* thread) {
  worker_view = thread;
}
}

#define threadIdx thread_of_view()
#define blockIdx block_of_view()
#define blockDim block_size_of_view()
#define gridDim grid_of_view()

#define KERNEL(name, Parameters, threads) \
  extern "C" __attribute__((visibility("default"))) void name(const Parameters& p)
#define DYNAMIC_SHARED(Type, name) Type& name = *static_cast<Type*>(dynamic_shared_memory())

NOT_CHECKED static inline void __syncthreads() { runtime->synchronize_block(); }

NOT_CHECKED static inline void __syncwarp(uint32_t = 0xffffffffu) {
  runtime->meet(WarpOperation::synchronize, nullptr);
}

NOT_CHECKED static uint32_t shuffle_bits(uint32_t value, uint32_t source_lane) {
  relora::model::Shuffle shuffle{value, source_lane, 0};
  runtime->meet(WarpOperation::shuffle, &shuffle);
  return shuffle.result;
}

template <class T>
NOT_CHECKED T shuffle_value(T value, uint32_t source_lane) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = shuffle_bits(bits, source_lane);
  std::memcpy(&value, &bits, 4);
  return value;
}

template <class T>
NOT_CHECKED T __shfl_sync(uint32_t, T value, uint32_t source_lane) {
  return shuffle_value(value, source_lane % 32);
}
template <class T>
NOT_CHECKED T __shfl_xor_sync(uint32_t, T value, uint32_t mask) {
  return shuffle_value(value, (view().thread.x % 32) ^ mask);
}
template <class T>
NOT_CHECKED T __shfl_down_sync(uint32_t, T value, uint32_t distance) {
  const uint32_t lane = view().thread.x % 32;
  return shuffle_value(value, lane + distance < 32 ? lane + distance : lane);
}
NOT_CHECKED static inline uint32_t __ballot_sync(uint32_t, bool vote) {
  relora::model::Ballot ballot{vote, 0};
  runtime->meet(WarpOperation::ballot, &ballot);
  return ballot.result;
}
NOT_CHECKED static inline bool __any_sync(uint32_t mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
NOT_CHECKED static inline bool __all_sync(uint32_t mask, bool vote) { return __ballot_sync(mask, vote) == 0xffffffffu; }

NOT_CHECKED static inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
NOT_CHECKED static inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

// The instructions that kernels/device.h writes as PTX.

NOT_CHECKED static inline void load_matrix(uint32_t* result, const void* row, uint32_t count, bool transposed) {
  relora::model::LoadMatrix load{row, count, transposed, result};
  runtime->meet(WarpOperation::load_matrix, &load);
}
NOT_CHECKED static inline void load_matrices(uint32_t (&result)[4], const void* row) {
  load_matrix(result, row, 4, false);
}
NOT_CHECKED static inline void load_matrices_transposed(uint32_t (&result)[4], const void* row) {
  load_matrix(result, row, 4, true);
}
NOT_CHECKED static inline void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  relora::model::MultiplyMatrices product{d, a, b, d};
  runtime->meet(WarpOperation::multiply_bf16, &product);
}
NOT_CHECKED static inline void multiply_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  relora::model::MultiplyMatrices product{d, a, b, d};
  runtime->meet(WarpOperation::multiply_e4m3, &product);
}
static inline float power_of_two(float x) {
  const float result = std::exp2(x);
  return result < 0x1p-126f ? 0.0f : result;
}
NOT_CHECKED static inline void copy_async_16(void* to, const void* from, uint32_t source_bytes) {
  runtime->copy_async(to, from, 16, source_bytes);
}
NOT_CHECKED static inline void commit_copies() { runtime->commit_copies(); }
template <uint32_t pending_groups>
NOT_CHECKED void wait_copies() {
  runtime->wait_copies(pending_groups);
}

/// Nearest even; the low half is the first value.
NOT_CHECKED static inline uint32_t round_to_bf16_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // as on a card
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
NOT_CHECKED static inline uint32_t pack_bf16(float low, float high) {
  return round_to_bf16_bits(low) | round_to_bf16_bits(high) << 16;
}

/// One e4m3 value: nearest even, beyond 448 it stays 448, NaN is 0x7f.
NOT_CHECKED static inline uint32_t round_to_e4m3_bits(float value) {
  const uint32_t sign = __float_as_uint(value) >> 24 & 0x80;
  float magnitude = std::fabs(value);
  if (std::isnan(value)) return 0x7f;
  if (magnitude >= 448.0f) return sign | 0x7e;
  int exponent = magnitude < 0x1p-6f ? -6 : std::ilogb(magnitude);
  const float steps = std::nearbyint(std::ldexp(magnitude, 3 - exponent));  // in units of the last place
  const uint32_t units = static_cast<uint32_t>(steps);
  if (exponent == -6) return sign | units;  // subnormal, or 8 units: the first normal number
  return sign | (static_cast<uint32_t>(exponent + 7) * 8 + units - 8);
}
NOT_CHECKED static inline uint32_t pack_e4m3(float low, float high) {
  return round_to_e4m3_bits(low) | round_to_e4m3_bits(high) << 8;
}

// With -fsanitize=thread the compiler calls these before each access. They are the model's own, and no other runtime is linked: a single
// shadow detects races, out-of-bounds accesses and reads of uninitialized memory.
extern "C" {
NOT_CHECKED __attribute__((visibility("hidden"))) inline void relora_model_access(const void* p, size_t n, bool w) {
  runtime->access(p, n, w);
}
#define ACCESS(name, bytes, is_write)                                                  \
  NOT_CHECKED __attribute__((visibility("hidden"), used)) void __tsan_##name(void* p) { \
    relora_model_access(p, bytes, is_write);                                           \
  }
ACCESS(read1, 1, false)
ACCESS(read2, 2, false)
ACCESS(read4, 4, false)
ACCESS(read8, 8, false)
ACCESS(read16, 16, false)
ACCESS(write1, 1, true)
ACCESS(write2, 2, true)
ACCESS(write4, 4, true)
ACCESS(write8, 8, true)
ACCESS(write16, 16, true)
ACCESS(unaligned_read2, 2, false)
ACCESS(unaligned_read4, 4, false)
ACCESS(unaligned_read8, 8, false)
ACCESS(unaligned_read16, 16, false)
ACCESS(unaligned_write2, 2, true)
ACCESS(unaligned_write4, 4, true)
ACCESS(unaligned_write8, 8, true)
ACCESS(unaligned_write16, 16, true)
#undef ACCESS
NOT_CHECKED __attribute__((visibility("hidden"), used)) void __tsan_read_range(void* p, size_t n) {
  relora_model_access(p, n, false);
}
NOT_CHECKED __attribute__((visibility("hidden"), used)) void __tsan_write_range(void* p, size_t n) {
  relora_model_access(p, n, true);
}
NOT_CHECKED __attribute__((visibility("hidden"), used)) void __tsan_init() {}
// -fsanitize=bounds: an index beyond a declared array.
struct IndexLocation {
  const char* file;
  uint32_t line, column;
};
NOT_CHECKED __attribute__((visibility("hidden"), used)) void __ubsan_handle_out_of_bounds(void* location, void*) {
  const auto* where = static_cast<const IndexLocation*>(location);
  runtime->out_of_bounds_index(where->file, where->line);
}
}
