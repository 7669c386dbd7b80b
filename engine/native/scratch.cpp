#include "scratch.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace relora {

namespace {
constexpr size_t cache_line = 64;
constexpr size_t huge_page = size_t{2} << 20;

/// Sizes by address, for the whole process: a base may be freed by the garbage collector of another environment than the one that asks for
/// the total. Kernels keep their memory, so allocations are rare and a lock costs nothing.
struct Held {
  std::mutex mutex;
  std::unordered_map<void*, size_t> bytes;
};

Held& held() {
  static Held& all = *new Held;  // never destroyed: memory is still freed while the process exits
  return all;
}

}  // namespace

void return_large_memory() {
#ifdef __GLIBC__
  // By default glibc allocates up to 32 MiB from its heap once a block of that size was freed: as a step's buffers are freed and allocated,
  // the heap gets holes, 46 MB of 358 in a run of llama-20m, which only a trim returns.
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
}

void* allocate_aligned(size_t bytes) {
  const size_t alignment = bytes >= 2 * huge_page ? huge_page : cache_line;
  // Not rounded up to huge pages: the last one would be resident though hardly used, a quarter of all packed weights of llama-1b.
  const size_t rounded = (bytes + cache_line - 1) / cache_line * cache_line;
  void* memory = nullptr;
  if (rounded < bytes || posix_memalign(&memory, alignment, rounded == 0 ? cache_line : rounded) != 0) {
    throw std::bad_alloc();
  }
  try {
    std::lock_guard lock(held().mutex);
    held().bytes.emplace(memory, rounded);
  } catch (...) {
    std::free(memory);
    throw;
  }
#ifdef __linux__
  // Packed panels are read with strides of many pages; advice only, so a refusal does not matter.
  if (alignment == huge_page) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
  return memory;
}

void free_aligned(void* memory) {
  if (memory == nullptr) return;
  {
    std::lock_guard lock(held().mutex);
    held().bytes.erase(memory);
  }
  std::free(memory);
}

Allocations allocations() {
  std::lock_guard lock(held().mutex);
  Allocations sum{held().bytes.size(), 0};
  for (const auto& [memory, bytes] : held().bytes) sum.bytes += bytes;
  return sum;
}

void* Scratch::reserve(size_t bytes) {
  if (bytes > bytes_) {
    // A quarter more than requested, so that slowly growing shapes do not allocate each time.
    const size_t grown = bytes + (bytes_ == 0 ? 0 : bytes / 4);
    free_aligned(memory_);
    memory_ = nullptr;
    bytes_ = 0;
    memory_ = allocate_aligned(grown);
    bytes_ = grown;
  }
  return memory_;
}

void Arena::reset() {
  if (chunks_.size() == 1) {
    chunks_[0].used = 0;
    return;
  }
  // If several pieces were needed, allocates one of their total size for future use.
  size_t total = 0;
  for (const Chunk& chunk : chunks_) total += chunk.bytes;
  release();
  if (total > 0) chunks_.push_back({static_cast<char*>(allocate_aligned(total)), total, 0});
}

void* Arena::take_bytes(size_t bytes) {
  const size_t rounded = (bytes + cache_line - 1) / cache_line * cache_line;
  if (chunks_.empty() || chunks_.back().bytes - chunks_.back().used < rounded) {
    chunks_.push_back({static_cast<char*>(allocate_aligned(rounded)), rounded, 0});
  }
  Chunk& chunk = chunks_.back();
  void* const memory = chunk.memory + chunk.used;
  chunk.used += rounded;
  return memory;
}

void Arena::release() {
  for (const Chunk& chunk : chunks_) free_aligned(chunk.memory);
  chunks_.clear();
}

}  // namespace relora
