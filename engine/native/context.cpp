#include "context.h"

#include "gemm/kernels.h"
#include "kernels/kernels.h"

namespace relora {

namespace {

const Kernels& kernels_of(InstructionSet set) {
  switch (set) {
#ifdef __x86_64__
    case InstructionSet::amx:
    case InstructionSet::avx512bf16:
    case InstructionSet::avx512: return avx512::kernels;
    case InstructionSet::avx2: return avx2::kernels;
#elif defined(__aarch64__)
    case InstructionSet::neon_bf16:
    case InstructionSet::neon_dot:
    case InstructionSet::neon: return neon::kernels;
#endif
    default: return portable::kernels;
  }
}

const ProductKernel& float32_kernel(InstructionSet set) {
  switch (set) {
#ifdef __x86_64__
    case InstructionSet::amx:
    case InstructionSet::avx512bf16:
    case InstructionSet::avx512: return avx512::float32_kernel;
    case InstructionSet::avx2: return avx2::float32_kernel;
#elif defined(__aarch64__)
    case InstructionSet::neon_bf16:
    case InstructionSet::neon_dot:
    case InstructionSet::neon: return neon::float32_kernel;
#endif
    default: return portable::float32_kernel;
  }
}

const ProductKernel& bfloat16_kernel(InstructionSet set) {
  switch (set) {
#ifdef __x86_64__
    case InstructionSet::amx: return amx::bfloat16_tile_kernel;
    case InstructionSet::avx512bf16: return avx512bf16::bfloat16_kernel;
    case InstructionSet::avx512: return avx512::bfloat16_kernel;
    case InstructionSet::avx2: return avx2::bfloat16_kernel;
#elif defined(__aarch64__)
    case InstructionSet::neon_bf16: return neonBf16::bfloat16_matrix_kernel;
    case InstructionSet::neon_dot:
    case InstructionSet::neon: return neon::bfloat16_kernel;
#endif
    case InstructionSet::amx_model: return portable::bfloat16_tile_kernel;
    case InstructionSet::neon_bf16_model: return portable::bfloat16_matrix_kernel;
    default: return portable::bfloat16_kernel;
  }
}

const ProductKernel& int8_kernel(InstructionSet set) {
  if (set == InstructionSet::amx_model) return portable::int8_tile_kernel;
  if (set == InstructionSet::neon_bf16_model) return portable::int8_matrix_kernel;
  switch (int8_unit_of(set)) {
#ifdef __x86_64__
    case Int8Unit::amx: return amx::int8_tile_kernel;
    case Int8Unit::vnni: return avx512vnni::int8_kernel;
    case Int8Unit::avx2: return avx2::int8_kernel;
#elif defined(__aarch64__)
    case Int8Unit::i8mm: return neonBf16::int8_matrix_kernel;
    case Int8Unit::dot: return neonDot::int8_kernel;
    case Int8Unit::neon: return neon::int8_kernel;
#endif
    default: return portable::int8_kernel;
  }
}

}  // namespace

std::string_view name_of(Precision precision) {
  switch (precision) {
    case Precision::float32: return "float32";
    case Precision::bfloat16: return "bfloat16";
    case Precision::int8: return "int8";
    case Precision::nf4: break;
  }
  return "nf4";
}

Context::Context(InstructionSet chosen, unsigned threads)
    : set(chosen),
      kernels(kernels_of(chosen)),
      pool(threads),
      product_memory_(pool.threads()),
      worker_memory_(pool.threads()) {
  for (unsigned worker = 0; worker < pool.threads(); worker++) left_block(worker);
}

const ProductKernel& Context::product_kernel(Precision precision) const {
  switch (precision) {
    case Precision::float32: return float32_kernel(set);
    case Precision::nf4:
    case Precision::bfloat16: return bfloat16_kernel(set);
    case Precision::int8: break;
  }
  return int8_kernel(set);
}

}  // namespace relora
