// APOLLO-Mini (arXiv 2412.05270): a step along the gradient, whose length is determined by Adam on the gradient's projection ("shadow") on
// one random direction. docs/relora.md has the formulas.
#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace relora::RELORA_ISA {

namespace {

/// Ratio of the gradient's length to that of its shadow, as the authors assume for one direction.
const double step_scale = std::sqrt(128.0);
/// A step may be at most this many times as long as the one before.
constexpr double growth_max = 1.01;
/// Elements of the shadow that one task sums.
constexpr size_t shadow_block = 512;

/// shadow[columns] = projection[rows] g[rows, columns], or shadow[rows] = g projection[columns] where rows are more.
void cast_shadow(Context& context, float* shadow, const ApolloBuffers& of, size_t rows, size_t columns, float scale) {
  const size_t length = std::max(rows, columns);
  context.pool.run((length + shadow_block - 1) / shadow_block, [&](size_t task, unsigned) {
    const size_t begin = task * shadow_block, end = std::min(length, begin + shadow_block);
    if (rows > columns) {
      for (size_t row = begin; row < end; row++) {
        float sum = 0;
        for (size_t j = 0; j < columns; j++) sum += of.projection[j] * (scale * of.gradient[row * columns + j]);
        shadow[row] = sum;
      }
      return;
    }
    std::fill(shadow + begin, shadow + end, 0.0f);
    for (size_t row = 0; row < rows; row++) {
      const float by = scale * of.projection[row];
      for (size_t j = begin; j < end; j++) shadow[j] += by * of.gradient[row * columns + j];
    }
  });
}

double norm_of(Context& context, const float* x, size_t length) {
  const std::span<const float> one[] = {{x, length}};
  return std::sqrt(sum_squares(context, one));
}

}  // namespace

void apollo_mini_in_place(Context& context, std::span<const ApolloBuffers> buffers, size_t rows, size_t columns,
                          const AdamWOptions& options) {
  const float scale = static_cast<float>(options.gradient_scale);
  const size_t length = std::max(rows, columns);
  context.arena.reset();
  float* const shadow = context.arena.take<float>(length);
  for (const ApolloBuffers& of : buffers) {
    cast_shadow(context, shadow, of, rows, columns, scale);
    double adapted = 0, plain = 0;
    for (size_t i = 0; i < length; i++) {
      const double d = shadow[i];
      const double m = options.beta1 * of.first[i] + (1 - options.beta1) * d;
      const double v = options.beta2 * of.second[i] + (1 - options.beta2) * d * d;
      of.first[i] = static_cast<float>(m);
      of.second[i] = static_cast<float>(v);
      const double step = m / options.correction1 / (std::sqrt(v / options.correction2) + options.epsilon);
      adapted += step * step;
      plain += d * d;
    }
    double factor = plain > 0 ? step_scale * std::sqrt(adapted / plain) : 0;
    const double norm = factor * options.gradient_scale * norm_of(context, of.gradient, rows * columns);
    const double last = of.norm[0];
    const double limit = last > 0 && norm > growth_max * last ? growth_max * last / norm : 1;
    factor *= limit;
    of.norm[0] = static_cast<float>(norm * limit);
    const float by = static_cast<float>(options.learning_rate * factor) * scale;
    const float kept = static_cast<float>(1 - options.learning_rate * options.weight_decay);
    const size_t count = rows * columns;
    context.pool.run((count + element_block - 1) / element_block, [&](size_t task, unsigned) {
      const size_t begin = task * element_block, end = std::min(count, begin + element_block);
      float* __restrict w = of.parameter;
      const float* __restrict g = of.gradient;
      for (size_t i = begin; i < end; i++) w[i] = kept * w[i] - by * g[i];
    });
  }
}

}  // namespace relora::RELORA_ISA
