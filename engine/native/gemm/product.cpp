#include "product.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <span>

namespace relora {

namespace {

size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }
size_t steps_of(const ProductKernel& kernel, size_t k) {
  return divide_up(divide_up(k, kernel.k_per_step), kernel.step_quantum) * kernel.step_quantum;
}
size_t panels_of(const ProductKernel& kernel, size_t n) { return divide_up(n, kernel.panel_columns); }

/// Rows of words that the first k rows of a right operand take in a panel: their steps, and the headers of their blocks.
size_t packed_rows_of(const ProductKernel& kernel, size_t k) {
  return steps_of(kernel, k) + divide_up(k, kernel.block_k) * kernel.header_rows;
}

/// Columns of one panel, and its width in memory.
size_t panel_columns(const ProductKernel& kernel, size_t n, size_t panel) {
  return std::min(kernel.panel_columns, n - panel * kernel.panel_columns);
}
size_t panel_width(const ProductKernel& kernel, size_t n, size_t panel) {
  return divide_up(panel_columns(kernel, n, panel), kernel.column_quantum) * kernel.column_quantum;
}
size_t panel_offset(const ProductKernel& kernel, size_t k, size_t panel) {
  return panel * kernel.panel_columns * packed_rows_of(kernel, k);
}

struct Range {
  size_t begin, end;
};

/// Outputs of one kernel for the rows and panels of one task: for each block of k the left rows are packed once and multiplied by every
/// panel. Each output has `n_max` columns, which may be fewer than its panels have.
void run_outputs(uint32_t* left_block, const Operand& left_operand, std::span<const Output> outputs,
                 Range rows, Range panels, size_t n_max) {
  const ProductKernel& kernel = *outputs.front().right.kernel;
  const size_t count = rows.end - rows.begin, depth = outputs.front().right.k;
  assert(outputs.front().right.k_begin % (kernel.k_per_step * kernel.step_quantum) == 0);
  if (kernel.prepare_left) kernel.prepare_left(left_block, left_operand, rows.begin, count, depth);
  for (size_t k = 0; k < depth; k += kernel.block_k) {
    const size_t k_count = std::min(kernel.block_k, depth - k);
    const PackedLeft left = kernel.pack_left(left_block, left_operand, rows.begin, count, k, k_count);
    for (const auto& [target, right] : outputs) {
      const size_t n = std::min(n_max, right.n), end = std::min(panels.end, panels_of(kernel, n));
      const size_t rows_before = packed_rows_of(kernel, right.k_begin + k);
      const auto words_of = [&, &right = right](size_t panel) {
        return right.words + panel_offset(kernel, right.k_packed, panel) + rows_before * panel_width(kernel, right.n, panel);
      };
      for (size_t panel = panels.begin; panel < end; panel++) {
        const Target part{target.data + rows.begin * target.stride + panel * kernel.panel_columns,
                          target.stride, target.alpha, target.accumulate || k > 0};
        kernel.multiply(part, left, words_of(panel), panel + 1 < end ? words_of(panel + 1) : nullptr, count,
                        panel_columns(kernel, n, panel), panel_width(kernel, right.n, panel), k_count);
      }
    }
  }
}

void run_stage(uint32_t* left_block, const Stage& stage, Range rows, Range panels, size_t n_max) {
  for (size_t begin = 0; begin < stage.count;) {
    size_t end = begin + 1;
    while (end < stage.count && stage.outputs[end].right.kernel == stage.outputs[begin].right.kernel) end++;
    run_outputs(left_block, stage.left, {stage.outputs + begin, end - begin}, rows, panels, n_max);
    begin = end;
  }
}

constexpr size_t all = static_cast<size_t>(-1);

/// Rows of one block times panels that are packed on the fly: for operands used with a single block of rows.
void multiply_unpacked(Context& context, unsigned worker, const ProductKernel& kernel, const Target& target,
                       const Operand& left, const Operand& right, Range rows, Range panels, size_t n,
                       size_t k_total) {
  uint32_t* const left_block = context.left_block(worker);
  uint32_t* const right_block = context.right_block(worker);
  const size_t count = rows.end - rows.begin;
  if (kernel.prepare_left) kernel.prepare_left(left_block, left, rows.begin, count, k_total);
  for (size_t k = 0; k < k_total; k += kernel.block_k) {
    const size_t k_count = std::min(kernel.block_k, k_total - k);
    const PackedLeft packed = kernel.pack_left(left_block, left, rows.begin, count, k, k_count);
    for (size_t panel = panels.begin; panel < panels.end; panel++) {
      kernel.pack_right(right_block, right, k, k_count, n, panel);
      const Target part{target.data + rows.begin * target.stride + panel * kernel.panel_columns,
                        target.stride, target.alpha, target.accumulate || k > 0};
      kernel.multiply(part, packed, right_block, nullptr, count, panel_columns(kernel, n, panel),
                      panel_width(kernel, n, panel), k_count);
    }
  }
}

}  // namespace

/// An equal number of blocks per thread, unless they would become too short to be worth reading the right operand.
RowBlocks::RowBlocks(const ProductKernel& kernel, size_t m, size_t threads)
    : m(m), tile_rows(kernel.tile_rows), tiles(divide_up(m, tile_rows)) {
  constexpr size_t short_block = 48;
  const size_t least = divide_up(tiles, block_rows / tile_rows), even = divide_up(least, threads) * threads;
  count = std::max(least, std::min(even, m / short_block));
  longest = divide_up(tiles, std::max<size_t>(count, 1)) * tile_rows;
}

