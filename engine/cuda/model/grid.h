// Runs the blocks of a launch: threads as fibers, in an order that a test chooses.
#pragma once
#include <cstdint>
#include <string>

#include "memory.h"
#include "runtime.h"

namespace relora::model {

/// The order of blocks, of warps in a block and of lanes in a warp. Results must not depend on it.
enum class Order { forward, backward, seeded };

struct Schedule {
  Order order = Order::forward;
  uint32_t seed = 0;
};

/// A kernel's module once it is loaded: its functions, and where its static shared memory is.
struct Module {
  std::string path;
  void* handle;
  Enter enter;
  const char *image_begin, *image_end;  // code and constants
  bool is_checked;
};

struct Launch {
  const Module* module;
  std::string kernel;
  void (*function)(const void* parameters);
  Dimensions grid, block;
  uint32_t dynamic_shared_bytes;
  const void* parameters;
  size_t parameter_bytes;
  Schedule schedule;
};

/// False if a thread left its memory or the block could not finish: then the launch's results are invalid.
bool run_grid(const Launch&, Memory&);

extern const Runtime runtime_of_kernels;

}  // namespace relora::model
