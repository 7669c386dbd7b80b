// Moments in eight bits, in blocks of 256 with one scale each: the largest magnitude of the block. Magnitudes
// have the dynamic code of 8-bit Adam (Dettmers et al. 2021): the decades below 1 are cut into 1, 2, 4, ...
// equal cells, smaller ones more coarsely, and a code stands for the middle of its cell. Code 0 is zero,
// exactly. Second moments have 255 cells in eight decades, first ones 127 in seven, and a sign. Differs from
// bitsandbytes: middles are stretched so that the last one is 1, for both signs. The largest entry of a block
// is exact so; rounded by half a cell at every update, a second moment would settle at a third of its value.
#pragma once
#include <array>

#include "../vector.h"

namespace relora::RELORA_ISA {

/// Decade d has the cells 2^d .. 2^(d + 1) - 1. The middle of cell k is slope[d] k + offset[d]; a magnitude y lies in
/// cell floor(rate[d] y + start[d]).
template <size_t decades>
struct CodeTable {
  std::array<float, 8> edge{}, slope{}, offset{}, rate{}, start{};

  constexpr CodeTable() {
    const double last = static_cast<double>(size_t{1} << (decades - 1));
    const double top = 1 - 0.45 / last;
    double power = 1;
    for (size_t d = decades; d-- > 0; power /= 10) {
      const double cells = static_cast<double>(size_t{1} << d);
      edge[d] = static_cast<float>(0.1 * power / top);
      slope[d] = static_cast<float>(0.9 * power / cells / top);
      offset[d] = static_cast<float>((0.45 / cells - 0.8) * power / top);
      rate[d] = static_cast<float>(top * cells / 0.9 / power);
      start[d] = static_cast<float>(cells * 8 / 9);
    }
  }
};

template <size_t decades>
inline constexpr CodeTable<decades> code_table{};

/// One table entry per lane.
static inline Vec look_up(const std::array<float, 8>& table, Words index) {
  Vec result = {};
#if defined(__AVX512F__)
  const Vec entries = load(table.data(), table.size());
  result = _mm512_maskz_permutexvar_ps(0xffff, reinterpret_cast<__m512i>(index), entries);
#elif defined(__AVX2__)
  result = _mm256_permutevar8x32_ps(load(table.data()), reinterpret_cast<__m256i>(index));
#elif defined(RELORA_NEON)
  const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(table.data());
  const uint8x16x2_t entries = {vld1q_u8(bytes), vld1q_u8(bytes + 16)};
  result = reinterpret_cast<Vec>(vqtbl2q_u8(entries, bytes_of_words(index)));
#else
  for (size_t i = 0; i < lanes; i++) result[i] = table[index[i]];
#endif
  return result;
}

/// Magnitudes relative to the scale, for cells given as floats.
template <size_t decades>
static inline Vec decode_cells(Vec cells) {
  constexpr const CodeTable<decades>& table = code_table<decades>;
  const Words decade = ((bits_of(cells) >> 23) - 127) & 7;  // their exponent
  const Vec slope = look_up(table.slope, decade), offset = look_up(table.offset, decade);
  return cells > 0.0f ? slope * cells + offset : Vec{};
}

typedef int32_t Cells __attribute__((vector_size(lanes * 4)));

/// Cells of magnitudes in [0, 1].
template <size_t decades>
static inline Cells encode_cells(Vec magnitudes) {
  constexpr const CodeTable<decades>& table = code_table<decades>;
  Words decade = {};
#pragma GCC unroll 8
  for (size_t d = 1; d < decades; d++) decade -= reinterpret_cast<Words>(magnitudes >= table.edge[d]);
  const Vec rate = look_up(table.rate, decade), start = look_up(table.start, decade);
  const Cells cells = __builtin_convertvector(rate * magnitudes + start, Cells);
  constexpr int32_t last = (1 << decades) - 1;
  return cells > last ? Cells{} + last : cells;
}

}  // namespace relora::RELORA_ISA
