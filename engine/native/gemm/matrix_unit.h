// ARM's matrix instructions on vectors of two rows, by the hardware or by a model of it in plain arithmetic, which allows testing the
// kernels without such hardware. A vector holds two rows of two words, one row after the other.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "../vector.h"

namespace relora::RELORA_ISA {

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(__ARM_FEATURE_MATMUL_INT8)

/// sum[i][j] += left[i] . right[j] over two pairs of bfloat16 (BFMMLA).
static inline Words add_pair_products(Words sum, Words left, Words right) {
  return reinterpret_cast<Words>(vbfmmlaq_f32(reinterpret_cast<float32x4_t>(sum),
                                              reinterpret_cast<bfloat16x8_t>(left),
                                              reinterpret_cast<bfloat16x8_t>(right)));
}
/// The same for two groups of four signed bytes (SMMLA).
static inline Words add_quad_products(Words sum, Words left, Words right) {
  return reinterpret_cast<Words>(vmmlaq_s32(reinterpret_cast<int32x4_t>(sum),
                                            reinterpret_cast<int8x16_t>(left),
                                            reinterpret_cast<int8x16_t>(right)));
}
static inline Vec fused_multiply_add(Vec a, Vec b, Vec c) { return multiply_add(a, b, c); }

#else

/// Arm Architecture Reference Manual for A-profile, BFMatMulAdd and BFDotAdd without FEAT_EBF16: products and sums are rounded to
/// odd, and subnormal numbers count as zero, before and after.
class OddRounding {
 public:
  static float multiply(float a, float b) {  // exact: of two bfloat16
    return flushed(flushed(a) * flushed(b));
  }
  static float add(float a, float b) {
    const double x = flushed(a), y = flushed(b), sum = x + y;
    // The rounding error of the sum (Knuth's TwoSum): an inexact sum is made odd, in the direction of its error.
    const double part = sum - x, lost = (x - (sum - part)) + (y - part);
    return flushed(to_float(std::isfinite(sum) && lost != 0 ? odd(sum, lost) : sum));
  }

 private:
  static float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

  static double odd(double sum, double lost) {
    const uint64_t bits = std::bit_cast<uint64_t>(sum);
    if (bits & 1) return sum;
    const bool away = (lost > 0) == (sum > 0);
    return std::bit_cast<double>(away ? bits + 1 : bits - 1);
  }

  /// Truncated, with the last bit set if anything was cut off; infinite beyond the largest float.
  static float to_float(double x) {
    if (std::isnan(x)) return std::bit_cast<float>(0x7fc00000u);
    constexpr double beyond = 0x1p128;
    if (std::fabs(x) >= beyond) return std::copysign(INFINITY, static_cast<float>(std::copysign(1.0, x)));
    constexpr double least = 0x1p-126;
    if (std::fabs(x) < least) return std::copysign(0.0f, static_cast<float>(std::copysign(1.0, x)));
    constexpr uint64_t cut = (uint64_t{1} << 29) - 1;
    const uint64_t bits = std::bit_cast<uint64_t>(x);
    const uint64_t kept = (bits & ~cut) | ((bits & cut) != 0 ? cut + 1 : 0);
    return static_cast<float>(std::bit_cast<double>(kept));
  }
};

static inline Words add_pair_products(Words sum, Words left, Words right) {
  const auto low = [](uint32_t pair) { return std::bit_cast<float>(pair << 16); };
  const auto high = [](uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000); };
  for (size_t i = 0; i < 2; i++) {
    for (size_t j = 0; j < 2; j++) {
      float total = std::bit_cast<float>(static_cast<uint32_t>(sum[2 * i + j]));
      for (size_t k = 0; k < 2; k++) {
        const uint32_t a = left[2 * i + k], b = right[2 * j + k];
        const float products = OddRounding::add(OddRounding::multiply(low(a), low(b)),
                                                OddRounding::multiply(high(a), high(b)));
        total = OddRounding::add(total, products);
      }
      sum[2 * i + j] = std::bit_cast<uint32_t>(total);
    }
  }
  return sum;
}

static inline Words add_quad_products(Words sum, Words left, Words right) {
  for (size_t i = 0; i < 2; i++) {
    for (size_t j = 0; j < 2; j++) {
      for (size_t k = 0; k < 2; k++) {
        const uint32_t a = left[2 * i + k], b = right[2 * j + k];
        for (unsigned shift = 0; shift < 32; shift += 8) {
          sum[2 * i + j] += static_cast<uint32_t>(static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift));
        }
      }
    }
  }
  return sum;
}

/// With the rounding of the sets that have those instructions, which portable code does not have.
static inline Vec fused_multiply_add(Vec a, Vec b, Vec c) {
  for (size_t i = 0; i < lanes; i++) c[i] = std::fma(a[i], b[i], c[i]);
  return c;
}

#endif

}  // namespace relora::RELORA_ISA
