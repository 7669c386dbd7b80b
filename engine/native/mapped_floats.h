// Float32 memory backed by an unnamed file: the system may write it out and drop it, and nothing is left when the process ends.
#pragma once
#include <cstddef>
#include <string>

namespace relora {

class MappedFloats {
 public:
  /// Allocates space on the disk of `folder` at once. Throws std::system_error.
  MappedFloats(const std::string& folder, size_t count);
  ~MappedFloats();
  MappedFloats(const MappedFloats&) = delete;
  MappedFloats& operator=(const MappedFloats&) = delete;

  float* data() const { return static_cast<float*>(memory_); }

 private:
  void* memory_;
  size_t bytes_;
};

/// Drops the pages of a mapped array from the process; their content is read back on the next use.
void release_pages(const void* memory, size_t bytes);

}  // namespace relora
