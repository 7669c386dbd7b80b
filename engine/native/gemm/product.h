// Products of any size and transposition, on all threads or on one. The sum of an element depends only on k and the kernel: k is split into
// blocks of fixed length that are added in order, and never shared between threads.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "../context.h"

namespace relora {

/// A right operand packed whole for one kernel: its panels one after the other, each [steps of k_packed,
/// width] with the kernel's headers between. Products sum its first k, which is all of k_packed for int8.
struct RightPanels {
  const ProductKernel* kernel;
  const uint32_t* words;
  size_t k_packed, n, k;
  size_t k_begin = 0;  // start of the summed k's: a multiple of the k's of the kernel's `step_quantum`
};

/// Granularity, in columns and in k's, at which panels can be started; not for int8, whose columns are scaled over all k.
size_t panels_unit(const ProductKernel& kernel);
/// The panels without the given number of first columns, a multiple of `panels_unit`.
RightPanels behind_columns(const RightPanels& panels, size_t columns);

/// Result of a left operand: target[m, right.n] (+)= alpha op(left) right.
struct Output {
  Target target;
  RightPanels right;
};

/// A left operand, packed once for all its neighboring outputs of one kernel.
struct Stage {
  Operand left;
  const Output* outputs;
  size_t count;
};

size_t right_panels_words(const ProductKernel& kernel, size_t k, size_t n);
/// Packs op(right)[k, n] into `words`, on all threads or on the caller's.
RightPanels pack_right_panels(Context& context, const ProductKernel& kernel, uint32_t* words,
                              const Operand& right, size_t k, size_t n);
RightPanels pack_right_panels_here(const ProductKernel& kernel, uint32_t* words, const Operand& right,
                                   size_t k, size_t n);

/// target[m, n] (+)= alpha op(left)[m, k] op(right)[k, n]. Each target's alpha counts.
void product(Context& context, const ProductKernel& kernel, const Target& target, const Operand& left,
             const Operand& right, size_t m, size_t n, size_t k);

/// target[m, right.n] (+)= alpha op(left) right.
void product_of_panels(Context& context, const Target& target, const Operand& left, const RightPanels& right,
                       size_t m);

/// The stages in order, block of rows by block of rows: a stage may read what an earlier one has written to the same rows, while it is
/// still in the cache, and operands shared by outputs are read once.
void product_chain(Context& context, std::initializer_list<Stage> stages, size_t m);

/// m rows shared by threads: blocks of whole tiles of the kernel, as even as those allow, none longer than `block_rows`.
struct RowBlocks {
  RowBlocks(const ProductKernel& kernel, size_t m, size_t threads);

  size_t begin(size_t block) const { return tiles * block / count * tile_rows; }
  size_t end(size_t block) const { return std::min(m, begin(block + 1)); }

  size_t m, tile_rows, tiles, count;
  size_t longest;  // rows of the longest block
};

/// One stage for `rows` <= block_rows rows, only on the calling worker.
void product_stage_here(Context& context, unsigned worker, const Stage& stage, size_t rows);

/// The same as `product`, only on the calling worker.
void product_here(Context& context, unsigned worker, const ProductKernel& kernel, const Target& target,
                  const Operand& left, const Operand& right, size_t m, size_t n, size_t k);

/// target[m, n] (+)= alpha op(left) right, only on the calling worker; n may be less than the panels hold.
void product_of_panels_here(Context& context, unsigned worker, const Target& target, const Operand& left,
                            const RightPanels& right, size_t m, size_t n);

}  // namespace relora
