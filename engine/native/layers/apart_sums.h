// Layers whose products are summed apart: each is rounded by itself and then added, in the order of a tape that runs backward. Halves with
// dropout or a trained scale are computed so since their first release, and their bits stay; what is beside such a layer in its half is
// summed so too. All that is kept for them is float32.
#pragma once
#include "linear_pass.h"

namespace relora {

/// Floats that a worker needs beside its rows for one such layer.
size_t apart_floats(const LinearPass& linear, size_t rows);

/// xa[rows, rank] = (mask x) A
void apart_through_a(const WorkerRows& rows, const Operand& x, const LinearRows& layer);
/// y (+)= x W + (s xa) B + bias
void apart_forward(const WorkerRows& rows, const Operand& x, const LinearRows& layer);
/// dx (+)= mask ((s p) Aᵀ) + dy Wᵀ, p[rows, rank] = dy Bᵀ
void apart_backward(const WorkerRows& rows, const Target& dx, const LinearPass& linear, const BackwardPanels& panels, const Operand& dy,
                    float* p);
/// All that the layer names, of x[rows, in].
void apart_gradients(Context& context, const ProductKernel& kernel, const Operand& x, const LinearGradients& layer, size_t rows);

}  // namespace relora
