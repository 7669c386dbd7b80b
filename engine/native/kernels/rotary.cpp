// Rotary position embedding (Su et al. 2021), half-split: element i is rotated with element i + head_dim / 2 of the same head.
#include "kernels.h"
#include "rows.h"

namespace relora::RELORA_ISA {

/// y, x[batch, time, heads, head_dim]; cosines, sines[position, head_dim / 2]. The inverse rotates back: the transposed matrix.
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
        const size_t at = p * row + head * shape.head_dim;
        rotate_head(y + at, x + at, cosines + angle, sines + angle, half, sign);
      }
    }
  });
}

}  // namespace relora::RELORA_ISA
