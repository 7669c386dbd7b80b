// AdamW (Loshchilov & Hutter 2019): one pass over parameter, both moments and gradient.
#include <cmath>

#include "kernels.h"

namespace relora::RELORA_ISA {

/// m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; p -= rate (decay p + (m / c1) / (sqrt(v / c2)
/// + epsilon)). A plain loop: the compiler vectorises it, square root and division included.
void adamw_in_place(Context& context, float* parameter, float* first, float* second, const float* gradient,
                    size_t length, const AdamWOptions& options) {
  const float rate = static_cast<float>(options.learning_rate);
  const float decay = static_cast<float>(options.weight_decay);
  const float beta1 = static_cast<float>(options.beta1), rest1 = static_cast<float>(1 - options.beta1);
  const float beta2 = static_cast<float>(options.beta2), rest2 = static_cast<float>(1 - options.beta2);
  const float inverse1 = static_cast<float>(1 / options.correction1);
  const float inverse2 = static_cast<float>(1 / options.correction2);
  const float epsilon = static_cast<float>(options.epsilon);
  const float scale = static_cast<float>(options.gradient_scale);
  context.pool.run((length + element_block - 1) / element_block, [&](size_t task, unsigned) {
    const size_t begin = task * element_block;
    const size_t count = length - begin < element_block ? length - begin : element_block;
    float* __restrict p = parameter + begin;
    float* __restrict m = first + begin;
    float* __restrict v = second + begin;
    const float* __restrict g = gradient + begin;
    for (size_t i = 0; i < count; i++) {
      const float d = scale * g[i];
      m[i] = beta1 * m[i] + rest1 * d;
      v[i] = beta2 * v[i] + rest2 * (d * d);
      p[i] -= rate * (decay * p[i] + m[i] * inverse1 / (std::sqrt(v[i] * inverse2) + epsilon));
    }
  });
}

}  // namespace relora::RELORA_ISA
