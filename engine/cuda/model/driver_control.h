// Controls of the model for tests: the card that it emulates, the order of its threads, its faults.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

#include "grid.h"

namespace relora::model {

/// Initialized from the environment (CUDA_MODEL_...), so that a child of a server can have its card too.
struct Control {
  Control();
  uint64_t memory_bytes;
  std::string others_file;  // as in Memory
  int driver_version;
  int capability;  // 90 is 9.0
  uint64_t lose_after_launches;  // 0: never
  int lose_ordinal;              // the card that is lost; -1: any
  int device_count;
  int first_device;  // of those of all servers: cards of several servers differ in their uuids
  uint64_t fail_after_sums;  // of NCCL; 0: never
  /// Until then the card begins no further command. Not without end: a host that waits for the card could not let it continue.
  std::atomic<std::chrono::steady_clock::time_point> held_until{};
  Schedule schedule;
};
extern Control control;

void watch_writes();
void limit_memory(uint64_t bytes);
uint64_t launches();

/// Output of the model's compiler: this, followed by a shared library.
constexpr char model_image_magic[8] = {'R', 'L', 'M', 'O', 'D', 'E', 'L', '1'};
struct ModelImage {
  char magic[8];
  uint64_t bytes;
  uint64_t is_checked;
};

}  // namespace relora::model
