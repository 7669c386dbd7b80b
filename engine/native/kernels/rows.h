// Operations on single rows, between the products of a fused pass and in separate kernels.
#pragma once
#include <cmath>

#include "../vector.h"

namespace relora::RELORA_ISA {

/// Sum over i of term(i, count), in four interleaved sums.
template <class Term>
static inline float sum_row(size_t n, const Term& term) {
  Vec sums[4] = {};
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    for (size_t j = 0; j < 4; j++) sums[j] = term(sums[j], i + j * lanes, lanes);
  }
  for (; i < n; i += lanes) sums[0] = term(sums[0], i, n - i < lanes ? n - i : lanes);
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/// Largest of n >= 1 values. The last vector may overlap the one before, which does not change the result.
static inline float largest_of(const float* x, size_t n) {
  if (n < lanes) {
    float largest = x[0];
    for (size_t i = 1; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
  }
  Vec most = load(x + n - lanes);
  for (size_t i = 0; i + lanes < n; i += lanes) most = larger(load(x + i), most);
  return largest_lane(most);
}

/// 1 / sqrt(mean(x^2) + epsilon)
static inline float inverse_root_mean_square(const float* x, size_t dim, float epsilon) {
  const float squares = sum_row(dim, [&](Vec sum, size_t i, size_t count) {
    const Vec v = load(x + i, count);
    return multiply_add(v, v, sum);
  });
  return 1.0f / std::sqrt(squares / static_cast<float>(dim) + epsilon);
}

template <class Element>
static inline void normalize_row(Element* y, const float* x, const float* gain, float rstd, size_t dim) {
  for_vectors(dim, [&](size_t i, size_t count) {
    store(y + i, load(x + i, count) * rstd * load(gain + i, count), count);
  });
}

/// Rotates one head by the angles of one position; sign -1 rotates back.
static inline void rotate_head(float* to, const float* from, const float* cosines, const float* sines,
                               size_t half, float sign) {
  for_vectors(half, [&](size_t i, size_t count) {
    const Vec c = load(cosines + i, count), s = load(sines + i, count) * sign;
    const Vec u = load(from + i, count), v = load(from + half + i, count);
    store(to + i, u * c - v * s, count);
    store(to + half + i, v * c + u * s, count);
  });
}

static inline Vec sigmoid(Vec g) { return 1.0f / (1.0f + exponential(-g)); }

static inline Vec gate_with_silu(Vec g, Vec u) { return g / (1.0f + exponential(-g)) * u; }

/// Derivatives of silu(g) * u with respect to g and u, times the upstream gradient d. silu'(g) = s (1 + g (1 - s)), s = sigmoid(g).
static inline void differentiate_swiglu(Vec d, Vec g, Vec u, Vec s, Vec& dgate, Vec& dup) {
  dgate = d * u * (s * (1.0f + g * (1.0f - s)));
  dup = d * (g * s);
}

/// Copies rows to their destination, rounding if that is bfloat16.
template <class Element>
static inline void keep_rows(Element* to, size_t to_stride, const float* from, size_t from_stride,
                             size_t rows, size_t columns) {
  for (size_t row = 0; row < rows; row++) {
    for_vectors(columns, [&](size_t i, size_t count) {
      store(to + row * to_stride + i, load(from + row * from_stride + i, count), count);
    });
  }
}

}  // namespace relora::RELORA_ISA
