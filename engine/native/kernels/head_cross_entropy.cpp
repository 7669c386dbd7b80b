// The language model's head and its loss in one kernel. [rows, vocabulary] is never stored: for a chunk of rows, logits are computed for a
// block of the vocabulary at a time, in the L2 cache, and only their exponentials are kept, in the form that the two following products
// read. Every exponential of a row stands for e^(logit - reference), so the gradient of the logits, scale (p - onehot), equals the kept row
// up to one factor and its target: the factor is applied to the rows of x and dx instead, so that logits are traversed only once.
//
// In int8 each row of x and of the head is scaled by its largest value (../gemm/pack_int8.h). For dx each row of the exponentials and each
// column of the head have a scale for every slab of the vocabulary. The target, whose gradient p - 1 would be far larger than the others of
// its slab, is left out of that product and added in float32. dhead is computed as always, from the same exponentials.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../gemm/pack.h"
#include "../gemm/product.h"
#include "kernels.h"
#include "rows.h"

namespace relora::RELORA_ISA {

namespace {

/// Columns and rows of logits at a time: together with the packed rows of the head and of x they fit the L2 cache. Columns are a multiple
/// of every kernel's panel; rows of x are packed again for each block of columns.
constexpr size_t block_columns = 384, piece_rows = 128;
/// Rows of the head that are packed at a time for dx.
constexpr size_t slab_rows = 1024;
/// Exponentials kept of a chunk. More rows at a time read and write dhead less often.
constexpr size_t kept_bytes = size_t{72} << 20;
/// The logit of the target is the reference of a row, unless some block has logits larger by this margin.
constexpr float margin = 30.0f;

void store_element(float* p, Vec v, size_t count) { store(p, v, count); }
/// Rounded to bfloat16.
void store_element(uint16_t* p, Vec v, size_t count) {
  typedef uint16_t Halves __attribute__((vector_size(lanes * 2)));
  const Halves halves = __builtin_convertvector(round_in_place(v) >> 16, Halves);
  std::memcpy(p, &halves, count * sizeof *p);
}
void store_element(float* p, float value) { *p = value; }
void store_element(uint16_t* p, float value) {
  *p = static_cast<uint16_t>(round_in_place(broadcast(value))[0] >> 16);
}
Vec load_element(const float* p, size_t count) { return load(p, count); }
Vec load_element(const uint16_t* p, size_t count) { return load(p, count); }

float dot(const float* a, const float* b, size_t n) {
  Vec sum = {};
  for_vectors(n, [&](size_t i, size_t count) {
    sum = multiply_add(load(a + i, count), load(b + i, count), sum);
  });
  return sum_lanes(sum);
}

/// Statistics of each row of a chunk, by row, and for each block of the vocabulary, [blocks, rows].
struct Statistics {
  float *reference, *at_target, *factor;
  float* of_target;  // gradient of the target's logit, up to `factor`
  float *block_reference, *block_sum;
};

Statistics statistics_in(float* memory, size_t rows, size_t blocks) {
  return {memory,            memory + rows,     memory + 2 * rows,
          memory + 3 * rows, memory + 4 * rows, memory + (4 + blocks) * rows};
}
size_t statistics_floats(size_t rows, size_t blocks) { return (4 + 2 * blocks) * rows; }

/// Sum of e^(logit - reference); the terms are also written to `kept` unless that is null.
template <class Element>
float exponentials(Element* kept, const float* logits, size_t n, float reference) {
  Vec sum = {};
  for_vectors(n, [&](size_t i, size_t count) {
    Vec e = exponential(load(logits + i, count) - reference);
    if (kept != nullptr) store_element(kept + i, e, count);
    if (count < lanes) {  // lanes behind the row must not count
      float last[lanes] = {};
      store(last, e, count);
      e = load(last);
    }
    sum += e;
  });
  return sum_lanes(sum);
}

template <class Element>
struct Chunk {
  Context& context;
  const ProductKernel& kernel;  // of the logits
  const HeadShape& shape;
  const float *x, *head;   // x of the chunk
  const int32_t* targets;  // -1: the row does not count
  size_t rows, blocks;
  Element* kept;  // [rows, stride], null where no gradient is wanted
  size_t stride;
  Statistics of;

