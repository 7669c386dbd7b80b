// Memory that grows and is reused. Page faults of a fresh big allocation cost more than the product written
// into it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace relora {

/// Memory on 64-byte boundaries, on huge pages where the system offers them. Throws std::bad_alloc.
void* allocate_aligned(size_t bytes);
void free_aligned(void* memory);

/// Makes the process's allocator return large memory to the system as soon as it is freed. To be called once.
void return_large_memory();

/// Memory of this kind that the process holds now.
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

/// Cuts a buffer into arrays on cache lines. Without a buffer it only counts.
class Cutter {
 public:
  explicit Cutter(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(size_t count) {
    const size_t at = used_;
    used_ += (count * sizeof(T) + cache_line - 1) / cache_line * cache_line;
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t cache_line = 64;
  char* const memory_;
  size_t used_ = 0;
};

/// Temporaries of one pass, all released by the next `reset`; the next pass reuses their memory.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { release(); }

  void reset();
  template <class T>
  T* take(size_t count) {
    return static_cast<T*>(take_bytes(count * sizeof(T)));
  }

 private:
  struct Chunk {
    char* memory;
    size_t bytes, used;
  };
  void* take_bytes(size_t bytes);
  void release();

  std::vector<Chunk> chunks_;
};

}  // namespace relora
