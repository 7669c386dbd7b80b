// The interface of a set of micro-kernels to the drivers, which are compiled once for all sets.
//
// c[m, n] (+)= alpha op(a)[m, k] op(b)[k, n]. The right operand is packed into panels of `panel_columns`
// columns, the left one in blocks of rows. A "step" is one k of float32 operands, a pair of k's of bfloat16
// ones or four k's of int8 ones; a packed element is 4 bytes per step in each case.
//
// int8 operands are scaled: the right one per column over all k's packed together, the left one per row over
// the whole depth of the product. Each block of a right panel then begins with two rows of words: the scales
// of the columns, and what the integer sums start from.
#pragma once
#include <cstddef>
#include <cstdint>

namespace relora {

/// op(data): element (i, j) is data[i * stride + j], or data[j * stride + i] when transposed. Elements are
/// float32, or bfloat16 as it is kept between the passes.
struct Operand {
  Operand(const float* data, size_t stride, bool transposed)
      : data(data), stride(stride), transposed(transposed), is_bfloat16(false) {}
  Operand(const uint16_t* data, size_t stride, bool transposed)
      : data(data), stride(stride), transposed(transposed), is_bfloat16(true) {}

  Operand(const Operand& same, bool transposed)
      : data(same.data), stride(same.stride), transposed(transposed), is_bfloat16(same.is_bfloat16) {}

  /// The same operand, marked as being in the cache at a stride that avoids set conflicts: it is read in place if it needs no conversion.
  Operand in_cache() const {
    Operand same = *this;
    same.is_in_cache = true;
    return same;
  }

  const void* data;
  size_t stride;
  bool transposed, is_bfloat16, is_in_cache = false;
};

/// Where and how the result is written.
struct Target {
  float* data;
  size_t stride;
  float alpha;
  bool accumulate;
};

/// A packed block of the left operand: element (row, k) at data[row / tile_rows * panel + row % tile_rows * row_stride + k * k_stride].
/// Integers come with the scale of each row.
struct PackedLeft {
  const uint32_t* data;
  size_t panel, row_stride, k_stride;
  const float* row_scales = nullptr;
};

/// Most rows of one packed left block: it stays, with one right panel, in the second-level cache.
constexpr size_t block_rows = 192;
/// Words of k of one block: k's, or pairs or fours of them where both operands are packed so.
constexpr size_t block_words = 256;

struct ProductKernel {
  size_t tile_rows;        // rows that are computed at a time: blocks of rows are multiples of it
  size_t panel_columns;    // columns of a full right panel
  size_t column_quantum;   // the last panel's width is rounded up to this
  size_t step_quantum;     // and the steps of its last block to this
  size_t k_per_step;       // 1, 2 for pairs, 4 for int8
  size_t block_k;          // longest piece of k summed in registers; fixed, so sums depend on k alone
  size_t header_rows;      // rows of words before the steps of each block of a right panel

  /// Computes what packing must know about whole rows over all `depth` k's: called with the same memory before the blocks of k are packed.
  /// Null if rows are packed without it.
  void (*prepare_left)(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t depth);
  PackedLeft (*pack_left)(uint32_t* packed, const Operand& left, size_t row, size_t rows, size_t k,
                          size_t k_count);
  /// Packs k's [k, k + k_count) of panel `panel` of an operand with n columns to packed[steps, width of the
  /// panel], block by block where blocks have headers.
  void (*pack_right)(uint32_t* packed, const Operand& right, size_t k, size_t k_count, size_t n,
                     size_t panel);
  /// target[rows, columns] (+)= alpha left right, right one panel of `width` packed columns. `next` is the panel that will be read after it:
  /// a kernel may bring it into the second-level cache meanwhile. Null if there is none.
  void (*multiply)(const Target& target, const PackedLeft& left, const uint32_t* right, const uint32_t* next, size_t rows,
                   size_t columns, size_t width, size_t k_count);
  /// Runs at least `iterations` steps of the inner loop over operands in the first-level cache; returns the
  /// floating-point operations done.
  double (*exercise)(size_t iterations);
};

/// Size of one packed left block of any kernel, in words; includes the padding that avoids cache set conflicts between rows.
constexpr size_t packed_left_words = block_rows * (block_words + 32);

}  // namespace relora
