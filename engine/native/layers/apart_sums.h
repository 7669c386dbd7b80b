// Layers whose products are summed apart: each product is rounded and then added, in the order of a backward tape. Halves with dropout or a
// trained scale have been computed this way since their first release, and their bits must not change; all other layers of such a half are
// summed in the same way. All of their state is float32.
#pragma once
#include "linear_pass.h"

namespace relora {

/// Floats that a worker needs for one such layer, in addition to its rows.
size_t apart_floats(const LinearPass& linear, size_t rows);

/// xa[rows, rank] = (mask x) A
void apart_through_a(const WorkerRows& rows, const Operand& x, const LinearRows& layer);
/// y (+)= x W + (s xa) B + bias
void apart_forward(const WorkerRows& rows, const Operand& x, const LinearRows& layer);
/// dx (+)= mask ((s p) Aᵀ) + dy Wᵀ, p[rows, rank] = dy Bᵀ
void apart_backward(const WorkerRows& rows, const Target& dx, const LinearPass& linear, const BackwardPanels& panels, const Operand& dy,
                    float* p);
/// All gradients that the layer names, from x[rows, in].
void apart_gradients(Context& context, const ProductKernel& kernel, const Operand& x, const LinearGradients& layer, size_t rows);

}  // namespace relora
