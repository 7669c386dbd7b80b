// Packing for the micro-kernels: float32 as it is, or rounded to bfloat16 (nearest even), alone or as pairs
// of k's in one word.
#pragma once
#include "../vector.h"
#include "kernel_interface.h"

namespace relora::RELORA_ISA {

#ifdef __clang__
#define RELORA_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RELORA_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
#endif

static inline Words zip_low(Words a, Words b) {
#if defined(__AVX512F__)
  return RELORA_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
  return RELORA_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return RELORA_SHUFFLE(a, b, 0, 4, 1, 5);
#endif
}
static inline Words zip_high(Words a, Words b) {
#if defined(__AVX512F__)
  return RELORA_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  return RELORA_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return RELORA_SHUFFLE(a, b, 2, 6, 3, 7);
#endif
}
#undef RELORA_SHUFFLE

/// In place: rows become columns. log2(lanes) perfect shuffles.
static inline void transpose(Words (&rows)[lanes]) {
  Words next[lanes];
  for (size_t round = 1; round < lanes; round *= 2) {
#pragma GCC unroll 16
    for (size_t i = 0; i < lanes / 2; i++) {
      next[2 * i] = zip_low(rows[i], rows[i + lanes / 2]);
      next[2 * i + 1] = zip_high(rows[i], rows[i + lanes / 2]);
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < lanes; i++) rows[i] = next[i];
  }
}

static inline Vec round_to_bfloat16(Vec v) { return floats_of(round_in_place(v) & 0xffff0000); }
/// One word per lane: `even` in the lower half, `odd` in the upper.
static inline Words pair(Vec even, Vec odd) {
#if defined(__AVX512BF16__)
  const auto widened = [](Vec v) {
    return __builtin_convertvector(reinterpret_cast<Shorts>(_mm512_cvtneps_pbh(v)), Words);
  };
  return widened(even) | (widened(odd) << 16);
#else
  return (round_in_place(even) >> 16) | (round_in_place(odd) & 0xffff0000);
#endif
}

/// One word for every two neighboring floats of p[count], count <= 2 * lanes, zeros after them.
static inline Words load_pairs(const float* p, size_t count) {
  const Vec low = load(p, count);
  const Vec high = count > lanes ? load(p + lanes, count - lanes) : Vec{};
#if defined(__AVX512BF16__)
  return reinterpret_cast<Words>(_mm512_cvtne2ps_pbh(high, low));
#else
  typedef uint64_t Pairs __attribute__((vector_size(lanes * 4)));
  typedef uint32_t Half __attribute__((vector_size(lanes * 2)));
  const auto join = [](Vec v) {
    const Pairs u = reinterpret_cast<Pairs>(round_in_place(v));
    return __builtin_convertvector(((u >> 16) & 0xffff) | ((u >> 32) & 0xffff0000), Half);
  };
  const Half halves[2] = {join(low), join(high)};
  Words words;
  std::memcpy(&words, halves, sizeof words);
  return words;
#endif
}

/// For elements kept as bfloat16: pairs as stored.
static inline Words load_pairs(const uint16_t* p, size_t count) {
  if (count >= 2 * lanes) return load(reinterpret_cast<const uint32_t*>(p));
  Words words = {};
  std::memcpy(&words, p, count * sizeof *p);
  return words;
}

enum class Format { float32, rounded_float32, pairs };

/// Rows of the register tile of a kernel whose left operand has this format. Of the 32 registers of AVX-512, 6 x 4 vectors take 24 for sums,
/// and widening needs a share of the instructions for each vector of the right panel, so 14 x 2 are faster there.
template <Format format>
#if defined(__AVX512F__)
constexpr size_t tile_rows = format == Format::rounded_float32 ? 14 : 6;
#else
constexpr size_t tile_rows = 6;
#endif

/// Prefetches a later stored row: rows are too far apart for the CPU's prefetcher.
template <class Element>
static inline void prefetch(const Element* row, size_t count) {
  for (size_t i = 0; i < count; i += 64 / sizeof *row) __builtin_prefetch(row + i);
}

static constexpr size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/// Rows of op(left) as they are: element (row, k) of the block at row * row_stride + k.
template <Format format, class Element>
static PackedLeft pack_left_rows(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t k,
                                 size_t k_count) {
  const size_t words = format == Format::pairs ? (k_count + 1) / 2 : k_count;
  // Whole cache lines plus one: a power-of-two stride would map rows to the same cache sets.
  const size_t row_stride = (words + 15) / 16 * 16 + 16;
  for (size_t i = 0; i < rows; i++) {
    const Element* from = static_cast<const Element*>(left.data) + (row + i) * left.stride + k;
    uint32_t* to = packed + i * row_stride;
    if constexpr (format == Format::pairs) {
      for (size_t s = 0; s < k_count; s += 2 * lanes) {
        prefetch(from + 2 * left.stride + s, 2 * lanes);
        store(to + s / 2, load_pairs(from + s, smaller(k_count - s, 2 * lanes)));
      }
    } else {
      for_vectors(k_count, [&](size_t s, size_t count) {
        prefetch(from + 2 * left.stride + s, lanes);
        const Vec v = load(from + s, count);
        store(to + s, bits_of(format == Format::float32 ? v : round_to_bfloat16(v)));
      });
      to[k_count] = 0;  // read as the partner of an odd last k
    }
  }
  return {packed, tile_rows<format> * row_stride, row_stride, 1};
}

/// Left operand stored [k, m]: for each panel, which has the rows of a tile, neighboring words per k (or pair). The stored rows are read once,
/// across all panels, since they may be pages apart.
template <Format format, class Element>
static PackedLeft pack_left_columns(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t k,
                                    size_t k_count) {
  constexpr size_t panel_rows = tile_rows<format>;
  constexpr size_t k_per_step = format == Format::pairs ? 2 : 1;
  // Stores are a full vector wide and overlap the next step, the last ones the space after the panel. An odd last k is paired with zeros.
  const size_t panel = panel_rows * ((k_count + k_per_step - 1) / k_per_step + 1) + lanes;
  for (size_t s = 0; s < k_count; s += k_per_step) {
    const Element* even = static_cast<const Element*>(left.data) + (k + s) * left.stride + row;
    const Element* odd = s + 1 < k_count ? even + left.stride : nullptr;
    uint32_t* to = packed + s / k_per_step * panel_rows;
    prefetch(even + 4 * left.stride, rows);
    if (k_per_step == 2) prefetch(even + 5 * left.stride, rows);
    for (size_t i = 0; i < rows; i += panel_rows, to += panel) {
      const size_t wide = smaller(panel_rows, rows - i);
      for (size_t j = 0; j < wide; j += lanes) {
        // Loads a full vector if the stored row has one, although only `panel_rows` lanes are needed: masks cost more.
        const size_t count = rows - i - j;
        const Vec v = load(even + i + j, count);
        if constexpr (format == Format::pairs) {
          store(to + j, pair(v, odd == nullptr ? Vec{} : load(odd + i + j, count)));
        } else {
          store(to + j, bits_of(format == Format::float32 ? v : round_to_bfloat16(v)));
        }
      }
    }
  }
  if constexpr (format != Format::pairs) {
    for (size_t i = 0; i < rows; i += panel_rows) {
      std::memset(packed + i / panel_rows * panel + k_count * panel_rows, 0, panel_rows * sizeof(uint32_t));
    }
  }
  return {packed, panel, 1, panel_rows};
}

template <Format format>
static PackedLeft pack_left_as(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t k,
                            size_t k_count) {
  if (format == Format::float32 && left.is_in_cache && !left.is_bfloat16 && !left.transposed) {
    const uint32_t* const there = static_cast<const uint32_t*>(left.data) + row * left.stride + k;
    return {there, tile_rows<format> * left.stride, left.stride, 1};
  }
  if (left.is_bfloat16) {
    return left.transposed ? pack_left_columns<format, uint16_t>(packed, left, row, rows, k, k_count)
                           : pack_left_rows<format, uint16_t>(packed, left, row, rows, k, k_count);
  }
  return left.transposed ? pack_left_columns<format, float>(packed, left, row, rows, k, k_count)
                         : pack_left_rows<format, float>(packed, left, row, rows, k, k_count);
}

static constexpr size_t round_up(size_t n, size_t quantum) { return (n + quantum - 1) / quantum * quantum; }

/// Shape of a kernel's right panels: the columns of a full one, the multiple to which the last one's columns are padded, and that for the
/// steps of the last block. Padding is zero.
template <size_t columns_, size_t column_quantum_, size_t step_quantum_>
struct PanelShape {
  static constexpr size_t columns = columns_, column_quantum = column_quantum_, step_quantum = step_quantum_;

