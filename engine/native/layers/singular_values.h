// Singular values of a matrix, for the spectrum of what training has added to the weights.
#pragma once
#include <vector>

#include "../context.h"

namespace relora {

/// All min(rows, columns) singular values of matrix[rows, columns], largest first. From the Gram matrix of the smaller side in float64:
/// values below 1e-8 of the largest are noise, as they are in a float32 matrix anyway.
std::vector<double> singular_values(Context& context, const float* matrix, size_t rows, size_t columns);

}  // namespace relora
