#include "mapped_floats.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <system_error>

namespace relora {

namespace {

[[noreturn]] void fail(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), what);
}

/// Allocates disk blocks now: writing to a mapped page when the disk is full would kill the process.
int take_space(int file, size_t bytes) {
#ifdef __linux__
  return posix_fallocate(file, 0, static_cast<off_t>(bytes));
#else
#ifdef F_PREALLOCATE  // macOS: allocates blocks; the length is set separately
  fstore_t space = {F_ALLOCATEALL, F_PEOFPOSMODE, 0, static_cast<off_t>(bytes), 0};
  if (fcntl(file, F_PREALLOCATE, &space) != 0) return errno;
#endif
  return ftruncate(file, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
#endif
}

/// The mappings of this process, by their end: releasing pages of other memory would lose their content.
struct Mappings {
  std::mutex mutex;
  std::map<uintptr_t, uintptr_t> begin_by_end;
};

Mappings& mappings() {
  static Mappings all;
  return all;
}

}  // namespace

MappedFloats::MappedFloats(const std::string& folder, size_t count) : bytes_(count * sizeof(float)) {
  std::string path = folder + "/.master-XXXXXX";
  const int file = mkstemp(path.data());
  if (file < 0) fail(errno, "no file can be made in " + folder);
  unlink(path.c_str());
  const int refused = take_space(file, bytes_);
  memory_ = refused ? MAP_FAILED : mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const int error = refused ? refused : errno;
  close(file);
  if (memory_ == MAP_FAILED) fail(error, "no " + std::to_string(bytes_) + " bytes can be mapped in " + folder);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory_);
  std::lock_guard lock(mappings().mutex);
  mappings().begin_by_end[begin + bytes_] = begin;
}

MappedFloats::~MappedFloats() {
  {
    std::lock_guard lock(mappings().mutex);
    mappings().begin_by_end.erase(reinterpret_cast<uintptr_t>(memory_) + bytes_);
  }
  munmap(memory_, bytes_);
}

void release_pages(const void* memory, size_t bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory);
  {
    std::lock_guard lock(mappings().mutex);
    const auto found = mappings().begin_by_end.lower_bound(first + bytes);
    if (found == mappings().begin_by_end.end() || first < found->second) {
      throw std::invalid_argument("only pages of mapped memory can be released");
    }
  }
  // Pages of a shared mapping stay in the file: only this process drops them.
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (first + page - 1) / page * page;
  const uintptr_t end = (first + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace relora
