// Products by ARM's matrix instructions: six rows by sixteen columns of the result in 24 squares of two by two, summed over one block of k.
// A vector of the left operand is two rows of two words, one of the right operand two columns of two words; a word holds a pair of bfloat16
// or four int8. So both operands are packed with two steps next to each other.
#include "kernels.h"
#include "matrix_unit.h"
#include "pack_int8.h"
#include "tile.h"

static_assert(relora::RELORA_ISA::lanes == 4, "a vector is a square of two by two");

namespace relora::RELORA_ISA {

namespace {

constexpr size_t columns_max = 16, tile_rows = 6, pairs_of_rows = tile_rows / 2;
using Shape = PanelShape<columns_max, lanes, 2>;

/// Words of one panel of six interleaved rows: [two steps][row][2].
constexpr size_t panel_words(size_t words) { return round_up(words, 2) * tile_rows; }

/// Interleaves left rows, packed word by word, into panels of six. An odd number of words is padded with zeros: otherwise zeros of the
/// right operand could be multiplied by NaN. Rows up to a whole panel give results that nobody reads.
void interleave_rows(uint32_t* panels, const uint32_t* row, size_t words, size_t i) {
  uint32_t* to = panels + i / tile_rows * panel_words(words) + i % tile_rows * 2;
  size_t s = 0;
  for (; s + 1 < words; s += 2, to += 2 * tile_rows) std::memcpy(to, row + s, 2 * sizeof *to);
  if (s < words) {
    to[0] = row[s];
    to[1] = 0;
  }
}

template <class Element>
void pack_pairs_of_rows(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t k, size_t k_count) {
  alignas(64) uint32_t words[block_words + lanes];
  for (size_t i = 0; i < rows; i++) {
    const Element* from = static_cast<const Element*>(left.data) + (row + i) * left.stride + k;
    for (size_t s = 0; s < k_count; s += 2 * lanes) {
      prefetch(from + 2 * left.stride + s, 2 * lanes);
      store(words + s / 2, load_pairs(from + s, smaller(k_count - s, 2 * lanes)));
    }
    interleave_rows(packed, words, (k_count + 1) / 2, i);
  }
}

/// Left operand stored [k, m]: four k's of four rows at a time.
template <class Element>
void pack_pairs_of_columns(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t k, size_t k_count) {
  const Element* const data = static_cast<const Element*>(left.data);
  const size_t panel = panel_words((k_count + 1) / 2);
  for (size_t s = 0; s < k_count; s += 4) {
    const Element* from = data + (k + s) * left.stride + row;
    for (size_t ahead = 4; ahead < 8; ahead++) prefetch(from + ahead * left.stride, rows);
    for (size_t i = 0; i < rows; i += lanes) {
      const size_t count = smaller(rows - i, lanes);
      const auto values = [&](size_t step) {
        return s + step < k_count ? load(from + step * left.stride + i, count) : Vec{};
      };
      const Words first = pair(values(0), values(1)), second = pair(values(2), values(3));
      const Words squares[2] = {zip_low(first, second), zip_high(first, second)};
      for (size_t j = 0; j < count; j += 2) {
        uint32_t* to = packed + (i + j) / tile_rows * panel + (s / 4 * tile_rows + (i + j) % tile_rows) * 2;
        store(to, squares[j / 2]);
      }
    }
  }
}

PackedLeft pack_left_pairs(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t k, size_t k_count) {
  const auto pack = left.transposed
      ? (left.is_bfloat16 ? pack_pairs_of_columns<uint16_t> : pack_pairs_of_columns<float>)
      : (left.is_bfloat16 ? pack_pairs_of_rows<uint16_t> : pack_pairs_of_rows<float>);
  pack(packed, left, row, rows, k, k_count);
  return {packed, panel_words((k_count + 1) / 2), 2, 2 * tile_rows};
}

template <class Element>
void pack_quads_of_rows(uint32_t* packed, const float* inverses, const Operand& left, size_t row, size_t rows, size_t k,
                        size_t k_count) {
  alignas(64) uint32_t words[block_words + lanes];
  for (size_t i = 0; i < rows; i++) {
    const Element* from = static_cast<const Element*>(left.data) + (row + i) * left.stride + k;
    for (size_t s = 0; s < k_count; s += 4 * lanes) {
      prefetch(from + 2 * left.stride + s, 4 * lanes);
      store(words + s / 4, load_quads(from + s, smaller(k_count - s, 4 * lanes), broadcast(inverses[i])));
    }
    interleave_rows(packed, words, (k_count + 3) / 4, i);
  }
}

PackedLeft pack_left_quads(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t k, size_t k_count) {
  const float* const scales = reinterpret_cast<const float*>(packed);
  uint32_t* const data = packed + left_header_words;
  (left.is_bfloat16 ? pack_quads_of_rows<uint16_t> : pack_quads_of_rows<float>)(data, scales + block_rows, left, row, rows, k,
                                                                                k_count);
  return {data, panel_words((k_count + 3) / 4), 2, 2 * tile_rows, scales};
}

/// Interleaves rows of words [steps, width] in pairs, so that the two words of a column are adjacent.
void interleave_steps(uint32_t* packed, size_t steps, size_t width) {
  uint32_t rows[2 * columns_max];
  for (size_t s = 0; s < steps; s += 2, packed += 2 * width) {
    std::memcpy(rows, packed, 2 * width * sizeof *packed);
    for (size_t j = 0; j < width; j += lanes) {
      const Words first = load(rows + j), second = load(rows + width + j);
      store(packed + 2 * j, zip_low(first, second));
      store(packed + 2 * j + lanes, zip_high(first, second));
    }
  }
}

void pack_right_pairs(uint32_t* packed, const Operand& right, size_t k, size_t k_count, size_t n, size_t panel) {
  pack_right_as<Format::pairs, Shape>(packed, right, k, k_count, n, panel);
  interleave_steps(packed, Shape::steps_of(k_count, 2), Shape::width_of(n, panel));
}

constexpr size_t block_quads = 4 * block_words;

void pack_right_quads(uint32_t* packed, const Operand& right, size_t k, size_t k_count, size_t n, size_t panel) {
  pack_right_integers<Integer::bytes, block_quads, Shape>(packed, right, k, k_count, n, panel);
  const size_t width = Shape::width_of(n, panel);
  for (size_t done = 0; done < k_count; done += block_quads) {
    const size_t steps = Shape::steps_of(smaller(k_count - done, block_quads), 4);
    packed += 2 * width;
    interleave_steps(packed, steps, width);
    packed += steps * width;
  }
}

struct Pairs {
  static constexpr size_t k_per_step = 2, header_rows = 0, block_k = block_words * k_per_step;
  static constexpr auto prepare_left = nullptr;
  static constexpr auto pack_left = &pack_left_pairs;
  static constexpr auto pack_right = &pack_right_pairs;
  static Words add_products(Words sum, Words left, Words right) { return add_pair_products(sum, left, right); }
  static Vec float_of(Words sum) { return floats_of(sum); }
};

struct Quads {
  static constexpr size_t k_per_step = 4, header_rows = 2, block_k = block_quads;
  static constexpr auto prepare_left = &prepare_left_integers;
  static constexpr auto pack_left = &pack_left_quads;
  static constexpr auto pack_right = &pack_right_quads;
  static Words add_products(Words sum, Words left, Words right) { return add_quad_products(sum, left, right); }
  static Vec float_of(Words sum) { return __builtin_convertvector(reinterpret_cast<Integers>(sum), Vec); }
};

// An inlined copy with constant operands has fewer free registers than the kernel, and spills sums to the stack.
#if defined(__clang__)
#define RELORA_OUT_OF_LINE __attribute__((noinline))
#else
#define RELORA_OUT_OF_LINE __attribute__((noinline, noclone))
#endif

/// target[rows <= 6, columns <= width] (+)= alpha left right; `width` is four times `vectors`.
template <class Multiply, size_t vectors>
RELORA_OUT_OF_LINE void tile_of_squares(const Target& target, const uint32_t* left, const float* row_scales, const uint32_t* right, size_t rows,
                     size_t columns, size_t steps) {
  constexpr size_t width = vectors * lanes, squares = width / 2;
  const uint32_t* const scales = right;
  right += Multiply::header_rows * width;
  Words sums[pairs_of_rows * squares] = {};
  for (size_t s = 0; s < steps; s += 2) {
    Words a[pairs_of_rows];
    each<pairs_of_rows>([&](auto i) RELORA_INLINE { a[i] = load(left + i * lanes); });
    each<squares>([&](auto j) RELORA_INLINE {
      const Words b = load(right + j * lanes);
      each<pairs_of_rows>([&](auto i) RELORA_INLINE {
        sums[i * squares + j] = Multiply::add_products(sums[i * squares + j], a[i], b);
      });
    });
    left += 2 * tile_rows;
    right += 2 * width;
  }
  each<pairs_of_rows>([&](auto i) RELORA_INLINE {
    each<2>([&](auto odd) RELORA_INLINE {
      if (2 * i + odd >= rows) return;
      const float row_scale = Multiply::header_rows == 2 ? row_scales[2 * i + odd] : 1.0f;
      const Vec alpha = broadcast(target.alpha * row_scale);
      float* const row = target.data + (2 * i + odd) * target.stride;
      each<vectors>([&](auto j) RELORA_INLINE {
        if (j * lanes >= columns) return;
        // The upper or the lower rows of two neighboring squares.
        const Words low = sums[i * squares + 2 * j], high = sums[i * squares + 2 * j + 1];
        const Words words = odd == 0 ? Words{low[0], low[1], high[0], high[1]} : Words{low[2], low[3], high[2], high[3]};
        Vec sum = Multiply::float_of(words);
        if constexpr (Multiply::header_rows == 2) sum *= floats_of(load(scales + j * lanes));
        float* const c = row + j * lanes;
        const size_t count = columns - j * lanes;
        store(c, target.accumulate ? fused_multiply_add(alpha, sum, load(c, count)) : alpha * sum, count);
      });
    });
  });
}

template <class Multiply>
void multiply(const Target& target, const PackedLeft& left, const uint32_t* right, const uint32_t*, size_t rows, size_t columns,
              size_t width, size_t k_count) {
  constexpr decltype(&tile_of_squares<Multiply, 4>) tiles[] = {
      tile_of_squares<Multiply, 1>, tile_of_squares<Multiply, 2>, tile_of_squares<Multiply, 3>, tile_of_squares<Multiply, 4>};
  const size_t steps = Shape::steps_of(k_count, Multiply::k_per_step);
  for (size_t row = 0; row < rows; row += tile_rows) {
    const Target part{target.data + row * target.stride, target.stride, target.alpha, target.accumulate};
    tiles[width / lanes - 1](part, left.data + row / tile_rows * left.panel, left.row_scales + row, right,
                             smaller(rows - row, tile_rows), columns, steps);
  }
}

template <class Multiply>
double exercise(size_t iterations) {
  constexpr size_t length = 64;
  alignas(64) uint32_t left[tile_rows * length] = {}, right[columns_max * (Multiply::header_rows + length)] = {};
  alignas(64) float result[tile_rows * columns_max];
  const float row_scales[tile_rows] = {};
  double steps = 0;
  for (; steps < static_cast<double>(iterations); steps += length) {
    tile_of_squares<Multiply, 4>({result, columns_max, 1.0f, false}, left, row_scales, right, tile_rows, columns_max, length);
    asm volatile("" : : "r"(result) : "memory");
  }
  return 2.0 * tile_rows * columns_max * Multiply::k_per_step * steps;
}

template <class Multiply>
constexpr ProductKernel matrix_kernel = {
    .tile_rows = tile_rows,
    .panel_columns = Shape::columns,
    .column_quantum = Shape::column_quantum,
    .step_quantum = Shape::step_quantum,
    .k_per_step = Multiply::k_per_step,
    .block_k = Multiply::block_k,
    .header_rows = Multiply::header_rows,
    .prepare_left = Multiply::prepare_left,
    .pack_left = Multiply::pack_left,
    .pack_right = Multiply::pack_right,
    .multiply = multiply<Multiply>,
    .exercise = exercise<Multiply>,
};

}  // namespace

constinit const ProductKernel bfloat16_matrix_kernel = matrix_kernel<Pairs>;
constinit const ProductKernel int8_matrix_kernel = matrix_kernel<Quads>;

}  // namespace relora::RELORA_ISA