  /// All rows against one block of the vocabulary, given the packed rows of the head.
  void block(size_t index, unsigned worker) const {
    const size_t column = index * block_columns, columns = std::min(block_columns, shape.vocabulary - column);
    float* const logits = context.worker_memory(worker);
    uint32_t* const words = reinterpret_cast<uint32_t*>(logits + piece_rows * block_columns);
    const RightPanels panels =
        pack_right_panels_here(kernel, words, {head + column * shape.dim, shape.dim, true}, shape.dim,
                               columns);
    for (size_t begin = 0; begin < rows; begin += piece_rows) {
      const size_t count = std::min(piece_rows, rows - begin);
      const Operand inputs{x + begin * shape.dim, shape.dim, false};
      product_of_panels_here(context, worker, {logits, block_columns, 1.0f, false}, inputs, panels, count,
                             columns);
      for (size_t i = 0; i < count; i++) {
        const size_t row = begin + i, target = static_cast<size_t>(targets[row]);
        const float* from = logits + i * block_columns;
        if (target - column < columns) of.at_target[row] = from[target - column];
        const float most = largest_of(from, columns);
        const float reference = most > of.reference[row] + margin ? most : of.reference[row];
        of.block_reference[index * rows + row] = reference;
        of.block_sum[index * rows + row] =
            exponentials(kept == nullptr ? nullptr : kept + row * stride + column, from, columns, reference);
      }
    }
  }

  /// The loss of a row in nats: log(sum e^logit) - logit[target]. NaN and infinite logits give a NaN or infinite loss. Converts the kept
  /// row to the gradient of its logits, up to `factor`; in int8 the target is 0 for now.
  float finish(size_t row) const {
    Element* const to = kept == nullptr ? nullptr : kept + row * stride;
    if (targets[row] < 0) {
      of.factor[row] = of.of_target[row] = 0;
      if (to != nullptr) std::fill_n(to, shape.vocabulary, Element{});
      return 0;
    }
    float most = of.block_reference[row];
    for (size_t b = 1; b < blocks; b++) most = std::max(most, of.block_reference[b * rows + row]);
    double sum = 0;
    for (size_t b = 0; b < blocks; b++) {
      const float reference = of.block_reference[b * rows + row];
      double share = of.block_sum[b * rows + row];
      if (reference < most) {
        const double shift = std::exp(static_cast<double>(reference) - static_cast<double>(most));
        share *= shift;
        if (to != nullptr) rescale(to + b * block_columns, b, static_cast<float>(shift));
      }
      sum += share;
    }
    const double above = static_cast<double>(of.at_target[row]) - static_cast<double>(most);
    of.factor[row] = static_cast<float>(static_cast<double>(shape.gradient_scale) / sum);
    // p - 1 of the target: the subtraction must not use rounded numbers.
    of.of_target[row] = static_cast<float>(std::exp(above) - sum);
    if (to != nullptr) store_element(to + targets[row], shape.in_int8 ? 0.0f : of.of_target[row]);
    return static_cast<float>(std::log(sum) - above);
  }

  /// Of a row whose target was left out of the product: dx, still up to `factor`, and the kept row.
  void add_target(float* dx, size_t row) const {
    if (targets[row] < 0) return;
    const size_t target = static_cast<size_t>(targets[row]);
    const float gradient = of.of_target[row];
    store_element(kept + row * stride + target, gradient);
    for_vectors(shape.dim, [&](size_t i, size_t count) {
      store(dx + i, multiply_add(load(head + target * shape.dim + i, count), broadcast(gradient), load(dx + i, count)), count);
    });
  }

