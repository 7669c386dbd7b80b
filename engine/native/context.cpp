#include "context.h"

#include "gemm/kernels.h"
#include "kernels/kernels.h"

namespace relora {

namespace {

const Kernels& kernels_of(InstructionSet set) {
  switch (set) {
#ifdef __x86_64__
    case InstructionSet::avx512bf16:
    case InstructionSet::avx512: return avx512::kernels;
    case InstructionSet::avx2: return avx2::kernels;
#endif
    default: return portable::kernels;
  }
}

}  // namespace

Context::Context(InstructionSet chosen, unsigned threads)
    : set(chosen),
      kernels(kernels_of(chosen)),
      pool(threads),
      product_memory_(pool.threads()),
      worker_memory_(pool.threads()) {
  for (unsigned worker = 0; worker < pool.threads(); worker++) left_block(worker);
}

const ProductKernel& Context::product_kernel(Precision precision) const {
  const bool bfloat16 = precision == Precision::bfloat16;
  switch (set) {
#ifdef __x86_64__
    case InstructionSet::avx512bf16: return bfloat16 ? avx512bf16::bfloat16_kernel : avx512::float32_kernel;
    case InstructionSet::avx512: return bfloat16 ? avx512::bfloat16_kernel : avx512::float32_kernel;
    case InstructionSet::avx2: return bfloat16 ? avx2::bfloat16_kernel : avx2::float32_kernel;
#endif
    default: return bfloat16 ? portable::bfloat16_kernel : portable::float32_kernel;
  }
}

}  // namespace relora
