#include "linear_pass.h"

#include <algorithm>

#include "apart_sums.h"

namespace relora {

namespace {

RightPanels pack(Context& context, const ProductKernel& kernel, const Operand& right, size_t k, size_t n) {
  uint32_t* words = context.arena.take<uint32_t>(right_panels_words(kernel, k, n));
  return pack_right_panels(context, kernel, words, right, k, n);
}

/// x A, which a merged graph does not need in its forward pass.
Operand make_xa(Context& context, const ProductKernel& kernel, const Operand& x, const LinearPass& l,
                size_t rows) {
  float* const xa = context.arena.take<float>(rows * l.rank);
  product(context, kernel, {xa, l.rank, 1.0f, false}, x, {l.a, l.rank, false}, rows, l.rank, l.in);
  return {xa, l.rank, false};
}

}  // namespace

ForwardPanels::ForwardPanels(Context& context, const ProductKernel& kernel, const LinearPass& l)
    : weight(l.base ? l.base->forward_panels(context, kernel) : pack(context, kernel, {l.weight, l.out, false}, l.in, l.out)), a(), b() {
  if (!l.has_path()) return;
  a = pack(context, kernel, {l.a, l.rank, false}, l.in, l.rank);
  b = pack(context, kernel, {l.b, l.out, false}, l.rank, l.out);
}

BackwardPanels::BackwardPanels(Context& context, const ProductKernel& kernel, const LinearPass& l)
    : weight(l.base ? l.base->backward_panels(context, kernel) : pack(context, kernel, {l.weight, l.out, true}, l.out, l.in)), a(), b() {
  if (l.has_p()) b = pack(context, kernel, {l.b, l.out, true}, l.out, l.rank);
  if (l.has_path()) a = pack(context, kernel, {l.a, l.rank, true}, l.rank, l.in);
}

void linear_rows(const WorkerRows& rows, const Operand& x, std::span<const LinearRows> layers) {
  if (rows.spare != nullptr) {
    for (const LinearRows& layer : layers) apart_forward(rows, x, layer);
    return;
  }
  Output outputs[2 * sharing_max];
  size_t count = 0;
  // The adapters first: they may need a kernel other than that of the bases, and each kernel packs x for itself.
  for (const LinearRows& layer : layers) {
    const size_t rank = layer.linear.rank;
    if (layer.linear.has_path()) outputs[count++] = {{layer.xa, rank, 1.0f, false}, layer.panels.a};
  }
  for (const LinearRows& layer : layers) {
    const LinearPass& l = layer.linear;
    Target y = layer.y;
    for (size_t i = 0; l.bias != nullptr && i < rows.count; i++) std::copy_n(l.bias, l.out, y.data + i * y.stride);
    y.accumulate |= l.bias != nullptr;
    outputs[count++] = {y, layer.panels.weight};
  }
  product_stage_here(rows.context, rows.worker, {x, outputs, count}, rows.count);
  for (const LinearRows& layer : layers) {
    const LinearPass& l = layer.linear;
    if (!l.has_path()) continue;
    const Output through_b{{layer.y.data, layer.y.stride, l.scale, true}, layer.panels.b};
    product_stage_here(rows.context, rows.worker, {{layer.xa, l.rank, false}, &through_b, 1}, rows.count);
  }
}

void linear_through_a(const WorkerRows& rows, const Operand& x, const LinearRows& layer) {
  if (rows.spare != nullptr) return apart_through_a(rows, x, layer);
  const Output through_a{{layer.xa, layer.linear.rank, 1.0f, false}, layer.panels.a};
  product_stage_here(rows.context, rows.worker, {x, &through_a, 1}, rows.count);
}

void linear_rows_backward(const WorkerRows& rows, const Target& dx, const LinearPass& l, const BackwardPanels& panels,
                          const Operand& dy, float* p) {
  if (rows.spare != nullptr) return apart_backward(rows, dx, l, panels, dy, p);
  Output outputs[2];
  size_t count = 0;
  if (l.has_p()) outputs[count++] = {{p, l.rank, l.scale, false}, panels.b};
  outputs[count++] = {dx, panels.weight};
  product_stage_here(rows.context, rows.worker, {dy, outputs, count}, rows.count);
  if (!l.has_path()) return;
  const Output through_a{{dx.data, dx.stride, 1.0f, true}, panels.a};
  product_stage_here(rows.context, rows.worker, {{p, l.rank, false}, &through_a, 1}, rows.count);
}

void linear_gradients(Context& context, const ProductKernel& kernel, const Operand& x,
                      std::span<const LinearGradients> layers, size_t rows, bool apart) {
  if (apart) {
    for (const LinearGradients& layer : layers) apart_gradients(context, kernel, x, layer, rows);
    return;
  }
  Output outputs[sharing_max];
  const Output* of_layer[sharing_max] = {};
  size_t count = 0;
  for (size_t i = 0; i < layers.size(); i++) {
    const LinearPass& l = layers[i].linear;
    const bool from_dense = l.rank > 0 && l.graph == Graph::weight_gradient;
    Output& output = outputs[count];
    if (l.dweight != nullptr || from_dense) {
      float* const dweight = from_dense ? context.arena.take<float>(l.in * l.out) : l.dweight;
      output = {{dweight, l.out, 1.0f, false}, pack(context, kernel, layers[i].dy, rows, l.out)};
    } else if (l.da != nullptr) {
      output = {{l.da, l.rank, 1.0f, false}, pack(context, kernel, layers[i].p, rows, l.rank)};
    } else {
      continue;
    }
    of_layer[i] = &outputs[count++];
  }
  const Operand x_turned{x, !x.transposed};
  const size_t in = layers.front().linear.in;
  if (count > 0) product_chain(context, {{x_turned, outputs, count}}, in);

  for (size_t i = 0; i < layers.size(); i++) {
    const LinearPass& l = layers[i].linear;
    if (l.rank == 0) continue;
    if (l.graph == Graph::weight_gradient) {
      const Operand dweight{of_layer[i]->target.data, l.out, false};
      if (l.da != nullptr) {
        product(context, kernel, {l.da, l.rank, l.scale, false}, dweight, {l.b, l.out, true}, l.in, l.rank, l.out);
      }
      product(context, kernel, {l.db, l.out, l.scale, false}, {l.a, l.rank, true}, dweight, l.rank, l.out, l.in);
      continue;
    }
    const Operand xa = l.has_path() ? layers[i].xa : make_xa(context, kernel, x, l, rows);
    product(context, kernel, {l.db, l.out, l.scale, false}, {xa, true}, layers[i].dy, l.rank, l.out, rows);
  }
}

void linear_layer_forward(Context& context, const LinearPass& l, float* y, float* xa, const float* x, size_t rows) {
  const ProductKernel& kernel = *l.base->adapter_kernel;
  context.arena.reset();
  const ForwardPanels panels(context, kernel, l);
  // Without an adapter the base can split its columns too: generation has one row at a time.
  if (l.rank == 0) return product_of_panels(context, {y, l.out, 1.0f, false}, {x, l.in, false}, panels.weight, rows);
  for_row_blocks(context, {kernel, rows, context.pool.threads()},
                 [&](unsigned worker, size_t begin, size_t count) {
                   const LinearRows part{l, panels, {y + begin * l.out, l.out, 1.0f, false}, xa + begin * l.rank};
                   linear_rows({context, worker, begin, count, nullptr}, {x + begin * l.in, l.in, false}, {&part, 1});
                 });
}

void linear_layer_backward(Context& context, const LinearPass& l, float* dx, const float* dy, const float* x,
                           const float* xa, size_t rows) {
  const ProductKernel& kernel = *l.base->adapter_kernel;
  context.arena.reset();
  const BackwardPanels panels(context, kernel, l);
  if (l.rank == 0)
    return product_of_panels(context, {dx, l.in, 1.0f, false}, {dy, l.out, false}, panels.weight, rows);
  float* const p = context.arena.take<float>(rows * l.rank);
  for_row_blocks(context, {kernel, rows, context.pool.threads()},
                 [&](unsigned worker, size_t begin, size_t count) {
                   linear_rows_backward({context, worker, begin, count, nullptr},
                                        {dx + begin * l.in, l.in, 1.0f, false}, l, panels,
                                        {dy + begin * l.out, l.out, false}, p + begin * l.rank);
                 });
  const LinearGradients of_adapter{l, {dy, l.out, false}, {p, l.rank, false}, {xa, l.rank, false}};
  linear_gradients(context, kernel, {x, l.in, false}, {&of_adapter, 1}, rows);
}

}  // namespace relora
