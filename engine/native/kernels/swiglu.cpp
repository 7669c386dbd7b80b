// SwiGLU (Shazeer 2020): h = silu(gate) * up, silu(g) = g / (1 + e^-g).
#include "../vector.h"
#include "kernels.h"

namespace relora::RELORA_ISA {

namespace {

template <class Body>
void for_elements(Context& context, size_t length, const Body& body) {
  context.pool.run((length + element_block - 1) / element_block, [&](size_t task, unsigned) {
    const size_t begin = task * element_block;
    const size_t count = length - begin < element_block ? length - begin : element_block;
    for_vectors(count, [&](size_t i, size_t n) { body(begin + i, n); });
  });
}

}  // namespace

void swiglu_forward(Context& context, float* h, const float* gate, const float* up, size_t length) {
  for_elements(context, length, [&](size_t i, size_t count) {
    const Vec g = load(gate + i, count);
    store(h + i, g / (1.0f + exponential(-g)) * load(up + i, count), count);
  });
}

/// With s = 1 / (1 + e^-g): silu'(g) = s * (1 + g * (1 - s)).
void swiglu_backward(Context& context, float* dgate, float* dup, const float* dh, const float* gate,
                     const float* up, size_t length) {
  for_elements(context, length, [&](size_t i, size_t count) {
    const Vec g = load(gate + i, count), d = load(dh + i, count);
    const Vec s = 1.0f / (1.0f + exponential(-g));
    store(dgate + i, d * load(up + i, count) * (s * (1.0f + g * (1.0f - s))), count);
    store(dup + i, d * (g * s), count);
  });
}

}  // namespace relora::RELORA_ISA
