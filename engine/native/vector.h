// One vector type for the instruction set this file is compiled for: build.mjs compiles kernels/ and
// gemm/kernel.cpp once per set, each time with its own RELORA_ISA namespace and compiler flags. Everything is
// static, so that no function compiled for a newer CPU can be linked into code for an older one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(RELORA_NEON)
#include <arm_neon.h>
#endif

namespace relora::RELORA_ISA {

#if defined(__AVX512F__)
constexpr size_t lanes = 16;
#elif defined(__AVX2__)
constexpr size_t lanes = 8;
#else
constexpr size_t lanes = 4;
#endif

typedef float Vec __attribute__((vector_size(lanes * 4)));
typedef uint32_t Words __attribute__((vector_size(lanes * 4)));
typedef int32_t Integers __attribute__((vector_size(lanes * 4)));

static inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline Words load(const uint32_t* p) {
  Words v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
static inline void store(uint32_t* p, Words v) { std::memcpy(p, &v, sizeof v); }

static inline Vec broadcast(float x) { return x - Vec{}; }  // x - 0 keeps the sign of -0
static inline Words bits_of(Vec v) { return reinterpret_cast<Words>(v); }
static inline Vec floats_of(Words v) { return reinterpret_cast<Vec>(v); }

#if !defined(__AVX512F__) && defined(__AVX2__)
static inline __m256i first_lanes(size_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

/// AddressSanitizer does not check masked instructions: under it a plain load reads their last lane first.
static inline void reach([[maybe_unused]] const float* p, [[maybe_unused]] size_t count) {
#ifdef __SANITIZE_ADDRESS__
  if (count > 0) static_cast<void>(*static_cast<const volatile float*>(p + count - 1));
#endif
}

/// The first `count` <= lanes floats, zeros after them. Never accesses memory beyond them.
static inline Vec load(const float* p, size_t count) {
  if (count >= lanes) return load(p);
  reach(p, count);
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#elif defined(__AVX2__)
  return _mm256_maskload_ps(p, first_lanes(count));
#else
  float v[lanes] = {};
  for (size_t i = 0; i < count; i++) v[i] = p[i];
  return load(v);
#endif
}

static inline void store(float* p, Vec v, size_t count) {
  if (count >= lanes) return store(p, v);
  reach(p, count);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(p, first_lanes(count), v);
#else
  for (size_t i = 0; i < lanes; i++) {
    if (i < count) p[i] = v[i];
  }
#endif
}

typedef uint16_t Shorts __attribute__((vector_size(lanes * 2)));

/// Each lane rounded to bfloat16, in its upper half; the lower half keeps rounding debris.
static inline Words round_in_place(Vec v) {
  const Words u = bits_of(v);
  const Words rounded = u + 0x7fff + ((u >> 16) & 1);
  // Rounding could carry a NaN over into infinity: a NaN is made quiet and cut off instead.
  return (v == v) ? rounded : (u | 0x00400000);
}

/// Elements kept as bfloat16, widened.
static inline Vec load(const uint16_t* p, size_t count) {
  Shorts shorts = {};
  if (count >= lanes) {
    std::memcpy(&shorts, p, sizeof shorts);
  } else {
    std::memcpy(&shorts, p, count * sizeof *p);
  }
  return floats_of(__builtin_convertvector(shorts, Words) << 16);
}
/// Rounded to bfloat16.
static inline void store(uint16_t* p, Vec v, size_t count) {
  const Shorts shorts = __builtin_convertvector(round_in_place(v) >> 16, Shorts);
  if (count >= lanes) {
    std::memcpy(p, &shorts, sizeof shorts);
  } else {
    std::memcpy(p, &shorts, count * sizeof *p);
  }
}

/// a * b + c; rounded once where the set has an instruction for it.
static inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(RELORA_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

/// Makes the compiler compute v here: otherwise GCC delays a sum until it is used, and then needs too many registers.
template <class Vector>
static inline void settle(Vector& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

#if defined(RELORA_NEON)
/// Positions of the bytes of these table words: the index that TBL expects.
static inline uint8x16_t bytes_of_words(Words index) {
  return reinterpret_cast<uint8x16_t>(index * 0x04040404u + 0x03020100u);
}
#endif

static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

#if defined(__AVX2__)
/// Reduces to four lanes: combines the two halves of a vector, and those of the result if needed. In registers, since an array of lanes
/// would go through memory at every stage.
template <class Combine>
static inline __m128 fold_to_four(Vec v, const Combine& combine) {
#if defined(__AVX512F__)
  // The plain ones warn of their own header.
  const __m256 eight = combine(_mm512_maskz_extractf32x8_ps(0xff, v, 0), _mm512_maskz_extractf32x8_ps(0xff, v, 1));
#else
  const __m256 eight = v;
#endif
  return combine(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}
#endif

/// Reduces all lanes to one value by `combine`, as a tree: the order is fixed.
template <class Combine>
static inline float fold(Vec v, const Combine& combine) {
#if defined(__AVX2__)
  const __m128 four = fold_to_four(v, combine);
#else
  const Vec four = v;
#endif
  return combine(combine(four[0], four[2]), combine(four[1], four[3]));
}

static inline float sum_lanes(Vec v) {
  return fold(v, [](auto a, auto b) { return a + b; });
}

static inline float largest_lane(Vec v) {
  return fold(v, [](auto a, auto b) { return a > b ? a : b; });
}

/// Calls body(i, count) for every vector of [0, n): count is `lanes` but for the last, which may be shorter.
template <class Body>
static inline __attribute__((always_inline)) void for_vectors(size_t n, const Body& body) {
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) body(i, lanes);
  if (i < n) body(i, n - i);
}

/// e^x to about one unit in the last place; 0 and infinity beyond the range, NaN stays NaN.
/// x = n ln 2 + r with |r| <= ln 2 / 2, so e^x = 2^n e^r, and e^r is a polynomial.
static inline Vec exponential(Vec x) {
  constexpr float log2e = 0x1.715476p+0f;
  // n * ln2_high is exact: 15 bits times 8
  constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  // adding it leaves the rounded integer in the low bits
  constexpr float round_shift = 0x1.8p23f;
  // Outside this range the result is 0 or infinity; inside it the integer below stays small.
  x = x > 89.0f ? broadcast(89.0f) : x;
  x = x < -104.0f ? broadcast(-104.0f) : x;
  const Vec shifted = multiply_add(x, broadcast(log2e), broadcast(round_shift));
  const Vec n = shifted - round_shift;
  Vec r = multiply_add(n, broadcast(-ln2_high), x);
  r = multiply_add(n, broadcast(-ln2_low), r);
  // Taylor's series to r^7: its first missing term is below 5e-9 on this interval, a tenth of a rounding.
  Vec p = broadcast(1.0f / 5040.0f);
  p = multiply_add(p, r, broadcast(1.0f / 720.0f));
  p = multiply_add(p, r, broadcast(1.0f / 120.0f));
  p = multiply_add(p, r, broadcast(1.0f / 24.0f));
  p = multiply_add(p, r, broadcast(1.0f / 6.0f));
  p = multiply_add(p, r, broadcast(0.5f));
  p = multiply_add(p * r, r, r) + 1.0f;
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(0xffff, p, n);  // the plain one warns of its own header
#else
  // 2^n in two factors: each is a normal number even where the product is subnormal or infinite.
  const Integers exponent = reinterpret_cast<Integers>(shifted) -
      reinterpret_cast<Integers>(broadcast(round_shift));
  const Integers half = exponent >> 1;
  const Vec first = reinterpret_cast<Vec>((half + 127) << 23);
  const Vec second = reinterpret_cast<Vec>((exponent - half + 127) << 23);
  return p * first * second;
#endif
}

}  // namespace relora::RELORA_ISA
