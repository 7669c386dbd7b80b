// State that every kernel needs: the chosen instruction set, the threads and reusable memory.
#pragma once
#include <memory>
#include <vector>

#include "cpu_features.h"
#include "gemm/kernel_interface.h"
#include "scratch.h"
#include "thread_pool.h"

namespace relora {

struct Kernels;

/// nf4 is only a storage format of a base: its products are computed in bfloat16.
enum class Precision { float32, bfloat16, int8, nf4 };
/// The name JavaScript uses.
std::string_view name_of(Precision precision);

/// Memory that outlives one parallel section of a kernel. Each name has one use, so that a kernel and the products it calls never share a
/// buffer.
enum class Shared { right_panels, first, second, third, count };

class Context {
 public:
  Context(InstructionSet set, unsigned threads);

  const InstructionSet set;
  const Kernels& kernels;
  ThreadPool pool;

  const ProductKernel& product_kernel(Precision precision) const;
  Scratch& shared(Shared name) { return shared_[static_cast<size_t>(name)]; }

  /// Temporaries of the current pass; a pass begins with `reset`.
  Arena arena;

  /// Packing space of one worker: a left block and a right panel block of any kernel.
  uint32_t* left_block(unsigned worker) { return product_memory_[worker].words(product_words); }
  uint32_t* right_block(unsigned worker) { return left_block(worker) + packed_left_words; }

  /// Reserves `floats` floats for every worker. Called before the parallel section, because bodies must not throw.
  void reserve_worker_memory(size_t floats) {
    for (Scratch& memory : worker_memory_) memory.floats(floats);
    worker_floats_ = floats;
  }
  float* worker_memory(unsigned worker) { return worker_memory_[worker].floats(worker_floats_); }

 private:
  static constexpr size_t panel_columns_max = 64;
  static constexpr size_t product_words = packed_left_words + panel_columns_max * (block_words + 2);

  Scratch shared_[static_cast<size_t>(Shared::count)];
  std::vector<Scratch> product_memory_, worker_memory_;
  size_t worker_floats_ = 0;
};

}  // namespace relora
