// Eight tiles of sixteen rows by 64 bytes and AMX's operations on them, by the hardware or by a model of it in plain arithmetic, which
// allows testing the kernels without such hardware.
#pragma once
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace relora::RELORA_ISA {

constexpr size_t unit_rows = 16, unit_words = 16;

#if defined(__AMX_TILE__)

/// Configures the calling thread's tiles during its lifetime: other code in the process may use them too.
class TileUnit {
 public:
  TileUnit() {
    Configuration configuration;
    for (size_t tile = 0; tile < 8; tile++) {
      configuration.row_bytes[tile] = unit_words * 4;
      configuration.rows[tile] = unit_rows;
    }
    asm volatile("ldtilecfg %0" : : "m"(configuration));
  }
  TileUnit(const TileUnit&) = delete;
  ~TileUnit() { asm volatile("tilerelease"); }

  // Tiles are named in the instruction itself: hence template arguments, and assembly rather than intrinsics,
  // which take literals only.
  template <int tile>
  void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
  }
  /// Rows `stride` words apart.
  template <int tile>
  void load(const uint32_t* from, size_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(tile), "r"(from), "r"(stride * 4) : "memory");
  }
  template <int tile>
  void store(uint32_t* to, size_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(tile), "r"(to), "r"(stride * 4) : "memory");
  }
  /// sum[m][n] += left[m][k] right[k][n] over pairs of bfloat16.
  template <int sum, int left, int right>
  void add_pairs() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(left), "i"(right));
  }
  /// The same over fours of signed bytes.
  template <int sum, int left, int right>
  void add_quads() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(left), "i"(right));
  }

 private:
  struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };
};

#else

/// Intel's Software Developer's Manual, volume 2, TDPBF16PS and TDPBSSD.
class TileUnit {
 public:
  template <int tile>
  void zero() {
    std::memset(tiles_[tile], 0, sizeof tiles_[tile]);
  }
  template <int tile>
  void load(const uint32_t* from, size_t stride) {
    for (size_t i = 0; i < unit_rows; i++) std::memcpy(tiles_[tile][i], from + i * stride, sizeof(Row));
  }
  template <int tile>
  void store(uint32_t* to, size_t stride) {
    for (size_t i = 0; i < unit_rows; i++) std::memcpy(to + i * stride, tiles_[tile][i], sizeof(Row));
  }

  /// Even and odd k's are summed separately, each by multiplications and additions rounded once, and added to each other before they are
  /// added to the tile. Subnormal numbers count as zero, before and after.
  template <int sum, int left, int right>
  void add_pairs() {
    for (size_t m = 0; m < unit_rows; m++) {
      for (size_t n = 0; n < unit_words; n++) {
        float even = 0, odd = 0;
        for (size_t k = 0; k < unit_words; k++) {
          const uint32_t a = tiles_[left][m][k], b = tiles_[right][k][n];
          even = flushed(std::fma(flushed_float(a << 16), flushed_float(b << 16), even));
          odd = flushed(std::fma(flushed_float(a & 0xffff0000), flushed_float(b & 0xffff0000), odd));
        }
        uint32_t& target = tiles_[sum][m][n];
        target = std::bit_cast<uint32_t>(flushed(flushed_float(target) + flushed(even + odd)));
      }
    }
  }
  template <int sum, int left, int right>
  void add_quads() {
    for (size_t m = 0; m < unit_rows; m++) {
      for (size_t n = 0; n < unit_words; n++) {
        for (size_t k = 0; k < unit_words; k++) {
          for (unsigned shift = 0; shift < 32; shift += 8) {
            const int8_t a = static_cast<int8_t>(tiles_[left][m][k] >> shift);
            const int8_t b = static_cast<int8_t>(tiles_[right][k][n] >> shift);
            tiles_[sum][m][n] += static_cast<uint32_t>(a * b);
          }
        }
      }
    }
  }

 private:
  using Row = uint32_t[unit_words];

  static float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
  static float flushed_float(uint32_t bits) { return flushed(std::bit_cast<float>(bits)); }

  Row tiles_[8][unit_rows];
};

#endif

}  // namespace relora::RELORA_ISA
