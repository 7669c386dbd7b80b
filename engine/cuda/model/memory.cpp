#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <vector>

#include "faults.h"

namespace relora::model {

std::map<const char*, Memory::Allocation>::iterator Memory::find(const void* address) {
  auto next = allocations_.upper_bound(static_cast<const char*>(address));
  return next == allocations_.begin() ? allocations_.end() : std::prev(next);
}

size_t Memory::bytes_of_others() const {
  if (others_file_.empty()) return 0;
  size_t bytes = 0;
  std::ifstream(others_file_) >> bytes;
  return bytes;
}

void* Memory::allocate(size_t bytes) {
  const std::lock_guard lock(mutex_);
  const size_t used = bytes_used_ + bytes_of_others();
  if (bytes == 0 || used > bytes_max_ || bytes > bytes_max_ - used) return nullptr;
  const size_t rounded = (bytes + guard_bytes - 1) / guard_bytes * guard_bytes;
  char* const block = static_cast<char*>(std::aligned_alloc(guard_bytes, rounded + 2 * guard_bytes));
  if (block == nullptr) return nullptr;
  char* const address = block + guard_bytes;
  std::memset(block, guard_pattern, rounded + 2 * guard_bytes);
  std::memset(address, 0xff, bytes);  // NaN in every format of floats
  allocations_.emplace(address, Allocation{bytes, block, watches_writes_});
  bytes_used_ += bytes;
  return address;
}

bool Memory::is_intact(const Allocation& of) {
  // Checked after every launch, for every allocation, with a single comparison.
  static const std::vector<char> pattern(guard_bytes, static_cast<char>(guard_pattern));
  return std::memcmp(of.block, pattern.data(), guard_bytes) == 0 &&
         std::memcmp(of.block + guard_bytes + of.bytes, pattern.data(), guard_bytes) == 0;
}

bool Memory::release(void* address) {
  const std::lock_guard lock(mutex_);
  const auto found = allocations_.find(static_cast<const char*>(address));
  if (found == allocations_.end()) return false;
  if (!is_intact(found->second)) faults.report("a write beside an allocation of " + std::to_string(found->second.bytes) + " bytes");
  bytes_used_ -= found->second.bytes;
  std::free(found->second.block);
  allocations_.erase(found);
  return true;
}

bool Memory::holds(const void* address, size_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto found = find(address);
  if (found == allocations_.end()) return false;
  const size_t offset = static_cast<const char*>(address) - found->first;
  return offset <= found->second.bytes && bytes <= found->second.bytes - offset;
}

std::string Memory::describe(const void* address) {
  const std::lock_guard lock(mutex_);
  const auto found = find(address);
  if (found == allocations_.end()) return "no allocation";
  const size_t offset = static_cast<const char*>(address) - found->first;
  return "offset " + std::to_string(offset) + " of an allocation of " + std::to_string(found->second.bytes) + " bytes";
}

ShadowRecord* Memory::shadow_of(const void* address, size_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto found = find(address);
  if (found == allocations_.end()) return nullptr;
  Allocation& allocation = found->second;
  const size_t offset = static_cast<const char*>(address) - found->first;
  if (offset > allocation.bytes || bytes > allocation.bytes - offset) return nullptr;
  return records_of(allocation) + offset;
}

ShadowRecord* Memory::records_of(Allocation& of) {
  if (of.shadow) return of.shadow.get();
  // The system provides zeroed pages on first access.
  auto* const records = static_cast<ShadowRecord*>(std::calloc(of.bytes, sizeof(ShadowRecord)));
  if (records == nullptr) throw std::bad_alloc();
  of.shadow = {records, std::free};
  for (size_t i = 0; !of.watches_writes && i < of.bytes; i++) records[i].write.run = run_of_host;
  return records;
}

void Memory::written_by_copy(const void* address, size_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto found = find(address);
  if (found == allocations_.end() || !found->second.watches_writes) return;
  ShadowRecord* const records = records_of(found->second) + (static_cast<const char*>(address) - found->first);
  for (size_t i = 0; i < bytes; i++) records[i] = {{.run = run_of_host}, {}};
}

void Memory::check_guards(const std::string& after) {
  const std::lock_guard lock(mutex_);
  for (auto& [address, allocation] : allocations_) {
    if (is_intact(allocation)) continue;
    faults.report(after + ": a write beside an allocation of " + std::to_string(allocation.bytes) + " bytes");
    std::memset(allocation.block, guard_pattern, guard_bytes);
    std::memset(allocation.block + guard_bytes + allocation.bytes, guard_pattern, guard_bytes);
  }
}

size_t Memory::bytes_used() {
  const std::lock_guard lock(mutex_);
  return bytes_used_;
}

size_t Memory::count() {
  const std::lock_guard lock(mutex_);
  return allocations_.size();
}

}  // namespace relora::model
