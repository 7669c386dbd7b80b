#include "apart_sums.h"

namespace relora {

namespace {

void multiply(float* to, const float* from, const float* by, size_t length) {
  for (size_t i = 0; i < length; i++) to[i] = from[i] * by[i];
}
void scale(float* to, const float* from, float by, size_t length) {
  for (size_t i = 0; i < length; i++) to[i] = from[i] * by;
}
void add(float* to, const float* from, size_t length) {
  for (size_t i = 0; i < length; i++) to[i] += from[i];
}

void product_of_rows(const WorkerRows& rows, float* to, const Operand& left, const RightPanels& right) {
  const Output output{{to, right.n, 1.0f, false}, right};
  product_stage_here(rows.context, rows.worker, {left, &output, 1}, rows.count);
}

/// Each column is summed in float64, in the order of the rows.
void sum_columns(Context& context, float* sums, const float* dy, size_t rows, size_t columns) {
  context.pool.run(columns, [&](size_t column, unsigned) {
    double sum = 0;
    for (size_t i = column; i < rows * columns; i += columns) sum += dy[i];
    sums[column] = static_cast<float>(sum);
  });
}

/// Gradient of g with scale = tanh(g), whose derivative is 1 - scale^2.
float scale_gradient(const float* p, const float* xa, float scale, size_t length) {
  double sum = 0;
  for (size_t i = 0; i < length; i++) sum += p[i] * xa[i];
  const float square = scale * scale;
  return static_cast<float>(sum) * static_cast<float>(1.0 - square);
}

}  // namespace

size_t apart_floats(const LinearPass& l, size_t rows) { return rows * (l.in + l.rank + 2 * l.out); }

void apart_through_a(const WorkerRows& rows, const Operand& x, const LinearRows& layer) {
  const LinearPass& l = layer.linear;
  if (l.mask == nullptr) return product_of_rows(rows, layer.xa, x, layer.panels.a);
  float* const dropped = rows.spare;
  multiply(dropped, static_cast<const float*>(x.data), l.mask + rows.first * l.in, rows.count * l.in);
  product_of_rows(rows, layer.xa, {dropped, l.in, false}, layer.panels.a);
}

void apart_forward(const WorkerRows& rows, const Operand& x, const LinearRows& layer) {
  const LinearPass& l = layer.linear;
  const size_t count = rows.count * l.out;
  float* const scaled = rows.spare + rows.count * l.in;
  float* const part = scaled + rows.count * l.rank;
  float* const y = layer.y.accumulate ? part + count : layer.y.data;
  product_of_rows(rows, y, x, layer.panels.weight);
  if (l.rank > 0) {
    apart_through_a(rows, x, layer);
    scale(scaled, layer.xa, l.scale, rows.count * l.rank);
    product_of_rows(rows, part, {scaled, l.rank, false}, layer.panels.b);
    add(y, part, count);
  }
  for (size_t row = 0; l.bias != nullptr && row < rows.count; row++) add(y + row * l.out, l.bias, l.out);
  if (layer.y.accumulate) add(layer.y.data, y, count);
}

void apart_backward(const WorkerRows& rows, const Target& dx, const LinearPass& l, const BackwardPanels& panels, const Operand& dy,
                    float* p) {
  float* const scaled = rows.spare;
  float* const part = scaled + rows.count * l.rank;
  bool is_written = dx.accumulate;
  const auto add_part = [&](const auto& write) {
    write(is_written ? part : dx.data);
    if (is_written) add(dx.data, part, rows.count * l.in);
    is_written = true;
  };
  if (l.rank > 0) {
    product_of_rows(rows, p, dy, panels.b);
    scale(scaled, p, l.scale, rows.count * l.rank);
    add_part([&](float* to) {
      product_of_rows(rows, to, {scaled, l.rank, false}, panels.a);
      if (l.mask != nullptr) multiply(to, to, l.mask + rows.first * l.in, rows.count * l.in);
    });
  }
  add_part([&](float* to) { product_of_rows(rows, to, dy, panels.weight); });
}

void apart_gradients(Context& context, const ProductKernel& kernel, const Operand& x, const LinearGradients& layer, size_t rows) {
  const LinearPass& l = layer.linear;
  const auto values = [](const Operand& operand) { return static_cast<const float*>(operand.data); };
  if (l.dbias != nullptr) sum_columns(context, l.dbias, values(layer.dy), rows, l.out);
  if (l.dweight != nullptr)
    product(context, kernel, {l.dweight, l.out, 1.0f, false}, {x, true}, layer.dy, l.in, l.out, rows);
  if (l.rank == 0) return;
  const float *const xa = values(layer.xa), *const p = values(layer.p);
  float* const scaled = context.arena.take<float>(rows * l.rank);
  scale(scaled, xa, l.scale, rows * l.rank);
  product(context, kernel, {l.db, l.out, 1.0f, false}, {scaled, l.rank, true}, layer.dy, l.rank, l.out, rows);
  if (l.dscale != nullptr) *l.dscale = scale_gradient(p, xa, l.scale, rows * l.rank);
  if (l.da == nullptr) return;
  const float* seen = values(x);
  if (l.mask != nullptr) {
    float* const dropped = context.arena.take<float>(rows * l.in);
    multiply(dropped, seen, l.mask, rows * l.in);
    seen = dropped;
  }
  scale(scaled, p, l.scale, rows * l.rank);
  product(context, kernel, {l.da, l.rank, 1.0f, false}, {seen, l.in, true}, {scaled, l.rank, false}, l.in, l.rank, rows);
}

}  // namespace relora
