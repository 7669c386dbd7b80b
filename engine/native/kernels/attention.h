// Causal attention on elements kept in float32 or bfloat16, as a separate op and for the first half of a block.
#pragma once
#include "../gemm/product.h"
#include "kernels.h"

namespace relora::RELORA_ISA {

template <class Element>
struct HeadsIn {
  const Element *q, *k, *v;
};
template <class Element>
struct HeadsOut {
  Element *dq, *dk, *dv;
};

/// Angles by which queries and keys were rotated, [time, head_dim / 2], counted from the begin of each document; null: not rotated.
struct Angles {
  const float *cosines, *sines;
};

/// out[batch, time, heads, head_dim], log_sum_exp[batch, heads, time].
template <class Element>
void attend(Context&, Element* out, float* log_sum_exp, const Element* q, const Element* k, const Element* v,
            const AttentionShape&, const ProductKernel&);

/// Gradients of q, k and v, rotated back by `angles`.
template <class Element>
void differentiate_attention(Context&, const HeadsOut<Element>& gradients, const Element* dout,
                             const HeadsIn<Element>& heads, const Element* out, const float* log_sum_exp,
                             const AttentionShape&, const ProductKernel&, const Angles& angles);

}  // namespace relora::RELORA_ISA
