// How the members of a run reach each other. Every member makes the same calls in the same order; what differs, or a member that ends,
// ends all of them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>

namespace relora {

/// A member ended, or asked for something else than this one: nobody can continue.
struct MemberLost : std::runtime_error {
  using runtime_error::runtime_error;
};

class Exchange {
 public:
  virtual ~Exchange() = default;

  /// values[count] becomes the sum over all members, in the order of their ranks whoever adds: the same bits each time, everywhere.
  virtual void sum(float* values, size_t count) = 0;
  /// all[size * bytes] = own[bytes] of each member, in the order of their ranks.
  virtual void gather(uint8_t* all, const uint8_t* own, size_t bytes) = 0;
  /// This member comes no more: whoever waits for it now or later gets MemberLost, or is ended.
  virtual void leave() = 0;

  uint32_t rank() const { return rank_; }
  uint32_t size() const { return size_; }

 protected:
  Exchange(uint32_t rank, uint32_t size) : rank_(rank), size_(size) {}
  /// Which of `count` values this member adds for all: whole lines of the cache, so that no two write to one.
  static std::pair<size_t, size_t> part_of(uint32_t rank, uint32_t size, size_t count) {
    constexpr size_t line = 64 / sizeof(float);
    const size_t lines = (count + line - 1) / line;
    const size_t first = lines * rank / size * line, end = lines * (rank + 1) / size * line;
    return {first < count ? first : count, end < count ? end : count};
  }

  uint32_t rank_, size_;
};

}  // namespace relora
