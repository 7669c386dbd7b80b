// NVIDIA's libraries, opened at run time.
#pragma once
#include <stdexcept>
#include <string>

#include "cuda_api.h"

namespace relora::cuda {

/// An error of a library; `code` is its own name for it, or ours if no library was reached.
struct CudaError : std::runtime_error {
  CudaError(std::string code, const std::string& message) : runtime_error(message), code(std::move(code)) {}
  std::string code;
};

#define RELORA_FUNCTION_POINTER(name, arguments) Status(*name) arguments;
struct Driver {
  RELORA_DRIVER_FUNCTIONS(RELORA_FUNCTION_POINTER)

  /// Throws the driver's error, with a description of the operation.
  void check(Status status, const std::string& doing) const;
};
struct Compiler {
  RELORA_COMPILER_FUNCTIONS(RELORA_FUNCTION_POINTER)
};
struct Blas {
  RELORA_BLAS_FUNCTIONS(RELORA_FUNCTION_POINTER)
  size_t (*cublasLtGetVersion)();

  void check(Status status, const std::string& doing) const;
};
struct Nccl {
  RELORA_RING_FUNCTIONS(RELORA_FUNCTION_POINTER)
  const char* (*ncclGetErrorString)(Status status);

  void check(Status status, const std::string& doing) const;
};
#undef RELORA_FUNCTION_POINTER

/// LIBRARY_MISSING where the file cannot be opened, LIBRARY_TOO_OLD where it lacks a function.
Driver open_driver(const std::string& path);
Compiler open_compiler(const std::string& path);
Blas open_blas(const std::string& path);
Nccl open_nccl(const std::string& path);

}  // namespace relora::cuda
