// Products by AMX: 32 rows by 32 columns of the result in four tiles, summed over one block of k. A tile of
// the left operand is sixteen rows of sixteen words, which hold pairs of bfloat16 or fours of int8; a tile of
// the right one is sixteen steps of sixteen columns, as its panels lie in memory.
#include "kernels.h"
#include "pack_int8.h"
#include "tile_unit.h"

namespace relora::RELORA_ISA {

namespace {

using Shape = PanelShape<2 * unit_words, unit_words, unit_words>;

/// Left operand stored [k, m]: squares of `lanes` rows by as many pairs, transposed.
template <class Element>
void pack_transposed_pairs(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t k,
                           size_t k_count, size_t row_stride) {
  const Element* const data = static_cast<const Element*>(left.data);
  for (size_t s = 0; 2 * s < k_count; s += lanes) {
    for (size_t i = 0; i < rows; i += lanes) {
      Words square[lanes];
      for (size_t j = 0; j < lanes; j++) {
        const size_t even = 2 * (s + j), count = smaller(rows - i, lanes);
        const Element* from = data + (k + even) * left.stride + row + i;
        // The rows of the next squares, which are pages apart.
        prefetch(from + 2 * lanes * left.stride, count);
        prefetch(from + (2 * lanes + 1) * left.stride, count);
        const auto values = [&](size_t odd) {
          return even + odd < k_count ? load(from + odd * left.stride, count) : Vec{};
        };
        square[j] = pair(values(0), values(1));
      }
      transpose(square);
      for (size_t j = 0; j < smaller(rows - i, lanes); j++) {
        store(packed + (i + j) * row_stride + s, square[j]);
      }
    }
  }
}

/// Rows of pairs in either orientation, zero-padded to whole tiles: otherwise zeros of the right operand could be multiplied by NaN. Rows
/// up to a whole tile are not padded, since nobody reads their results.
PackedLeft pack_left_pairs(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t k,
                           size_t k_count) {
  const size_t words = (k_count + 1) / 2, whole = round_up(words, unit_words);
  const size_t row_stride = whole + 16;  // as in pack_left_rows
  if (left.transposed) {
    (left.is_bfloat16 ? pack_transposed_pairs<uint16_t> : pack_transposed_pairs<float>)(
        packed, left, row, rows, k, k_count, row_stride);
  } else {
    pack_left_as<Format::pairs>(packed, left, row, rows, k, k_count);
  }
  for (size_t i = 0; i < rows; i++) {
    std::memset(packed + i * row_stride + words, 0, (whole - words) * sizeof *packed);
  }
  return {packed, 2 * unit_rows * row_stride, row_stride, 1};
}

struct Bfloat16Tiles {
  static constexpr size_t k_per_step = 2, header_rows = 0, block_k = block_words * k_per_step;
  static constexpr auto prepare_left = nullptr;
  static constexpr auto pack_left = &pack_left_pairs;
  static constexpr auto pack_right = &pack_right_as<Format::pairs, Shape>;

  template <int sum, int left, int right>
  static void add_products(TileUnit& unit) {
    unit.add_pairs<sum, left, right>();
  }
  static Vec float_of(Words sum) { return floats_of(sum); }
};

struct Int8Tiles {
  static constexpr size_t k_per_step = 4, header_rows = 2, block_k = block_words * k_per_step;
  static constexpr auto prepare_left = &prepare_left_integers;
  static constexpr auto pack_left = &pack_left_integers<Integer::bytes>;
  static constexpr auto pack_right = &pack_right_integers<Integer::bytes, block_k, Shape>;

