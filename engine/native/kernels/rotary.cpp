// Rotary position embedding (Su et al. 2021), half-split: element i turns with element i + head_dim / 2 of
// the same head.
#include "../vector.h"
#include "kernels.h"

namespace relora::RELORA_ISA {

/// y, x[batch, time, heads, head_dim]; cosines, sines[position, head_dim / 2]. The inverse turns back: the
/// transposed matrix.
void rotary(Context& context, float* y, const float* x, const float* cosines, const float* sines,
            const RotaryShape& shape, bool inverse) {
  const size_t half = shape.head_dim / 2, row = shape.heads * shape.head_dim;
  const float sign = inverse ? -1.0f : 1.0f;
  constexpr size_t block = 16;  // positions per task
  const size_t positions = shape.batch * shape.time;
  context.pool.run((positions + block - 1) / block, [&](size_t task, unsigned) {
    for (size_t p = task * block; p < positions && p < (task + 1) * block; p++) {
      const size_t angle = (shape.first_position + p % shape.time) * half;
      for (size_t head = 0; head < shape.heads; head++) {
        const float* first = x + p * row + head * shape.head_dim;
        float* to = y + p * row + head * shape.head_dim;
        for_vectors(half, [&](size_t i, size_t count) {
          const Vec c = load(cosines + angle + i, count), s = load(sines + angle + i, count) * sign;
          const Vec u = load(first + i, count), v = load(first + half + i, count);
          store(to + i, u * c - v * s, count);
          store(to + half + i, v * c + u * s, count);
        });
      }
    }
  });
}

}  // namespace relora::RELORA_ISA
