// Weights in four bits: NormalFloat (Dettmers et al. 2023, QLoRA), whose 16 values are quantiles of the normal distribution, which weights
// approximately have, scaled to the largest of each block. In a block of 64 the low halves of its bytes are elements 0 .. 31, the high
// halves 32 .. 63.
#include <algorithm>
#include <cmath>

#include "../layers/nf4_weights.h"
#include "../vector.h"
#include "kernels.h"

namespace relora::RELORA_ISA {

namespace {

constexpr size_t half = nf4_block / 2;
/// Blocks of one task.
constexpr size_t task_blocks = 512;

alignas(64) constexpr float values[16] = {
    -1.0f,         -0.6961928f,  -0.52507305f, -0.39491749f, -0.28444138f, -0.18477343f,
    -0.091050036f, 0.0f,         0.0795803f,   0.1609302f,   0.2461123f,   0.33791524f,
    0.44070983f,   0.562617f,    0.72295684f,  1.0f,
};

/// The value of each lane's code.
inline Vec look_up(Words codes) {
#if defined(__AVX512F__)
  // Masked, because GCC 12 warns about undefined elements in the plain form.
  return _mm512_maskz_permutexvar_ps(0xffff, reinterpret_cast<__m512i>(codes), load(values));
#elif defined(__AVX2__)
  const __m256i index = reinterpret_cast<__m256i>(codes);
  const Vec low = _mm256_permutevar8x32_ps(load(values), index);
  const Vec high = _mm256_permutevar8x32_ps(load(values + 8), index);
  return codes > 7 ? high : low;
#elif defined(RELORA_NEON)
  const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(values);
  const uint8x16x4_t entries = {vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32),
                                vld1q_u8(bytes + 48)};
  return reinterpret_cast<Vec>(vqtbl4q_u8(entries, bytes_of_words(codes)));
#else
  Vec found;
  for (size_t i = 0; i < lanes; i++) found[i] = values[codes[i]];
  return found;
#endif
}

inline Words load_bytes(const uint8_t* bytes) {
  typedef uint8_t Bytes __attribute__((vector_size(lanes)));
  Bytes b;
  std::memcpy(&b, bytes, sizeof b);
  return __builtin_convertvector(b, Words);
}

/// The code of the value nearest to x: the number of midpoints between neighboring values below x.
inline uint8_t nearest(float x) {
  uint8_t code = 0;
  for (size_t i = 0; i + 1 < 16; i++) code += x > 0.5f * (values[i] + values[i + 1]);
  return code;
}

void quantize_block(uint8_t* codes, float& scale, const float* w, size_t count) {
  float largest = 0;
  for (size_t i = 0; i < count; i++) largest = std::isfinite(w[i]) ? std::max(largest, std::fabs(w[i])) : NAN;
  scale = largest;
  const float inverse = largest > 0 ? 1.0f / largest : 0.0f;
  const auto code = [&](size_t i) { return nearest(i < count ? w[i] * inverse : 0.0f); };
  for (size_t i = 0; i < half; i++) codes[i] = static_cast<uint8_t>(code(i) | code(i + half) << 4);
}

/// body(block, first element, elements)
template <class Body>
void for_blocks(Context& context, size_t count, const Body& body) {
  const size_t blocks = nf4_blocks(count);
  context.pool.run((blocks + task_blocks - 1) / task_blocks, [&](size_t task, unsigned) {
    for (size_t i = task * task_blocks; i < std::min(blocks, (task + 1) * task_blocks); i++) {
      body(i, i * nf4_block, std::min(nf4_block, count - i * nf4_block));
    }
  });
}

}  // namespace

/// codes and scales of w[count]. A block with a weight that is not finite becomes NaN as a whole.
void quantize_nf4(Context& context, uint8_t* codes, float* scales, const float* w, size_t count) {
  for_blocks(context, count, [&](size_t block, size_t first, size_t elements) {
    quantize_block(codes + block * half, scales[block], w + first, elements);
  });
}

/// w[count] in bfloat16.
void dequantize_nf4(Context& context, uint16_t* w, const uint8_t* codes, const float* scales, size_t count) {
  for_blocks(context, count, [&](size_t block, size_t first, size_t elements) {
    uint16_t whole[nf4_block];
    uint16_t* const to = elements == nf4_block ? w + first : whole;
    for (size_t i = 0; i < half; i += lanes) {
      const Words bytes = load_bytes(codes + block * half + i);
      store(to + i, look_up(bytes & 15) * scales[block], lanes);
      store(to + half + i, look_up(bytes >> 4) * scales[block], lanes);
    }
    if (to == whole) std::copy_n(whole, elements, w + first);
  });
}

}  // namespace relora::RELORA_ISA