  template <int sum, int left, int right>
  static void add_products(TileUnit& unit) {
    unit.add_quads<sum, left, right>();
  }
  static Vec float_of(Words sum) { return __builtin_convertvector(reinterpret_cast<Integers>(sum), Vec); }
};

/// Steps whose operands stay in the first-level cache: 16 KB of each.
constexpr size_t part_steps = 8 * unit_words;

/// sums[16 or 32][16 or 32 of 32 words] (+)= left right, over all steps. Tiles 0 to 3 hold sums, 4 and 5 the left
/// operand, 6 and 7 the right one.
template <class Multiply, bool two_rows, bool two_columns>
void multiply_tiles(TileUnit& unit, uint32_t* sums, bool accumulate, const uint32_t* left, size_t row_stride,
                    const uint32_t* right, size_t width, size_t steps) {
  uint32_t* const lower = sums + unit_rows * Shape::columns;
  if (accumulate) {
    unit.load<0>(sums, Shape::columns);
    if constexpr (two_columns) unit.load<1>(sums + unit_words, Shape::columns);
    if constexpr (two_rows) unit.load<2>(lower, Shape::columns);
    if constexpr (two_rows && two_columns) unit.load<3>(lower + unit_words, Shape::columns);
  } else {
    unit.zero<0>();
    if constexpr (two_columns) unit.zero<1>();
    if constexpr (two_rows) unit.zero<2>();
    if constexpr (two_rows && two_columns) unit.zero<3>();
  }
  for (size_t s = 0; s < steps; s += unit_words, left += unit_words, right += unit_words * width) {
    unit.load<4>(left, row_stride);
    unit.load<6>(right, width);
    Multiply::template add_products<0, 4, 6>(unit);
    if constexpr (two_columns) {
      unit.load<7>(right + unit_words, width);
      Multiply::template add_products<1, 4, 7>(unit);
    }
    if constexpr (two_rows) {
      unit.load<5>(left + unit_rows * row_stride, row_stride);
      Multiply::template add_products<2, 5, 6>(unit);
      if constexpr (two_columns) Multiply::template add_products<3, 5, 7>(unit);
    }
  }
  unit.store<0>(sums, Shape::columns);
  if constexpr (two_columns) unit.store<1>(sums + unit_words, Shape::columns);
  if constexpr (two_rows) unit.store<2>(lower, Shape::columns);
  if constexpr (two_rows && two_columns) unit.store<3>(lower + unit_words, Shape::columns);
}

/// target[rows, columns] (+)= alpha sums, scaled where they are integers.
template <class Multiply>
void write_sums(const Target& target, const uint32_t* sums, const float* row_scales, const uint32_t* scales,
                size_t rows, size_t columns) {
  for (size_t i = 0; i < rows; i++) {
    const float row_scale = Multiply::header_rows == 2 ? row_scales[i] : 1.0f;
    const Vec alpha = broadcast(target.alpha * row_scale);
    float* to = target.data + i * target.stride;
    for_vectors(columns, [&](size_t j, size_t count) {
      Vec sum = Multiply::float_of(load(sums + i * Shape::columns + j));
      if constexpr (Multiply::header_rows == 2) sum *= floats_of(load(scales + j));
      store(to + j, target.accumulate ? multiply_add(alpha, sum, load(to + j, count)) : alpha * sum, count);
    });
  }
}

/// Part by part of k, so that a part of the panel stays in the first-level cache for all rows; sums wait in memory meanwhile, which does not
/// change them.
template <class Multiply>
void multiply(const Target& target, const PackedLeft& left, const uint32_t* right, const uint32_t*, size_t rows,
              size_t columns, size_t width, size_t k_count) {
  constexpr decltype(&multiply_tiles<Multiply, true, true>) tiles[2][2] = {
      {multiply_tiles<Multiply, false, false>, multiply_tiles<Multiply, false, true>},
      {multiply_tiles<Multiply, true, false>, multiply_tiles<Multiply, true, true>}};
  constexpr size_t rows_max = 2 * unit_rows;
  alignas(64) uint32_t sums[block_rows * Shape::columns];
  const uint32_t* const first_step = right + Multiply::header_rows * width;
  const size_t steps = Shape::steps_of(k_count, Multiply::k_per_step);
  TileUnit unit;
  for (size_t step = 0; step < steps; step += part_steps) {
    const bool is_last = step + part_steps >= steps;
    for (size_t row = 0; row < rows; row += rows_max) {
      const size_t present = smaller(rows - row, rows_max);
      const Target part{target.data + row * target.stride, target.stride, target.alpha, target.accumulate};
      uint32_t* const sums_of_rows = sums + row * Shape::columns;
      // It is in the cache when the sums are done.
      for (size_t i = 0; is_last && target.accumulate && i < present; i++) {
        for (size_t j = 0; j < columns; j += unit_words) __builtin_prefetch(part.data + i * part.stride + j, 1);
      }
      tiles[present > unit_rows][columns > unit_words](unit, sums_of_rows, step > 0, left.data + row * left.row_stride + step,
                                                     left.row_stride, first_step + step * width, width,
                                                     smaller(steps - step, part_steps));
      if (is_last) write_sums<Multiply>(part, sums_of_rows, left.row_scales + row, right, present, columns);
    }
  }
}

/// A block of k of 32 rows and 32 columns, in the first-level cache.
template <class Multiply>
double exercise(size_t iterations) {
  constexpr size_t length = 4 * unit_words, rows = 2 * unit_rows, columns = Shape::columns;
  alignas(64) uint32_t left[rows * length] = {}, right[length * columns] = {}, sums[rows * columns];
  TileUnit unit;
  double steps = 0;
  for (; steps < static_cast<double>(iterations); steps += length) {
    multiply_tiles<Multiply, true, true>(unit, sums, false, left, length, right, columns, length);
    asm volatile("" : : "r"(sums) : "memory");
  }
  return 2.0 * rows * columns * Multiply::k_per_step * steps;
}

template <class Multiply>
constexpr ProductKernel tile_kernel = {
    .tile_rows = 2 * unit_rows,
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

constinit const ProductKernel bfloat16_tile_kernel = tile_kernel<Bfloat16Tiles>;
constinit const ProductKernel int8_tile_kernel = tile_kernel<Int8Tiles>;

}  // namespace relora::RELORA_ISA
