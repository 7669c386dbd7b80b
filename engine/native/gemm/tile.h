// The register tile: a few rows by a few vectors of columns, summed over one block of k. How it is packed and
// multiplied is a policy: Sum is the type of the sums, left_words the packed left words per step.
#pragma once
#include "pack.h"

namespace relora::RELORA_ISA {

static inline Vec float_of(Vec sum) { return sum; }
static inline Vec float_of(Words sum) {
  return __builtin_convertvector(reinterpret_cast<Integers>(sum), Vec);
}

struct TileArguments {
  const uint32_t* left;
  size_t row_stride, k_stride;
  const float* row_scales;  // of integers
  const uint32_t* right;
  size_t right_stride;  // words from one step to the next
  size_t steps;
  Target target;
  size_t columns;  // valid columns of the target, in this tile
};

using Tile = void (*)(const TileArguments&);

#define RELORA_INLINE __attribute__((always_inline))

/// Calls body(integral_constant) for 0 .. N-1. Indices known at compile time keep the sums in registers:
/// GCC 12 spills an array of accumulators that is indexed by an unrolled loop.
template <class Body, size_t... I>
static inline RELORA_INLINE void each_of(const Body& body, std::index_sequence<I...>) {
  (body(std::integral_constant<size_t, I>{}), ...);
}
template <size_t N, class Body>
static inline RELORA_INLINE void each(const Body& body) {
  each_of(body, std::make_index_sequence<N>{});
}

#if defined(RELORA_NEON)
/// One word of the left operand. ARM's instructions take it from a lane, so it need not be broadcast to a vector first, which would take an
/// issue slot from multiplications. Written in assembly, since compilers prefer to broadcast.
using LeftValue = float32x2_t;
static inline LeftValue left_value(const uint32_t* word) {
  LeftValue value;
  asm("ldr %s0, %1" : "=w"(value) : "m"(*word));
  return value;
}
static inline Vec multiply_add(LeftValue a, Vec b, Vec c) { return vfmaq_lane_f32(c, b, a, 0); }
#else
using LeftValue = Vec;
static inline LeftValue left_value(const uint32_t* word) {
  float value;
  std::memcpy(&value, word, sizeof value);
  return broadcast(value);
}
#endif

/// Calls body(row, words) with the words of each row of a step, `row_stride` apart. Addresses are sums of one pointer for four rows and a few
/// multiples of the stride: one for each row would not fit into the registers, and loading them takes slots from the products.
template <size_t rows, class Body>
static inline RELORA_INLINE void each_row(const uint32_t* left, size_t row_stride, const Body& body) {
  each<(rows + 3) / 4>([&](auto group) RELORA_INLINE {
    each<smaller(rows - 4 * group, 4)>([&](auto i) RELORA_INLINE {
      body(std::integral_constant<size_t, 4 * group + i>{}, left + i * row_stride);
    });
    left += 4 * row_stride;
    asm("" : "+r"(left));
  });
}

/// Float32 words times float32 words: one k per step.
struct MultiplyFloat32 {
  using Sum = Vec;
  static constexpr size_t tile_rows = RELORA_ISA::tile_rows<Format::float32>;
  static constexpr size_t k_per_step = 1, left_words = 1, header_rows = 0;
  static constexpr auto prepare_left = nullptr;
  static constexpr auto pack_left = &pack_left_as<Format::float32>;
  template <size_t vectors>
  static constexpr auto pack_right = &pack_right_as<Format::float32, PanelOfVectors<vectors>>;

