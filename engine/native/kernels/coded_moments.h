// Converts blocks of moments between float32 and codes (moment_codes.h), with the scale of the block.
#pragma once
#include <cstring>

#include "moment_codes.h"

namespace relora::RELORA_ISA {

typedef int8_t SignedCodes __attribute__((vector_size(lanes)));
typedef uint8_t Codes __attribute__((vector_size(lanes)));
constexpr size_t first_decades = 7, second_decades = 8;

static inline void decode_first(float* to, const int8_t* from, size_t n, float scale) {
  for_vectors(n, [&](size_t i, size_t count) {
    SignedCodes codes = {};
    std::memcpy(&codes, from + i, count);
    const Vec cells = __builtin_convertvector(codes, Vec);
    const Vec magnitudes = decode_cells<first_decades>(larger(cells, -cells)) * scale;
    store(to + i, cells < 0.0f ? -magnitudes : magnitudes, count);
  });
}

static inline void decode_second(float* to, const uint8_t* from, size_t n, float scale) {
  for_vectors(n, [&](size_t i, size_t count) {
    Codes codes = {};
    std::memcpy(&codes, from + i, count);
    store(to + i, decode_cells<second_decades>(__builtin_convertvector(codes, Vec)) * scale, count);
  });
}

static inline float largest_magnitude(const float* x, size_t n) {
  Vec most = {};
  for_vectors(n, [&](size_t i, size_t count) {
    const Vec v = load(x + i, count);
    most = larger(larger(v, -v), most);
  });
  return largest_lane(most);
}

/// Divisor of magnitudes: dividing is needed since the inverse of a tiny scale is infinite.
static inline float divisor_of(float scale) { return scale > 0 ? scale : 1; }

static inline float encode_first(int8_t* to, const float* from, size_t n) {
  const float scale = largest_magnitude(from, n), divisor = divisor_of(scale);
  for_vectors(n, [&](size_t i, size_t count) {
    const Vec v = load(from + i, count) / divisor;
    const Cells cells = encode_cells<first_decades>(larger(v, -v));
    const SignedCodes codes = __builtin_convertvector(v < 0.0f ? -cells : cells, SignedCodes);
    std::memcpy(to + i, &codes, count);
  });
  return scale;
}

/// A value that is not zero never becomes zero: its first moment would then be divided by epsilon only.
static inline float encode_second(uint8_t* to, const float* from, size_t n) {
  const float scale = largest_magnitude(from, n), divisor = divisor_of(scale);
  for_vectors(n, [&](size_t i, size_t count) {
    const Vec v = load(from + i, count);
    const Cells cells = encode_cells<second_decades>(v / divisor);
    const Cells least = v > 0.0f ? Cells{} + 1 : Cells{};
    const Codes codes = __builtin_convertvector(cells > least ? cells : least, Codes);
    std::memcpy(to + i, &codes, count);
  });
  return scale;
}

}  // namespace relora::RELORA_ISA
