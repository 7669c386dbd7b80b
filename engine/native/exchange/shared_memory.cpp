#include "shared_memory.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <string>
#include <system_error>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace relora {

namespace {

/// Size of the header, enough for the calls of this many members.
constexpr size_t header_bytes = 65536;
constexpr uint32_t members_max = 1024;
/// Slots are aligned to cache lines, so that no two members write to the same one.
constexpr size_t line_bytes = 64;
/// Polls before sleeping: a member that is about to arrive is faster than a wakeup by the kernel.
constexpr int looks = 200;

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Returns when the word is no longer `value`, after a wakeup, or after a short time.
void wait_while(std::atomic<uint32_t>& word, uint32_t value) {
#ifdef __linux__
  const timespec moment = {0, 200'000'000};  // a member that left between our check and our sleep woke nobody
  syscall(SYS_futex, &word, FUTEX_WAIT, value, &moment, nullptr, 0);
#else
  const timespec moment = {0, 50'000};
  if (word.load(std::memory_order_acquire) == value) nanosleep(&moment, nullptr);
#endif
}

void wake_all(std::atomic<uint32_t>& word) {
#ifdef __linux__
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
#else
  static_cast<void>(word);
#endif
}

}  // namespace

/// The file is initially zero.
struct SharedMemory::Header {
  std::atomic<uint32_t> arrived;
  /// Number of completed meetings.
  std::atomic<uint32_t> meetings;
  /// Rank of the first member that left, plus one; 0 for none.
  std::atomic<uint32_t> left;
  uint32_t unused;
  struct Call {
    std::atomic<uint64_t> count;
    std::atomic<uint32_t> kind;
    uint32_t unused;
  } calls[2][members_max];
};

SharedMemory::SharedMemory(int file, uint32_t rank, uint32_t size) : Exchange(rank, size) {
  static_assert(sizeof(Header) <= header_bytes);
  static_assert(std::atomic<uint32_t>::is_always_lock_free && std::atomic<uint64_t>::is_always_lock_free);
  if (size > members_max) throw std::invalid_argument("at most " + std::to_string(members_max) + " members can share memory");
  struct stat found;
  if (fstat(file, &found) < 0) throw std::system_error(errno, std::generic_category(), "the memory that ranks share");
  bytes_ = static_cast<size_t>(found.st_size);
  if (bytes_ > header_bytes) slot_bytes_ = (bytes_ - header_bytes) / (2 * size) / line_bytes * line_bytes;
  if (slot_bytes_ == 0) {
    throw std::invalid_argument("the memory that ranks share has " + std::to_string(bytes_) + " bytes, too few for " +
                                std::to_string(size) + " members");
  }
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "the memory that ranks share");
  memory_ = static_cast<uint8_t*>(memory);
  header_ = reinterpret_cast<Header*>(memory_);
}

SharedMemory::~SharedMemory() { munmap(memory_, bytes_); }

uint8_t* SharedMemory::slot(uint32_t rank) const {
  return memory_ + header_bytes + (turn_ * size_ + rank) * slot_bytes_;
}

/// The turn changes with every meeting after which slots are read, so that nobody writes to a slot that another member still reads.
void SharedMemory::begin(Kind kind, size_t count) {
  turn_ ^= 1;
  Header::Call& call = header_->calls[turn_][rank_];
  call.count.store(count, std::memory_order_relaxed);
  call.kind.store(static_cast<uint32_t>(kind), std::memory_order_relaxed);
}

void SharedMemory::meet() {
  const uint32_t meeting = header_->meetings.load(std::memory_order_acquire);
  if (header_->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    header_->arrived.store(0, std::memory_order_relaxed);
    header_->meetings.store(meeting + 1, std::memory_order_release);
    return wake_all(header_->meetings);
  }
  for (int look = 0;; look++) {
    if (header_->meetings.load(std::memory_order_acquire) != meeting) return;
    // Checked only while waiting: a member that left after this meeting took part in it.
    const uint32_t left = header_->left.load(std::memory_order_acquire);
    if (left != 0 && header_->meetings.load(std::memory_order_acquire) == meeting) lost(left - 1);
    if (look < looks) pause_briefly();
    else wait_while(header_->meetings, meeting);
  }
}

void SharedMemory::check(Kind kind, size_t count) {
  for (uint32_t rank = 0; rank < size_; rank++) {
    const Header::Call& call = header_->calls[turn_][rank];
    const uint32_t other = call.kind.load(std::memory_order_relaxed);
    const uint64_t others = call.count.load(std::memory_order_relaxed);
    if (other == static_cast<uint32_t>(kind) && others == count) continue;
    leave();
    throw MemberLost("rank " + std::to_string(rank) + " exchanges something else (" + std::to_string(other) + " of " +
                     std::to_string(others) + ") than rank " + std::to_string(rank_) + " (" +
                     std::to_string(static_cast<uint32_t>(kind)) + " of " + std::to_string(count) + ")");
  }
}

void SharedMemory::lost(uint32_t rank) {
  throw MemberLost("rank " + std::to_string(rank) + " of " + std::to_string(size_) + " has left the run");
}

void SharedMemory::leave() {
  uint32_t nobody = 0;
  header_->left.compare_exchange_strong(nobody, rank_ + 1, std::memory_order_acq_rel);
  wake_all(header_->meetings);
}

void SharedMemory::sum(float* values, size_t count, TravelType type, const Written& written) {
  if (type == TravelType::float32) sum_packed<float>(Kind::sum, values, count, written);
  else sum_packed<uint16_t>(Kind::sum_bfloat16, values, count, written);
}

template <class Packed>
void SharedMemory::sum_packed(Kind kind, float* values, size_t count, const Written& written) {
  const size_t piece = slot_bytes_ / sizeof(Packed);
  const auto packed = [&](uint32_t rank) { return reinterpret_cast<Packed*>(slot(rank)); };
  for (size_t done = 0; done < count; done += piece) {
    const size_t length = std::min(piece, count - done);
    written.await(done + length);
    begin(kind, count - done);
    pack(packed(rank_), values + done, length);
    meet();
    check(kind, count - done);
    // Each member adds a part for all, into the slot of rank 0.
    const auto [first, end] = part_of<Packed>(rank_, size_, length);
    add_parts(packed(0) + first, end - first, size_, [&, begin = first](uint32_t rank) { return packed(rank) + begin; });
    meet();
    unpack(values + done, packed(0), length);
  }
}

void SharedMemory::gather(uint8_t* all, const uint8_t* own, size_t bytes) {
  for (size_t done = 0; done < bytes; done += slot_bytes_) {
    const size_t length = std::min(slot_bytes_, bytes - done);
    begin(Kind::gather, bytes - done);
    memcpy(slot(rank_), own + done, length);
    meet();
    check(Kind::gather, bytes - done);
    for (uint32_t rank = 0; rank < size_; rank++) memcpy(all + rank * bytes + done, slot(rank), length);
  }
}

}  // namespace relora