  template <size_t rows, size_t vectors>
  static inline RELORA_INLINE void step(Vec (&sums)[rows * vectors], const uint32_t* left, size_t row_stride,
                                        size_t, const uint32_t* right) {
    Vec b[vectors];
    each<vectors>([&](auto j) RELORA_INLINE { b[j] = floats_of(load(right + j * lanes)); });
    each_row<rows>(left, row_stride, [&](auto i, const uint32_t* words) RELORA_INLINE {
      const LeftValue a = left_value(words);
      each<vectors>([&](auto j) RELORA_INLINE {
        sums[i * vectors + j] = multiply_add(a, b[j], sums[i * vectors + j]);
      });
    });
  }
};

/// Words with zeros in their lower halves.
static inline Words load_upper_halves(const uint32_t* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(_mm512_maskz_loadu_epi16(0xaaaaaaaa, p));  // needs no register for a constant
#else
  return load(p) & 0xffff0000;
#endif
}

/// Rounded float32 words times pairs of bfloat16, widened on the way: two k's per step. The sums are those of
/// the hardware's own bfloat16 instruction but for the order of rounding.
struct MultiplyWidened {
  using Sum = Vec;
  static constexpr size_t tile_rows = RELORA_ISA::tile_rows<Format::rounded_float32>;
  static constexpr size_t k_per_step = 2, left_words = 2, header_rows = 0;
  static constexpr auto prepare_left = nullptr;
  static constexpr auto pack_left = &pack_left_as<Format::rounded_float32>;
  template <size_t vectors>
  static constexpr auto pack_right = &pack_right_as<Format::pairs, PanelOfVectors<vectors>>;

