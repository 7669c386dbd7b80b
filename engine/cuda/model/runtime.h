// The interface between kernels compiled by g++ and the model of a card: a table of functions, and the state of the current thread. A
// kernel's module is a shared library that receives the table when it is loaded.
#pragma once
#include <cstddef>
#include <cstdint>

namespace relora::model {

constexpr unsigned warp_lanes = 32;

struct Dimensions {
  uint32_t x, y, z;
};

/// State of the thread that runs now on a worker; `dynamic_shared` is the same for the whole block.
struct ThreadView {
  Dimensions thread, block, block_size, grid;
  void* dynamic_shared;
};

/// Operations of all lanes of a warp. A lane that reaches one waits for the others.
enum class WarpOperation : uint32_t { synchronize, shuffle, ballot, load_matrix, multiply_bf16, multiply_e4m3 };

struct Shuffle {
  uint32_t value, source_lane, result;
};
struct Ballot {
  bool vote;
  uint32_t result;
};
/// ldmatrix: `count` matrices of 8x8 elements of 16 bits; lane l gives the row l % 8 of matrix l / 8.
struct LoadMatrix {
  const void* row;
  uint32_t count;
  bool transposed;
  uint32_t* result;
};
/// mma.sync.m16n8k16 (bf16) or m16n8k32 (e4m3) with float32 sums: d = a b + c.
struct MultiplyMatrices {
  float* d;
  const uint32_t *a, *b;
  const float* c;
};

struct Runtime {
  void (*meet)(WarpOperation, void* arguments);
  void (*synchronize_block)();
  /// cp.async: `bytes` of 4, 8 or 16 are written, those from `source_bytes` on with zeros; seen after wait_copies.
  void (*copy_async)(void* to, const void* from, uint32_t bytes, uint32_t source_bytes);
  void (*commit_copies)();
  void (*wait_copies)(uint32_t pending_groups);
  /// Called before every access of a kernel that is compiled with checks.
  void (*access)(const void* address, size_t bytes, bool is_write);
  void (*out_of_bounds_index)(const char* file, uint32_t line);
};

/// Functions of a module: `attach` is called once, `enter` on each worker before a block begins.
using Attach = void (*)(const Runtime*);
using Enter = void (*)(const ThreadView*);

}  // namespace relora::model