  static size_t columns_of(size_t n, size_t panel) { return smaller(n - panel * columns, columns); }
  static size_t width_of(size_t n, size_t panel) { return round_up(columns_of(n, panel), column_quantum); }
  static size_t steps_of(size_t k_count, size_t k_per_step) {
    return round_up((k_count + k_per_step - 1) / k_per_step, step_quantum);
  }
};
template <size_t vectors>
using PanelOfVectors = PanelShape<vectors * lanes, lanes, 1>;

/// One panel of the right operand: [steps, width].
template <Format format, class Shape, class Element>
static void pack_right_panel(uint32_t* packed, const Operand& right, size_t k, size_t k_count, size_t n,
                             size_t panel) {
  constexpr size_t k_per_step = format == Format::pairs ? 2 : 1;
  const Element* const data = static_cast<const Element*>(right.data);
  const size_t column = panel * Shape::columns;
  const size_t columns = Shape::columns_of(n, panel), width = Shape::width_of(n, panel);
  const size_t steps = (k_count + k_per_step - 1) / k_per_step;
  if constexpr (Shape::step_quantum > 1) {
    const size_t padded = Shape::steps_of(k_count, k_per_step);
    if (columns < width || steps < padded) std::memset(packed, 0, padded * width * sizeof *packed);
  }

  if (!right.transposed) {
    for (size_t s = 0; s < steps; s++) {
      const Element* from = data + (k + s * k_per_step) * right.stride + column;
      const bool has_odd = s * 2 + 1 < k_count;
      for (size_t odd = 0; odd < k_per_step; odd++) {
        prefetch(from + (8 * k_per_step + odd) * right.stride, columns);
      }
      for_vectors(columns, [&](size_t j, size_t count) {
        const Vec even = load(from + j, count);
        if constexpr (format == Format::pairs) {
          store(packed + s * width + j, pair(even, has_odd ? load(from + right.stride + j, count) : Vec{}));
        } else {
          store(packed + s * width + j, bits_of(even));
        }
      });
    }
    return;
  }
  for (size_t j = 0; j < columns; j += lanes) {
    for (size_t s = 0; s < steps; s += lanes) {
      Words rows[lanes];
      for (size_t i = 0; i < lanes; i++) {
        const Element* from = data + (column + j + i) * right.stride + k + s * k_per_step;
        const size_t count = smaller(k_count - s * k_per_step, lanes * k_per_step);
        if (j + i >= columns) {
          rows[i] = Words{};
          continue;
        }
        prefetch(from + lanes * right.stride, count);
        if constexpr (format == Format::pairs) {
          rows[i] = load_pairs(from, count);
        } else {
          rows[i] = bits_of(load(from, count));
        }
      }
      transpose(rows);
      for (size_t i = 0; i < smaller(steps - s, lanes); i++) store(packed + (s + i) * width + j, rows[i]);
    }
  }
}

template <Format format, class Shape>
static void pack_right_as(uint32_t* packed, const Operand& right, size_t k, size_t k_count, size_t n,
                          size_t panel) {
  if (right.is_bfloat16) {
    return pack_right_panel<format, Shape, uint16_t>(packed, right, k, k_count, n, panel);
  }
  pack_right_panel<format, Shape, float>(packed, right, k, k_count, n, panel);
}

}  // namespace relora::RELORA_ISA