  void rescale(Element* to, size_t block, float shift) const {
    const size_t columns = std::min(block_columns, shape.vocabulary - block * block_columns);
    for_vectors(columns, [&](size_t i, size_t count) {
      store_element(to + i, load_element(to + i, count) * shift, count);
    });
  }
};

void scale_row(float* to, const float* from, size_t n, float factor) {
  for_vectors(n, [&](size_t i, size_t count) { store(to + i, load(from + i, count) * factor, count); });
}

/// Rows of a chunk: whole blocks of k of the product that sums over them, if there is space for one.
size_t chunk_rows(const ProductKernel& kernel, size_t row_bytes, size_t rows) {
  const size_t fit = std::max<size_t>(kept_bytes / row_bytes, 64);
  return std::min(rows, fit < kernel.block_k ? fit : fit / kernel.block_k * kernel.block_k);
}

template <class Element>
void in_chunks(Context& context, float* losses, float* dx, float* dhead, const float* x, const float* head,
               const int32_t* targets, const HeadShape& shape, const ProductKernel& kernel) {
  const ProductKernel& rows_kernel = shape.in_int8 ? context.product_kernel(Precision::int8) : kernel;
  const size_t dim = shape.dim, vocabulary = shape.vocabulary;
  const size_t stride = (vocabulary + 31) / 32 * 32 + 32;  // whole cache lines, not a power of two
  const size_t rows_max = chunk_rows(kernel, stride * sizeof(Element), shape.rows);
  const size_t blocks = (vocabulary + block_columns - 1) / block_columns;
  const size_t row_bytes = stride * sizeof(Element);
  Element* const kept = dx == nullptr ? nullptr
                                      : reinterpret_cast<Element*>(
                                            context.shared(Shared::first).words(rows_max * row_bytes / 4));
  const size_t statistics = statistics_floats(rows_max, blocks);
  float* const memory = context.shared(Shared::second).floats(statistics + rows_max * dim);
  float* const scaled = memory + statistics;
  context.reserve_worker_memory(piece_rows * block_columns + right_panels_words(rows_kernel, dim, block_columns));

  for (size_t first = 0; first < shape.rows; first += rows_max) {
    const size_t rows = std::min(rows_max, shape.rows - first);
    const Chunk<Element> chunk{context, rows_kernel, shape, x + first * dim, head, targets + first,
                               rows,    blocks, kept,  stride,          statistics_in(memory, rows, blocks)};
    context.pool.run(rows, [&](size_t row, unsigned) {
      const size_t target = static_cast<size_t>(std::max(chunk.targets[row], 0));
      chunk.of.reference[row] = dot(chunk.x + row * dim, head + target * dim, dim);
    });
    context.pool.run(blocks, [&](size_t block, unsigned worker) { chunk.block(block, worker); });
    context.pool.run(rows, [&](size_t row, unsigned) {
      losses[first + row] = chunk.finish(row);
      if (dhead != nullptr) scale_row(scaled + row * dim, chunk.x + row * dim, dim, chunk.of.factor[row]);
    });
    if (dx == nullptr) continue;

    float* const to = dx + first * dim;
    for (size_t slab = 0; slab < vocabulary; slab += slab_rows) {
      product(context, rows_kernel, {to, dim, 1.0f, slab > 0}, {kept + slab, stride, false},
              {head + slab * dim, dim, false}, rows, dim, std::min(slab_rows, vocabulary - slab));
    }
    context.pool.run(rows, [&](size_t row, unsigned) {
      if (shape.in_int8) chunk.add_target(to + row * dim, row);
      scale_row(to + row * dim, to + row * dim, dim, chunk.of.factor[row]);
    });
    if (dhead != nullptr) {
      product(context, kernel, {dhead, dim, 1.0f, first > 0}, {kept, stride, true}, {scaled, dim, false},
              vocabulary, dim, rows);
    }
  }
}

}  // namespace

/// losses[rows], dx[rows, dim] and dhead[vocabulary, dim] of x[rows, dim] head[vocabulary, dim]^T. Null dx:
/// losses only. Products in bfloat16 read exponentials that are kept in it.
void head_cross_entropy(Context& context, float* losses, float* dx, float* dhead, const float* x,
                        const float* head, const int32_t* targets, const HeadShape& shape,
                        Precision precision) {
  const ProductKernel& kernel = context.product_kernel(precision);
  const auto run = precision == Precision::bfloat16 ? in_chunks<uint16_t> : in_chunks<float>;
  run(context, losses, dx, dhead, x, head, targets, shape, kernel);
}

}  // namespace relora::RELORA_ISA
