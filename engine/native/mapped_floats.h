// Float32 memory behind a file that has no name: the system may write it out and forget it, and nothing is left of
// it when the process ends.
#pragma once
#include <cstddef>
#include <string>

namespace relora {

class MappedFloats {
 public:
  /// Space on the disk of `folder` is taken at once. Throws std::system_error.
  MappedFloats(const std::string& folder, size_t count);
  ~MappedFloats();
  MappedFloats(const MappedFloats&) = delete;
  MappedFloats& operator=(const MappedFloats&) = delete;

  float* data() const { return static_cast<float*>(memory_); }

 private:
  void* memory_;
  size_t bytes_;
};

/// Takes the pages of a mapped array out of the process; what they hold is read back when it is next used.
void release_pages(const void* memory, size_t bytes);

}  // namespace relora
