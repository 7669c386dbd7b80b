// Packing for int8 products: floats are scaled to [-127, 127] and rounded to the nearest integer, ties to
// even. A scale is the largest absolute value / 127. Where that value is infinite or NaN the scale is NaN, so
// that every result of the row or column is NaN; one too small to divide by counts as zero.
#pragma once
#include <cassert>
#include <cmath>

#include "pack.h"

namespace relora::RELORA_ISA {

/// Absolute values as integers, which order as the floats do, NaN last.
static inline Words magnitude(Vec v) { return bits_of(v) & 0x7fffffff; }
static inline Words larger_magnitude(Words a, Words b) {
  return reinterpret_cast<Integers>(a) > reinterpret_cast<Integers>(b) ? a : b;
}

struct Scale {
  float scale, inverse;
};
static inline Scale scale_of(uint32_t largest_magnitude) {
  float largest;
  std::memcpy(&largest, &largest_magnitude, sizeof largest);
  if (!std::isfinite(largest)) return {NAN, 0.0f};
  constexpr float least = 0x1p-120f;  // 127 / least is finite
  return largest < least ? Scale{0.0f, 0.0f} : Scale{largest / 127.0f, 127.0f / largest};
}

/// The integer nearest to v * inverse, plus a shift that leaves it in two's complement in the low bits of the
/// word. Multiplication and addition are not fused, so that every instruction set rounds alike.
constexpr float integer_shift = 0x1.8p23f;
static inline Vec shifted_integer(Vec v, Vec inverse) { return v * inverse + integer_shift; }
static inline Words low_byte(Vec v, Vec inverse) { return bits_of(shifted_integer(v, inverse)) & 0xff; }

/// Four k's of p[count], count <= 4 * lanes, in each word, zeros after them.
template <class Element>
static inline Words load_quads(const Element* p, size_t count, Vec inverse) {
  typedef uint8_t Bytes __attribute__((vector_size(lanes)));
  Bytes bytes[4] = {};
  for (size_t i = 0; i < 4 && i * lanes < count; i++) {
    const Vec v = load(p + i * lanes, smaller(count - i * lanes, lanes));
    bytes[i] = __builtin_convertvector(low_byte(v, inverse), Bytes);
  }
  Words words;
  std::memcpy(&words, bytes, sizeof words);
  return words;
}

template <class Element>
static uint32_t largest_magnitude(const Element* p, size_t count) {
  Words most = {};
  for_vectors(count, [&](size_t i, size_t n) { most = larger_magnitude(most, magnitude(load(p + i, n))); });
  uint32_t each_lane[lanes], largest = 0;
  store(each_lane, most);
  for (const uint32_t lane : each_lane) largest = lane > largest ? lane : largest;
  return largest;
}

/// Bytes 0 and 2, or 1 and 3, of each word as int16.
typedef int16_t Halves __attribute__((vector_size(lanes * 4)));
static inline Words even_bytes(Words quads) {
  return reinterpret_cast<Words>((reinterpret_cast<Halves>(quads) << 8) >> 8);
}
static inline Words odd_bytes(Words quads) {
  return reinterpret_cast<Words>(reinterpret_cast<Halves>(quads) >> 8);
}

/// Byte `index` of each word.
static inline Integers byte_of(Words quads, size_t index) {
  return reinterpret_cast<Integers>(quads << (24 - 8 * index)) >> 24;
}

constexpr size_t integer_tile_rows = 6;
/// A packed left block begins with the scales of its rows and their inverses.
constexpr size_t left_header_words = 2 * block_rows;

template <class Element>
static void scale_left_rows(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t depth) {
  float* const scales = reinterpret_cast<float*>(packed);
  for (size_t i = 0; i < rows; i++) {
    const Element* from = static_cast<const Element*>(left.data) + (row + i) * left.stride;
    const Scale scale = scale_of(largest_magnitude(from, depth));
    scales[i] = scale.scale;
    scales[block_rows + i] = scale.inverse;
  }
}

/// Left operands are activations: rows of [tokens, features], never transposed.
static void prepare_left_integers(uint32_t* packed, const Operand& left, size_t row, size_t rows,
                                  size_t depth) {
  assert(!left.transposed);
  if (left.is_bfloat16) return scale_left_rows<uint16_t>(packed, left, row, rows, depth);
  scale_left_rows<float>(packed, left, row, rows, depth);
}

/// Layout of a step's four integers in the left block.
enum class Integer {
  biased_bytes,  // one word: integer + 128, unsigned
  bytes,         // one word: two's complement
  halves,        // two words: k's 0 and 2, then 1 and 3, as int16
  floats,        // four words: float32
};

template <Integer form, class Element>
static PackedLeft pack_integer_rows(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t k,
                                    size_t k_count) {
  constexpr size_t words_per_step = form == Integer::floats ? 4 : form == Integer::halves ? 2 : 1;
  const size_t words = (k_count + 3) / 4 * words_per_step;
  // Padding as for other formats; missing k's of the last step are multiplied by zeros of the right operand.
  const size_t row_stride = (words + 15) / 16 * 16 + 16;
  const float* const scales = reinterpret_cast<const float*>(packed);
  uint32_t* const data = packed + left_header_words;
  for (size_t i = 0; i < rows; i++) {
    const Element* from = static_cast<const Element*>(left.data) + (row + i) * left.stride + k;
    const Vec inverse = broadcast(scales[block_rows + i]);
    uint32_t* to = data + i * row_stride;
    if constexpr (form == Integer::floats) {
      for_vectors((k_count + 3) / 4 * 4, [&](size_t s, size_t) {
        const Vec v = s < k_count ? load(from + s, smaller(k_count - s, lanes)) : Vec{};
        store(to + s, bits_of(shifted_integer(v, inverse) - integer_shift));
      });
      continue;
    }
    for (size_t s = 0; s < k_count; s += 4 * lanes) {
      prefetch(from + 2 * left.stride + s, 4 * lanes);
      const Words quads = load_quads(from + s, smaller(k_count - s, 4 * lanes), inverse);
      if constexpr (form == Integer::halves) {
        store(to + s / 2, zip_low(even_bytes(quads), odd_bytes(quads)));
        store(to + s / 2 + lanes, zip_high(even_bytes(quads), odd_bytes(quads)));
      } else {
        store(to + s / 4, form == Integer::biased_bytes ? quads ^ 0x80808080 : quads);
      }
    }
  }
  return {data, integer_tile_rows * row_stride, row_stride, 1, scales};
}

template <Integer form>
static PackedLeft pack_left_integers(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t k,
                                     size_t k_count) {
  if (left.is_bfloat16) return pack_integer_rows<form, uint16_t>(packed, left, row, rows, k, k_count);
  return pack_integer_rows<form, float>(packed, left, row, rows, k, k_count);
}

/// The scales of `columns` columns over k's [k, k + k_count), as words, and zeros up to `width`.
template <class Element>
static void scale_columns(uint32_t* scales, float* inverses, const Operand& right, size_t column,
                          size_t columns, size_t width, size_t k, size_t k_count) {
  const Element* const data = static_cast<const Element*>(right.data);
  uint32_t* const largest = scales;  // until they are known
  std::memset(largest, 0, width * sizeof *largest);
  if (right.transposed) {
    for (size_t j = 0; j < columns; j++) {
      largest[j] = largest_magnitude(data + (column + j) * right.stride + k, k_count);
    }
  } else {
    for (size_t i = 0; i < k_count; i++) {
      const Element* from = data + (k + i) * right.stride + column;
      prefetch(from + 8 * right.stride, columns);
      for_vectors(columns, [&](size_t j, size_t count) {
        store(largest + j, larger_magnitude(load(largest + j), magnitude(load(from + j, count))));
      });
    }
  }
  for (size_t j = 0; j < width; j++) {
    const Scale scale = scale_of(largest[j]);
    std::memcpy(scales + j, &scale.scale, sizeof *scales);
    inverses[j] = scale.inverse;
  }
}

/// The steps of one block: [steps, width], four k's of a column in each word, zeros where there are none.
template <class Element>
static void pack_integer_steps(uint32_t* packed, const float* inverses, const Operand& right, size_t column,
                               size_t columns, size_t width, size_t k, size_t k_count) {
  const Element* const data = static_cast<const Element*>(right.data);
  const size_t steps = (k_count + 3) / 4;
  if (!right.transposed) {
    for (size_t s = 0; s < steps; s++) {
      const Element* from = data + (k + 4 * s) * right.stride + column;
      const size_t present = smaller(k_count - 4 * s, 4);
      for (size_t i = 0; i < present; i++) prefetch(from + (8 + i) * right.stride, columns);
      for_vectors(columns, [&](size_t j, size_t count) {
        const Vec inverse = load(inverses + j);
        Words quads = {};
        for (size_t i = 0; i < present; i++) {
          quads |= low_byte(load(from + i * right.stride + j, count), inverse) << (8 * i);
        }
        store(packed + s * width + j, quads);
      });
    }
    return;
  }
  for (size_t j = 0; j < columns; j += lanes) {
    for (size_t s = 0; s < steps; s += lanes) {
      Words rows[lanes];
      for (size_t i = 0; i < lanes; i++) {
        if (j + i >= columns) {
          rows[i] = Words{};
          continue;
        }
        const Element* from = data + (column + j + i) * right.stride + k + 4 * s;
        const size_t count = smaller(k_count - 4 * s, 4 * lanes);
        prefetch(from + lanes * right.stride, count);
        rows[i] = load_quads(from, count, broadcast(inverses[j + i]));
      }
      transpose(rows);
      for (size_t i = 0; i < smaller(steps - s, lanes); i++) store(packed + (s + i) * width + j, rows[i]);
    }
  }
}

/// One panel of the right operand: for each block of k a row of scales, a row of what the sums start from,
/// and [steps, width]. A left operand packed with 128 added adds 128 times the sum of a column to each result,
/// so there the sums start from as much below zero.
template <Integer left_form, size_t block_k, class Shape>
static void pack_right_integers(uint32_t* packed, const Operand& right, size_t k, size_t k_count, size_t n,
                                size_t panel) {
  const size_t column = panel * Shape::columns;
  const size_t columns = Shape::columns_of(n, panel), width = Shape::width_of(n, panel);
  const uint32_t* const scales = packed;
  alignas(64) float inverses[Shape::columns];
  (right.is_bfloat16 ? scale_columns<uint16_t> : scale_columns<float>)(packed, inverses, right, column,
                                                                       columns, width, k, k_count);
  for (size_t done = 0; done < k_count; done += block_k) {
    const size_t block = smaller(k_count - done, block_k), steps = Shape::steps_of(block, 4);
    uint32_t* const starts = packed + width;
    uint32_t* const words = packed + 2 * width;
    if (done > 0) std::memcpy(packed, scales, width * sizeof *scales);
    if constexpr (Shape::step_quantum > 1) std::memset(words, 0, steps * width * sizeof *words);
    (right.is_bfloat16 ? pack_integer_steps<uint16_t> : pack_integer_steps<float>)(
        words, inverses, right, column, columns, width, k + done, block);
    for (size_t j = 0; j < width; j += lanes) {
      Integers sum = {};
      for (size_t s = 0; left_form == Integer::biased_bytes && s < steps; s++) {
        const Words quads = load(words + s * width + j);
        for (size_t i = 0; i < 4; i++) sum -= byte_of(quads, i);
      }
      store(starts + j, reinterpret_cast<Words>(sum * 128));
    }
    packed = words + steps * width;
  }
}

}  // namespace relora::RELORA_ISA
