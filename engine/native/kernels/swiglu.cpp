// SwiGLU (Shazeer 2020): h = silu(gate) * up, silu(g) = g / (1 + e^-g).
#include "kernels.h"
#include "rows.h"

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
    store(h + i, gate_with_silu(g, load(up + i, count)), count);
  });
}

void swiglu_backward(Context& context, float* dgate, float* dup, const float* dh, const float* gate,
                     const float* up, size_t length) {
  for_elements(context, length, [&](size_t i, size_t count) {
    const Vec g = load(gate + i, count), d = load(dh + i, count);
    Vec dg, du;
    differentiate_swiglu(d, g, load(up + i, count), sigmoid(g), dg, du);
    store(dgate + i, dg, count);
    store(dup + i, du, count);
  });
}

}  // namespace relora::RELORA_ISA
