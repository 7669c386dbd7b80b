// The functions of NVIDIA's libraries that we call, declared by ourselves: nothing of CUDA is needed to build. Names, values and
// layouts are those of the documented C interfaces (CUDA 12 and 13); the model of a card defines the same functions.
#pragma once
#include <cstddef>
#include <cstdint>

namespace relora::cuda {

// The driver (libcuda).
using Status = int;  // 0 is success
using DeviceNumber = int;
using DeviceAddress = uint64_t;
using ContextHandle = struct ContextTag*;
using ModuleHandle = struct ModuleTag*;
using FunctionHandle = struct FunctionTag*;
using StreamHandle = struct StreamTag*;
using EventHandle = struct EventTag*;
using GraphHandle = struct GraphTag*;
using GraphRunHandle = struct GraphRunTag*;
struct Uuid {
  char bytes[16];
};

enum DriverStatus : Status {
  success = 0,
  invalid_value = 1,
  out_of_memory = 2,
  not_initialized = 3,
  no_device = 100,
  invalid_device = 101,
  invalid_image = 200,
  no_binary_for_gpu = 209,
  ecc_uncorrectable = 214,
  not_found = 500,
  not_ready = 600,
  illegal_address = 700,
  launch_out_of_resources = 701,
  launch_failed = 719,
  system_driver_mismatch = 803,
  unknown_error = 999,
};

enum DeviceAttribute : int {
  max_threads_per_block = 1,
  multiprocessor_count = 16,
  capability_major = 75,
  capability_minor = 76,
  max_shared_memory_per_block_optin = 97,
};

enum FunctionAttribute : int {
  static_shared_bytes = 1,
  local_bytes = 3,
  register_count = 4,
  max_dynamic_shared_bytes = 8,
};

// cuLaunchKernel's `extra`: the parameters as one block of memory.
inline void* const launch_parameters_begin = reinterpret_cast<void*>(1);
inline void* const launch_parameters_size = reinterpret_cast<void*>(2);
inline void* const launch_parameters_end = nullptr;
constexpr unsigned stream_non_blocking = 1, event_disable_timing = 2;
/// Other threads are not captured, and their calls are not forbidden meanwhile.
constexpr int capture_thread_local = 1;

#define RELORA_DRIVER_FUNCTIONS(F)                                                                           \
  F(cuInit, (unsigned flags))                                                                                \
  F(cuDriverGetVersion, (int* version))                                                                      \
  F(cuGetErrorName, (Status status, const char** text))                                                      \
  F(cuGetErrorString, (Status status, const char** text))                                                    \
  F(cuDeviceGetCount, (int* count))                                                                          \
  F(cuDeviceGet, (DeviceNumber * device, int ordinal))                                                       \
  F(cuDeviceGetName, (char* name, int bytes, DeviceNumber device))                                           \
  F(cuDeviceGetUuid_v2, (Uuid * uuid, DeviceNumber device))                                                  \
  F(cuDeviceTotalMem_v2, (size_t* bytes, DeviceNumber device))                                               \
  F(cuDeviceGetAttribute, (int* value, int attribute, DeviceNumber device))                                  \
  F(cuDevicePrimaryCtxRetain, (ContextHandle * context, DeviceNumber device))                                \
  F(cuDevicePrimaryCtxRelease_v2, (DeviceNumber device))                                                     \
  F(cuCtxSetCurrent, (ContextHandle context))                                                                \
  F(cuMemGetInfo_v2, (size_t* free, size_t* total))                                                          \
  F(cuMemAlloc_v2, (DeviceAddress * address, size_t bytes))                                                  \
  F(cuMemFree_v2, (DeviceAddress address))                                                                   \
  F(cuMemHostAlloc, (void** memory, size_t bytes, unsigned flags))                                           \
  F(cuMemFreeHost, (void* memory))                                                                           \
  F(cuMemcpyHtoDAsync_v2, (DeviceAddress to, const void* from, size_t bytes, StreamHandle stream))           \
  F(cuMemcpyDtoHAsync_v2, (void* to, DeviceAddress from, size_t bytes, StreamHandle stream))                 \
  F(cuMemcpyDtoDAsync_v2, (DeviceAddress to, DeviceAddress from, size_t bytes, StreamHandle stream))         \
  F(cuMemsetD8Async, (DeviceAddress to, unsigned char value, size_t bytes, StreamHandle stream))             \
  F(cuStreamCreate, (StreamHandle * stream, unsigned flags))                                                 \
  F(cuStreamDestroy_v2, (StreamHandle stream))                                                               \
  F(cuStreamSynchronize, (StreamHandle stream))                                                              \
  F(cuStreamQuery, (StreamHandle stream))                                                                    \
  F(cuStreamWaitEvent, (StreamHandle stream, EventHandle event, unsigned flags))                             \
  F(cuEventCreate, (EventHandle * event, unsigned flags))                                                    \
  F(cuEventDestroy_v2, (EventHandle event))                                                                  \
  F(cuEventRecord, (EventHandle event, StreamHandle stream))                                                 \
  F(cuEventSynchronize, (EventHandle event))                                                                 \
  F(cuStreamBeginCapture_v2, (StreamHandle stream, int mode))                                                \
  F(cuStreamEndCapture, (StreamHandle stream, GraphHandle * graph))                                          \
  F(cuGraphInstantiateWithFlags, (GraphRunHandle * run, GraphHandle graph, unsigned long long flags))        \
  F(cuGraphLaunch, (GraphRunHandle run, StreamHandle stream))                                                \
  F(cuGraphDestroy, (GraphHandle graph))                                                                     \
  F(cuGraphExecDestroy, (GraphRunHandle run))                                                                \
  F(cuEventElapsedTime, (float* milliseconds, EventHandle begin, EventHandle end))                           \
  F(cuModuleLoadData, (ModuleHandle * module, const void* image))                                            \
  F(cuModuleUnload, (ModuleHandle module))                                                                   \
  F(cuModuleGetFunction, (FunctionHandle * function, ModuleHandle module, const char* name))                 \
  F(cuFuncGetAttribute, (int* value, int attribute, FunctionHandle function))                                \
  F(cuFuncSetAttribute, (FunctionHandle function, int attribute, int value))                                 \
  F(cuLaunchKernel, (FunctionHandle function, unsigned grid_x, unsigned grid_y, unsigned grid_z,             \
                     unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,            \
                     StreamHandle stream, void** parameters, void** extra))

// The compiler (libnvrtc).
using ProgramHandle = struct ProgramTag*;

#define RELORA_COMPILER_FUNCTIONS(F)                                                                         \
  F(nvrtcVersion, (int* major, int* minor))                                                                  \
  F(nvrtcGetNumSupportedArchs, (int* count))                                                                 \
  F(nvrtcGetSupportedArchs, (int* architectures))                                                            \
  F(nvrtcCreateProgram, (ProgramHandle * program, const char* source, const char* name, int header_count,    \
                         const char* const* headers, const char* const* header_names))                       \
  F(nvrtcDestroyProgram, (ProgramHandle * program))                                                          \
  F(nvrtcCompileProgram, (ProgramHandle program, int option_count, const char* const* options))              \
  F(nvrtcGetProgramLogSize, (ProgramHandle program, size_t* bytes))                                          \
  F(nvrtcGetProgramLog, (ProgramHandle program, char* log))                                                  \
  F(nvrtcGetCUBINSize, (ProgramHandle program, size_t* bytes))                                               \
  F(nvrtcGetCUBIN, (ProgramHandle program, char* image))

// Products (libcublasLt). Its matrices are column by column.
using BlasHandle = struct BlasTag*;
using ProductDescriptor = struct ProductDescriptorTag*;
using LayoutHandle = struct LayoutTag*;
using PreferenceHandle = struct PreferenceTag*;
struct ProductAlgorithm {
  uint64_t data[8];
};
struct HeuristicResult {
  ProductAlgorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(HeuristicResult) == 64 + 8 + 4 + 4 + 16);

enum BlasStatus : Status { blas_invalid_value = 7, blas_not_supported = 15 };
enum DataType : int { type_float32 = 0, type_bfloat16 = 14, type_e4m3 = 28 };
constexpr int compute_float32 = 68;
enum Transposition : int { not_transposed = 0, transposed = 1 };
enum ProductAttribute : int {
  transposition_a = 3,
  transposition_b = 4,
  scale_pointer_a = 17,
  scale_pointer_b = 18,
  scale_mode_a = 31,
  scale_mode_b = 32,
};
/// A scale for each row of op(A) and for each column of op(B).
constexpr int scale_outer_vector = 3;
enum LayoutAttribute : int { layout_batch_count = 5, layout_batch_stride = 6 };
enum PreferenceAttribute : int {
  preference_workspace_bytes = 1,
  preference_reduction_schemes = 3,
  preference_alignment_a = 5,
  preference_alignment_b = 6,
  preference_alignment_c = 7,
  preference_alignment_d = 8,
};
/// Parts of a split sum are kept in float32 in the workspace and added by a separate kernel, in a fixed order.
constexpr uint32_t reduction_in_compute_type = 2;

#define RELORA_BLAS_FUNCTIONS(F)                                                                             \
  F(cublasLtCreate, (BlasHandle * handle))                                                                   \
  F(cublasLtDestroy, (BlasHandle handle))                                                                    \
  F(cublasLtMatmulDescCreate, (ProductDescriptor * descriptor, int compute_type, int scale_type))            \
  F(cublasLtMatmulDescDestroy, (ProductDescriptor descriptor))                                               \
  F(cublasLtMatmulDescSetAttribute, (ProductDescriptor descriptor, int attribute, const void* value,         \
                                     size_t bytes))                                                          \
  F(cublasLtMatrixLayoutCreate, (LayoutHandle * layout, int type, uint64_t rows, uint64_t columns,           \
                                 int64_t leading))                                                           \
  F(cublasLtMatrixLayoutDestroy, (LayoutHandle layout))                                                      \
  F(cublasLtMatrixLayoutSetAttribute, (LayoutHandle layout, int attribute, const void* value, size_t bytes)) \
  F(cublasLtMatmulPreferenceCreate, (PreferenceHandle * preference))                                         \
  F(cublasLtMatmulPreferenceDestroy, (PreferenceHandle preference))                                          \
  F(cublasLtMatmulPreferenceSetAttribute, (PreferenceHandle preference, int attribute, const void* value,    \
                                           size_t bytes))                                                    \
  F(cublasLtMatmulAlgoGetHeuristic, (BlasHandle handle, ProductDescriptor descriptor, LayoutHandle a,        \
                                     LayoutHandle b, LayoutHandle c, LayoutHandle d,                         \
                                     PreferenceHandle preference, int wanted, HeuristicResult* results,      \
                                     int* found))                                                            \
  F(cublasLtMatmul, (BlasHandle handle, ProductDescriptor descriptor, const void* alpha, const void* a,      \
                     LayoutHandle a_layout, const void* b, LayoutHandle b_layout, const void* beta,          \
                     const void* c, LayoutHandle c_layout, void* d, LayoutHandle d_layout,                   \
                     const ProductAlgorithm* algorithm, void* workspace, size_t workspace_bytes,             \
                     StreamHandle stream))

// Sums over the cards of several processes (libnccl).
using RingHandle = struct RingTag*;
/// Made by one rank for all. Passed by value.
struct RingId {
  char bytes[128];
};

enum RingStatus : Status {
  ring_card_error = 1,
  ring_system_error = 2,
  ring_invalid_argument = 4,
  ring_invalid_usage = 5,
  ring_remote_error = 6,
};
constexpr int ring_float32 = 7, ring_add = 0;

#define RELORA_RING_FUNCTIONS(F)                                                                             \
  F(ncclGetVersion, (int* version))                                                                          \
  F(ncclGetUniqueId, (RingId * id))                                                                          \
  F(ncclCommInitRank, (RingHandle * ring, int size, RingId id, int rank))                                    \
  F(ncclAllReduce, (const void* from, void* to, size_t count, int type, int operation, RingHandle ring,      \
                    StreamHandle stream))                                                                    \
  F(ncclCommGetAsyncError, (RingHandle ring, Status * error))                                                \
  F(ncclCommAbort, (RingHandle ring))

}  // namespace relora::cuda
