// Memory that grows and is reused. Page faults of a fresh big allocation cost more than the product written
// into it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace relora {

/// Memory on 64-byte boundaries, on huge pages where the system offers them. Throws std::bad_alloc.
void* allocate_aligned(size_t bytes);
void free_aligned(void* memory);

/// What this process holds of it now.
struct Allocations {
  size_t count, bytes;
};
Allocations allocations();

/// A buffer whose contents do not survive the next request.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free_aligned(memory_); }

  float* floats(size_t count) { return static_cast<float*>(reserve(count * sizeof(float))); }
  double* doubles(size_t count) { return static_cast<double*>(reserve(count * sizeof(double))); }
  uint32_t* words(size_t count) { return static_cast<uint32_t*>(reserve(count * sizeof(uint32_t))); }

 private:
  void* reserve(size_t bytes);

  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace relora
