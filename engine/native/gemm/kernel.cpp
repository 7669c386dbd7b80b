// Product kernels of one instruction set: float32, and bfloat16 storage widened to float32 products.
#include "kernels.h"
#include "tile.h"

namespace relora::RELORA_ISA {

// With the rows of a tile, these leave registers for the right panel and one left value. Portable code is compiled for the smallest
// register file it may meet.
#if defined(__AVX512F__)
constexpr size_t vectors = 4, vectors_widened = 2;
#elif defined(RELORA_NEON)
constexpr size_t vectors = 4, vectors_widened = 4;
#else
constexpr size_t vectors = 2, vectors_widened = 2;
#endif

constinit const ProductKernel float32_kernel = product_kernel<MultiplyFloat32, vectors>(block_words);
constinit const ProductKernel bfloat16_kernel = product_kernel<MultiplyWidened, vectors_widened>(block_words);

}  // namespace relora::RELORA_ISA