size_t right_panels_words(const ProductKernel& kernel, size_t k, size_t n) {
  return divide_up(n, kernel.column_quantum) * kernel.column_quantum * packed_rows_of(kernel, k);
}

size_t panels_unit(const ProductKernel& kernel) {
  return std::lcm(kernel.panel_columns, kernel.k_per_step * kernel.step_quantum);
}

RightPanels behind_columns(const RightPanels& panels, size_t columns) {
  RightPanels rest = panels;
  rest.words += panel_offset(*panels.kernel, panels.k_packed, columns / panels.kernel->panel_columns);
  rest.n -= columns;
  return rest;
}

RightPanels pack_right_panels_here(const ProductKernel& kernel, uint32_t* words, const Operand& right,
                                   size_t k, size_t n) {
  for (size_t panel = 0; panel < panels_of(kernel, n); panel++) {
    kernel.pack_right(words + panel_offset(kernel, k, panel), right, 0, k, n, panel);
  }
  return {&kernel, words, k, n, k};
}

RightPanels pack_right_panels(Context& context, const ProductKernel& kernel, uint32_t* words,
                              const Operand& right, size_t k, size_t n) {
  // Integers are scaled by whole columns: their panels are packed in one piece.
  const size_t pieces = kernel.header_rows > 0 ? 1 : divide_up(k, kernel.block_k);
  const size_t piece_k = pieces == 1 ? k : kernel.block_k;
  context.pool.run(panels_of(kernel, n) * pieces, [&](size_t task, unsigned) {
    const size_t panel = task / pieces, from = task % pieces * piece_k;
    const size_t inside = packed_rows_of(kernel, from) * panel_width(kernel, n, panel);
    kernel.pack_right(words + panel_offset(kernel, k, panel) + inside, right, from,
                      std::min(piece_k, k - from), n, panel);
  });
  return {&kernel, words, k, n, k};
}

void product(Context& context, const ProductKernel& kernel, const Target& target, const Operand& left,
             const Operand& right, size_t m, size_t n, size_t k) {
  // Integers are scaled by whole columns, whatever the number of rows.
  if (m > block_rows || kernel.header_rows > 0) {
    uint32_t* words = context.shared(Shared::right_panels).words(right_panels_words(kernel, k, n));
    const RightPanels panels = pack_right_panels(context, kernel, words, right, k, n);
    return product_of_panels(context, target, left, panels, m);
  }
  // Every panel is used with only these few rows: packing it on the fly saves a trip through memory.
  const size_t panels = panels_of(kernel, n);
  const size_t panels_per_task = std::clamp<size_t>(panels / (4 * context.pool.threads()), 1, 8);
  context.pool.run(divide_up(panels, panels_per_task), [&](size_t task, unsigned worker) {
    const Range range{task * panels_per_task, std::min(panels, (task + 1) * panels_per_task)};
    multiply_unpacked(context, worker, kernel, target, left, right, {0, m}, range, n, k);
  });
}

void product_of_panels(Context& context, const Target& target, const Operand& left, const RightPanels& right,
                       size_t m) {
  const size_t threads = context.pool.threads(), panels = panels_of(*right.kernel, right.n);
  const RowBlocks blocks(*right.kernel, m, threads);
  // Columns are split too if there are too few blocks of rows to keep every thread busy to the end; each group packs the left rows again,
  // so it has to be wide.
  const size_t groups_max = divide_up(right.n, 256);
  const size_t groups = threads == 1 ? 1 : std::min(groups_max, divide_up(4 * threads, blocks.count));
  const Output output{target, right};
  context.pool.run(blocks.count * groups, [&](size_t task, unsigned worker) {
    const size_t block = task / groups, group = task % groups;
    const Range row_range{blocks.begin(block), blocks.end(block)};
    const Range panel_range{panels * group / groups, panels * (group + 1) / groups};
    run_stage(context.left_block(worker), {left, &output, 1}, row_range, panel_range, all);
  });
}

void product_chain(Context& context, std::initializer_list<Stage> stages, size_t m) {
  const RowBlocks blocks(*stages.begin()->outputs->right.kernel, m, context.pool.threads());
  context.pool.run(blocks.count, [&](size_t block, unsigned worker) {
    const Range row_range{blocks.begin(block), blocks.end(block)};
    for (const Stage& stage : stages) {
      run_stage(context.left_block(worker), stage, row_range, {0, all}, all);
    }
  });
}

void product_stage_here(Context& context, unsigned worker, const Stage& stage, size_t rows) {
  run_stage(context.left_block(worker), stage, {0, rows}, {0, all}, all);
}

void product_here(Context& context, unsigned worker, const ProductKernel& kernel, const Target& target,
                  const Operand& left, const Operand& right, size_t m, size_t n, size_t k) {
  for (size_t row = 0; row < m; row += block_rows) {
    multiply_unpacked(context, worker, kernel, target, left, right, {row, std::min(m, row + block_rows)},
                      {0, panels_of(kernel, n)}, n, k);
  }
}

void product_of_panels_here(Context& context, unsigned worker, const Target& target, const Operand& left,
                            const RightPanels& right, size_t m, size_t n) {
  const Output output{target, right};
  for (size_t row = 0; row < m; row += block_rows) {
    const Range row_range{row, std::min(m, row + block_rows)};
    run_stage(context.left_block(worker), {left, &output, 1}, row_range, {0, all}, n);
  }
}

}  // namespace relora
