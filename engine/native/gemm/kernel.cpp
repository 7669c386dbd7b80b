// Product kernels of one instruction set: float32, and bfloat16 storage widened to float32 products.
#include "kernels.h"
#include "tile.h"

namespace relora::RELORA_ISA {

// Six rows leave, next to the sums, registers for the right panel and one left value: 6 x 4 vectors of 32
// registers, or 6 x 2 of 16. Portable code is compiled for the smallest register file it may meet.
#if defined(__AVX512F__)
constexpr size_t vectors = 4;
constexpr size_t vectors_widened = 3;  // with 4, GCC 12 spills two sums
#elif defined(RELORA_NEON)
constexpr size_t vectors = 4;
constexpr size_t vectors_widened = 4;
#else
constexpr size_t vectors = 2;
constexpr size_t vectors_widened = 2;
#endif

constinit const ProductKernel float32_kernel = product_kernel<MultiplyFloat32, vectors>(block_words);
constinit const ProductKernel bfloat16_kernel = product_kernel<MultiplyWidened, vectors_widened>(block_words);

}  // namespace relora::RELORA_ISA
