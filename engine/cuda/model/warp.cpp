#include "warp.h"

#include <array>
#include <cmath>
#include <cstring>

namespace relora::model {

namespace {

template <class T>
T& of(void* const* arguments, unsigned lane) {
  return *static_cast<T*>(arguments[lane]);
}

float from_bf16(uint32_t bits) {
  const uint32_t word = bits << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

const std::array<float, 256> e4m3_values = [] {
  std::array<float, 256> values{};
  for (unsigned code = 0; code < 256; code++) {
    const unsigned exponent = code >> 3 & 15, mantissa = code & 7;
    float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                : std::ldexp(static_cast<float>(8 + mantissa), static_cast<int>(exponent) - 10);
    if ((code & 0x7f) == 0x7f) value = NAN;
    values[code] = code & 0x80 ? -value : value;
  }
  return values;
}();

/// d[16, 8] = a[16, depth] b[depth, 8] + c. Lane l holds rows l / 4 and l / 4 + 8 of a, c and d and column l / 4 of b;
/// a register holds `packed` neighbors along the depth, of which lane l has those that begin at packed * (l % 4),
/// and a second one half the depth on.
template <unsigned depth, class Decode>
void multiply(void* const* arguments, const Decode& decode) {
  constexpr unsigned packed = depth / 8, bits = 32 / packed;
  float a[16][depth], b[8][depth];
  for (unsigned lane = 0; lane < warp_lanes; lane++) {
    const auto& from = of<MultiplyMatrices>(arguments, lane);
    const unsigned group = lane / 4, first = packed * (lane % 4);
    for (unsigned i = 0; i < packed; i++) {
      const auto element = [&](uint32_t word) { return decode(word >> (bits * i) & ((1u << bits) - 1)); };
      a[group][first + i] = element(from.a[0]);
      a[group + 8][first + i] = element(from.a[1]);
      a[group][depth / 2 + first + i] = element(from.a[2]);
      a[group + 8][depth / 2 + first + i] = element(from.a[3]);
      b[group][first + i] = element(from.b[0]);
      b[group][depth / 2 + first + i] = element(from.b[1]);
    }
  }
  for (unsigned lane = 0; lane < warp_lanes; lane++) {
    const auto& to = of<MultiplyMatrices>(arguments, lane);
    for (unsigned i = 0; i < 4; i++) {
      const float* const row = a[lane / 4 + i / 2 * 8];
      const float* const column = b[2 * (lane % 4) + i % 2];
      // Products are exact and are summed before c is added; a real card's order is not known.
      float sum = 0;
      for (unsigned k = 0; k < depth; k++) sum += row[k] * column[k];
      to.d[i] = to.c[i] + sum;
    }
  }
}

}  // namespace

void shuffle(void* const* arguments) {
  for (unsigned lane = 0; lane < warp_lanes; lane++) {
    auto& mine = of<Shuffle>(arguments, lane);
    mine.result = of<Shuffle>(arguments, mine.source_lane % warp_lanes).value;
  }
}

void ballot(void* const* arguments) {
  uint32_t votes = 0;
  for (unsigned lane = 0; lane < warp_lanes; lane++) votes |= uint32_t{of<Ballot>(arguments, lane).vote} << lane;
  for (unsigned lane = 0; lane < warp_lanes; lane++) of<Ballot>(arguments, lane).result = votes;
}

void load_matrix(void* const* arguments) {
  for (unsigned lane = 0; lane < warp_lanes; lane++) {
    const auto& mine = of<LoadMatrix>(arguments, lane);
    for (unsigned matrix = 0; matrix < mine.count; matrix++) {
      const auto element = [&](unsigned row, unsigned column) {
        uint16_t value;
        std::memcpy(&value, static_cast<const uint16_t*>(of<LoadMatrix>(arguments, matrix * 8 + row).row) + column, 2);
        return static_cast<uint32_t>(value);
      };
      const unsigned group = lane / 4, pair = 2 * (lane % 4);
      mine.result[matrix] = mine.transposed ? element(pair, group) | element(pair + 1, group) << 16
                                            : element(group, pair) | element(group, pair + 1) << 16;
    }
  }
}

void multiply_bf16(void* const* arguments) { multiply<16>(arguments, from_bf16); }
void multiply_e4m3(void* const* arguments) {
  multiply<32>(arguments, [](uint32_t code) { return e4m3_values[code]; });
}

}  // namespace relora::model
