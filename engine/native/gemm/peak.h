// The measured speed limit of a product kernel.
#pragma once
#include "../context.h"

namespace relora {

/// Best GFLOP/s of the kernel's multiply-add loop on all threads together, over about `milliseconds`.
double measure_peak(Context& context, const ProductKernel& kernel, double milliseconds);

}  // namespace relora
