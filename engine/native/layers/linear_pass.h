// Linear layers inside a fused pass: their description, and a worker's operations on its rows. Layers with the same input share its
// packing.
#pragma once
#include <span>

#include "packed_base.h"

namespace relora {

/// How a layer with an adapter is computed (docs/performance.md has the costs):
/// separate: y = x W + s (x A) B, with W packed once a cycle;
/// merged: y = x W', W' = W + s A B packed once a step; A and B get their gradients from x, x A and dy Bᵀ;
/// weight_gradient: y = x W' too; the gradients of A and B come from the dense xᵀ dy, which is freed with the layer.
enum class Graph { separate, merged, weight_gradient };

/// y = x W, or y = x W + s (x A) B if rank > 0. In the backward pass a frozen A has no `da`, and a frozen W has a `dweight` only if its
/// gradient is requested in addition to that of its input, without an adapter.
struct LinearPass {
  size_t in = 0, out = 0;
  const PackedBase* base = nullptr;  // frozen W, or W' in a merged graph; null: `weight` is trained
  const float* weight = nullptr;     // [in, out]
  Graph graph = Graph::separate;
  size_t rank = 0;
  const float *a = nullptr, *b = nullptr;  // [in, rank], [rank, out]
  float scale = 0;
  const float* mask = nullptr;  // [rows, in], for the adapter's input: 0, or the factor of elements that are kept; null: no dropout
  const float* bias = nullptr;  // [out], added to each row; null: none. Only queries, keys and values have one.
  // For the backward pass; dscale[1] is the gradient of the g in scale = tanh(g).
  float *dweight = nullptr, *da = nullptr, *db = nullptr, *dscale = nullptr, *dbias = nullptr;

  bool has_path() const { return rank > 0 && graph == Graph::separate; }
  /// Whether the backward pass computes p = s dy Bᵀ: for dx of a separate path, and for dA if that is not derived from dW.
  bool has_p() const { return has_path() || (graph == Graph::merged && da != nullptr); }
};

/// Calls body(worker, begin, count) for every block of rows, on all threads.
template <class Body>
void for_row_blocks(Context& context, const RowBlocks& blocks, const Body& body) {
  context.pool.run(blocks.count, [&](size_t block, unsigned worker) {
    body(worker, blocks.begin(block), blocks.end(block) - blocks.begin(block));
  });
}

/// The right operands of one layer's forward pass, alive until the arena's next reset.
struct ForwardPanels {
  ForwardPanels(Context& context, const ProductKernel& kernel, const LinearPass& linear);
  RightPanels weight, a, b;
};

struct BackwardPanels {
  BackwardPanels(Context& context, const ProductKernel& kernel, const LinearPass& linear);
  RightPanels weight, a, b;  // Wᵀ [out, in], Aᵀ [rank, in], Bᵀ [out, rank]
};

/// One layer for the rows of a worker: y (+)= x W + s (x A) B + bias, with xa[rows, rank] = x A on the way.
struct LinearRows {
  const LinearPass& linear;
  const ForwardPanels& panels;
  Target y;
  float* xa;
};

/// The rows of a worker.
struct WorkerRows {
  Context& context;
  unsigned worker;
  size_t first, count;
  float* spare;  // for layers that are summed apart (apart_sums.h); null: all accumulate in place
};

constexpr size_t sharing_max = 3;  // query, key and value

void linear_rows(const WorkerRows& rows, const Operand& x, std::span<const LinearRows> layers);
/// Computes only what the backward pass needs: xa.
void linear_through_a(const WorkerRows& rows, const Operand& x, const LinearRows& layer);

/// dx[rows, in] (+)= dy Wᵀ + p Aᵀ, p[rows, rank] = s dy Bᵀ; with sums apart, p is without s.
void linear_rows_backward(const WorkerRows& rows, const Target& dx, const LinearPass& linear, const BackwardPanels& panels,
                          const Operand& dy, float* p);

/// Inputs of the gradients of one layer's weights, for all rows of a pass.
struct LinearGradients {
  const LinearPass& linear;
  Operand dy, p, xa;  // [rows, out], [rows, rank], [rows, rank]; xa of a separate path, p where the layer has it
};

/// dW = xᵀ dy, or dA = xᵀ p and dB = s (x A)ᵀ dy, for layers that share x[rows, in]; dW and dA only if requested. For layers that are
/// `apart` all gradients are computed here, for others all except those of biases.
void linear_gradients(Context& context, const ProductKernel& kernel, const Operand& x,
                      std::span<const LinearGradients> layers, size_t rows, bool apart = false);

/// A single frozen layer with a separate adapter path: y[rows, out], and xa[rows, rank] = x A if there is an adapter.
void linear_layer_forward(Context& context, const LinearPass& linear, float* y, float* xa, const float* x,
                          size_t rows);
/// dx[rows, in], and `da` (unless A is frozen) and `db` of an adapter; without one x and xa are not read.
void linear_layer_backward(Context& context, const LinearPass& linear, float* dx, const float* dy, const float* x,
                           const float* xa, size_t rows);

}  // namespace relora