  template <size_t rows, size_t vectors>
  static inline RELORA_INLINE void step(Vec (&sums)[rows * vectors], const uint32_t* left, size_t row_stride,
                                        size_t k_stride, const uint32_t* right) {
    each<2>([&](auto odd) RELORA_INLINE {
      Vec b[vectors];
      each<vectors>([&](auto j) RELORA_INLINE {
        if constexpr (odd == 0) {
          b[j] = floats_of(load(right + j * lanes) << 16);
        } else {
          b[j] = floats_of(load_upper_halves(right + j * lanes));
        }
      });
      each_row<rows>(left + odd * k_stride, row_stride, [&](auto i, const uint32_t* words) RELORA_INLINE {
        const LeftValue a = left_value(words);
        each<vectors>([&](auto j) RELORA_INLINE {
          sums[i * vectors + j] = multiply_add(a, b[j], sums[i * vectors + j]);
          settle(sums[i * vectors + j]);
        });
      });
      // The odd halves are loaded again: kept next to the even ones, they would push sums out of registers.
      asm("" : "+r"(right));
    });
  }
};

template <class Multiply, size_t rows, size_t vectors>
static void tile(const TileArguments& t) {
  using Sum = typename Multiply::Sum;
  Sum sums[rows * vectors] = {};
  const uint32_t* left = t.left;
  const size_t row_stride = t.row_stride, k_stride = t.k_stride, right_stride = t.right_stride;
  const uint32_t* right = t.right + Multiply::header_rows * right_stride;
  // Prefetched now, the target is in the cache when the sums are done: a tile that waits for it delays the next one.
  each<rows>([&](auto i) RELORA_INLINE {
    each<vectors>([&](auto j) RELORA_INLINE {
      __builtin_prefetch(t.target.data + i * t.target.stride + j * lanes, 1);
    });
  });
  if constexpr (Multiply::header_rows == 2) {
    each<vectors>([&](auto j) RELORA_INLINE {
      const Words start = load(t.right + right_stride + j * lanes);
      each<rows>([&](auto i) RELORA_INLINE { sums[i * vectors + j] = reinterpret_cast<Sum>(start); });
    });
  }
  for (size_t s = 0; s < t.steps; s++) {
    Multiply::template step<rows, vectors>(sums, left, row_stride, k_stride, right);
    left += Multiply::left_words * k_stride;
    right += right_stride;
  }
  each<rows>([&](auto i) RELORA_INLINE {
    const float row_scale = Multiply::header_rows == 2 ? t.row_scales[i] : 1.0f;
    const Vec alpha = broadcast(t.target.alpha * row_scale);
    each<vectors>([&](auto j) RELORA_INLINE {
      if (j * lanes < t.columns) {
        float* c = t.target.data + i * t.target.stride + j * lanes;
        const size_t count = t.columns - j * lanes;
        Vec sum = float_of(sums[i * vectors + j]);
        if constexpr (Multiply::header_rows == 2) sum *= floats_of(load(t.right + j * lanes));
        store(c, t.target.accumulate ? multiply_add(alpha, sum, load(c, count)) : alpha * sum, count);
      }
    });
  });
}

/// Tiles of 1 to all rows by 1 to `vectors_max` vectors.
template <class Multiply, size_t vectors_max>
struct Tiles {
  template <size_t... I>
  static Tile of(size_t rows, size_t vectors, std::index_sequence<I...>) {
    static constexpr Tile tiles[] = {tile<Multiply, I / vectors_max + 1, I % vectors_max + 1>...};
    return tiles[(rows - 1) * vectors_max + vectors - 1];
  }
  static Tile of(size_t rows, size_t vectors) {
    return of(rows, vectors, std::make_index_sequence<Multiply::tile_rows * vectors_max>{});
  }
};

/// All rows of a packed block times one right panel; computes only as many vectors as there are columns.
template <class Multiply, size_t vectors_max>
static void multiply(const Target& target, const PackedLeft& left, const uint32_t* right, const uint32_t* next, size_t rows,
                     size_t columns, size_t width, size_t k_count) {
  constexpr size_t tile_rows = Multiply::tile_rows;
  const size_t vectors = (columns + lanes - 1) / lanes;
  const size_t steps = (k_count + Multiply::k_per_step - 1) / Multiply::k_per_step;
  TileArguments t{nullptr, left.row_stride, left.k_stride, left.row_scales, right, width, steps, target, columns};
  const Tile full = Tiles<Multiply, vectors_max>::of(tile_rows, vectors);
  // The next panel is brought nearer in equal parts, tile by tile.
  constexpr size_t line = 16;
  const size_t words = next == nullptr ? 0 : (Multiply::header_rows + steps) * width, tiles = (rows + tile_rows - 1) / tile_rows;
  const size_t part = (words / tiles / line + 1) * line;
  for (size_t row = 0, begin = 0; row < rows; row += tile_rows, begin += part) {
    for (size_t word = begin; word < smaller(begin + part, words); word += line) __builtin_prefetch(next + word, 0, 2);
    t.left = left.data + row / tile_rows * left.panel;
    t.row_scales = left.row_scales + row;
    t.target.data = target.data + row * target.stride;
    if (rows - row >= tile_rows) {
      full(t);
    } else {
      Tiles<Multiply, vectors_max>::of(rows - row, vectors)(t);
    }
  }
}

/// The tile's steps on operands that stay in the L1 cache: the upper bound of a product's speed.
template <class Multiply, size_t vectors>
static double exercise(size_t iterations) {
  constexpr size_t length = 64, tile_rows = Multiply::tile_rows;
  alignas(64) uint32_t left[tile_rows * Multiply::left_words * length] = {};
  alignas(64) uint32_t right[vectors * lanes * (Multiply::header_rows + length)] = {};
  alignas(64) float result[tile_rows * vectors * lanes];
  const float row_scales[tile_rows] = {};
  const TileArguments t{left, 1, tile_rows, row_scales, right, vectors * lanes, length, {result, vectors * lanes, 1.0f, false},
                        vectors * lanes};
  for (size_t done = 0; done < iterations; done += length) {
    tile<Multiply, tile_rows, vectors>(t);
    asm volatile("" : : "r"(result) : "memory");
  }
  const double steps = static_cast<double>((iterations + length - 1) / length * length);
  return 2.0 * tile_rows * vectors * lanes * Multiply::k_per_step * steps;
}

template <class Multiply, size_t vectors>
constexpr ProductKernel product_kernel(size_t block_k) {
  return {
      .tile_rows = Multiply::tile_rows,
      .panel_columns = vectors * lanes,
      .column_quantum = lanes,
      .step_quantum = 1,
      .k_per_step = Multiply::k_per_step,
      .block_k = block_k,
      .header_rows = Multiply::header_rows,
      .prepare_left = Multiply::prepare_left,
      .pack_left = Multiply::pack_left,
      .pack_right = Multiply::template pack_right<vectors>,
      .multiply = multiply<Multiply, vectors>,
      .exercise = exercise<Multiply, vectors>,
  };
}

}  // namespace relora::RELORA_ISA
