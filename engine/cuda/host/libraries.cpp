#include "libraries.h"

#include <dlfcn.h>

namespace relora::cuda {

namespace {

void* open_library(const std::string& path) {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw CudaError("LIBRARY_MISSING", dlerror());
  return library;
}

template <class Function>
void find(Function& function, void* library, const char* name, const std::string& path) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) throw CudaError("LIBRARY_TOO_OLD", path + " has no " + name);
}

}  // namespace

void Driver::check(Status status, const std::string& doing) const {
  if (status == success) return;
  const char *name = nullptr, *text = nullptr;
  cuGetErrorName(status, &name);
  cuGetErrorString(status, &text);
  throw CudaError(name ? name : "CUDA_ERROR_" + std::to_string(status),
                  doing + ": " + (text ? text : "status " + std::to_string(status)));
}

void Blas::check(Status status, const std::string& doing) const {
  if (status != success) throw CudaError("CUBLAS_STATUS_" + std::to_string(status), doing + ": status " + std::to_string(status));
}

void Nccl::check(Status status, const std::string& doing) const {
  if (status == success) return;
  throw CudaError("NCCL_" + std::to_string(status), doing + ": " + ncclGetErrorString(status));
}

#define RELORA_FIND(name, arguments) find(opened.name, library, #name, path);
Driver open_driver(const std::string& path) {
  void* const library = open_library(path);
  Driver opened{};
  RELORA_DRIVER_FUNCTIONS(RELORA_FIND)
  return opened;
}
Compiler open_compiler(const std::string& path) {
  void* const library = open_library(path);
  Compiler opened{};
  RELORA_COMPILER_FUNCTIONS(RELORA_FIND)
  return opened;
}
Blas open_blas(const std::string& path) {
  void* const library = open_library(path);
  Blas opened{};
  RELORA_BLAS_FUNCTIONS(RELORA_FIND)
  find(opened.cublasLtGetVersion, library, "cublasLtGetVersion", path);
  return opened;
}
Nccl open_nccl(const std::string& path) {
  void* const library = open_library(path);
  Nccl opened{};
  RELORA_RING_FUNCTIONS(RELORA_FIND)
  find(opened.ncclGetErrorString, library, "ncclGetErrorString", path);
  return opened;
}
#undef RELORA_FIND

}  // namespace relora::cuda
