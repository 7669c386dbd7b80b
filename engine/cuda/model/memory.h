// The memory of the modeled card: allocations are filled with NaN and have guards on both sides, plus a shadow for kernels that are
// compiled with checks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "shadow.h"

namespace relora::model {

class Memory {
 public:
  /// `others_file`: a file with the number of bytes that other programs use on the card; empty for none.
  Memory(size_t bytes_max, std::string others_file) : others_file_(std::move(others_file)), bytes_max_(bytes_max) {}

  /// Null if the card has no space for it.
  void* allocate(size_t bytes);
  /// False if no allocation begins there.
  bool release(void* address);
  /// False unless the whole range is in one allocation.
  bool holds(const void* address, size_t bytes);
  /// Marks memory as initialized, after a write by the host or by a copy.
  void written_by_copy(const void* address, size_t bytes);
  /// "offset 264 of 256 bytes" if it is in or near an allocation.
  std::string describe(const void* address);
  /// The shadow of a range, or null if it is outside of every allocation.
  ShadowRecord* shadow_of(const void* address, size_t bytes);
  /// Reports allocations whose guards were written to.
  void check_guards(const std::string& after);

  /// From now on tracks for each byte whether it was ever written.
  void watch_writes() { watches_writes_ = true; }

  size_t bytes_max() const { return bytes_max_; }
  size_t bytes_used();
  size_t bytes_of_others() const;
  size_t count();
  void limit(size_t bytes_max) { bytes_max_ = bytes_max; }

 private:
  struct Allocation {
    size_t bytes;
    char* block;
    bool watches_writes;  // otherwise everything counts as written
    std::unique_ptr<ShadowRecord[], void (*)(void*)> shadow{nullptr, nullptr};
  };
  static constexpr size_t guard_bytes = 256;
  static constexpr int guard_pattern = 0xa5;

  std::map<const char*, Allocation>::iterator find(const void* address);
  static bool is_intact(const Allocation&);
  static ShadowRecord* records_of(Allocation&);

  const std::string others_file_;
  std::mutex mutex_;
  std::map<const char*, Allocation> allocations_;
  size_t bytes_max_, bytes_used_ = 0;
  bool watches_writes_ = false;
};

}  // namespace relora::model
