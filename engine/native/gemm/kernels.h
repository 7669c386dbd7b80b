// The product kernels of every instruction set. Touch only those the CPU supports.
#pragma once
#include "kernel_interface.h"

namespace relora {

namespace portable {
extern const ProductKernel float32_kernel, bfloat16_kernel, int8_kernel;
extern const ProductKernel bfloat16_tile_kernel, int8_tile_kernel;  // on the model of the tiles
extern const ProductKernel bfloat16_matrix_kernel, int8_matrix_kernel;  // on the model of the matrix instructions
}
#ifdef __x86_64__
namespace avx2 {
extern const ProductKernel float32_kernel, bfloat16_kernel, int8_kernel;
}
namespace avx512 {
extern const ProductKernel float32_kernel, bfloat16_kernel;
}
namespace avx512bf16 {
extern const ProductKernel bfloat16_kernel;
}
namespace avx512vnni {
extern const ProductKernel int8_kernel;
}
namespace amx {
extern const ProductKernel bfloat16_tile_kernel, int8_tile_kernel;
}
#elif defined(__aarch64__)
namespace neon {
extern const ProductKernel float32_kernel, bfloat16_kernel, int8_kernel;
}
namespace neonDot {
extern const ProductKernel int8_kernel;
}
namespace neonBf16 {
extern const ProductKernel bfloat16_matrix_kernel, int8_matrix_kernel;
}
#endif

}  // namespace relora
