// Communication between the members of a run. Every member makes the same calls in the same order; a member that differs, or ends, ends all
// of them.
#pragma once
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace relora {

/// A member ended, or made a different call than this one: nobody can continue.
struct MemberLost : std::runtime_error {
  using runtime_error::runtime_error;
};

/// The type in which values are exchanged. Sums are float32 in both cases.
enum class TravelType { float32, bfloat16 };

/// How many values of a sum are final, from the first on: the others are still being computed, by another thread.
class Written {
 public:
  void begin(size_t count) { count_.store(count, std::memory_order_release); }
  void reach(size_t count) {
    count_.store(count, std::memory_order_release);
    count_.notify_all();
  }
  /// No more values will come: who waits for them gets MemberLost.
  void abandon() { reach(abandoned); }

  bool has(size_t count) const {
    const size_t now = count_.load(std::memory_order_acquire);
    if (now == abandoned) throw MemberLost("this rank gave up a sum");
    return now >= count;
  }
  void await(size_t count) const {
    while (!has(count)) {
      const size_t now = count_.load(std::memory_order_acquire);
      if (now < count) count_.wait(now, std::memory_order_acquire);
    }
  }

 private:
  static constexpr size_t abandoned = SIZE_MAX;
  std::atomic<size_t> count_{0};
};

class Exchange {
 public:
  virtual ~Exchange() = default;

  /// values[count] becomes the sum over all members, added in the order of their ranks whichever member adds: the same bits every time,
  /// everywhere. With bfloat16 each member's values are rounded before they are added, and the sum is rounded again. Values are exchanged as
  /// soon as they are written, in the same pieces whenever that is.
  virtual void sum(float* values, size_t count, TravelType type, const Written& written) = 0;
  /// all[size * bytes] = own[bytes] of each member, in the order of their ranks.
  virtual void gather(uint8_t* all, const uint8_t* own, size_t bytes) = 0;
  /// This member makes no further calls: members that wait for it now or later get MemberLost, or are ended.
  virtual void leave() = 0;

  uint32_t rank() const { return rank_; }
  uint32_t size() const { return size_; }

 protected:
  Exchange(uint32_t rank, uint32_t size) : rank_(rank), size_(size) {}
  /// The part of `count` values that this member adds for all: whole cache lines, so that no two members write to the same one.
  template <class Packed>
  static std::pair<size_t, size_t> part_of(uint32_t rank, uint32_t size, size_t count) {
    constexpr size_t line = 64 / sizeof(Packed);
    const size_t lines = (count + line - 1) / line;
    const size_t first = lines * rank / size * line, end = lines * (rank + 1) / size * line;
    return {first < count ? first : count, end < count ? end : count};
  }

  uint32_t rank_, size_;
};

/// Converts values to the exchanged type, and back. Values too large for bfloat16 become infinite, and NaN stays NaN: no step uses either.
inline void pack(float* packed, const float* values, size_t count) { std::memcpy(packed, values, count * sizeof *values); }
inline void unpack(float* values, const float* packed, size_t count) { std::memcpy(values, packed, count * sizeof *values); }
inline void pack(uint16_t* packed, const float* values, size_t count) {
  for (size_t i = 0; i < count; i++) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i]);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    // Rounding could carry a NaN over into infinity: it is made quiet and cut off instead.
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    packed[i] = static_cast<uint16_t>((is_nan ? bits | 0x400000 : rounded) >> 16);
  }
}
inline void unpack(float* values, const uint16_t* packed, size_t count) {
  for (size_t i = 0; i < count; i++) values[i] = std::bit_cast<float>(static_cast<uint32_t>(packed[i]) << 16);
}

/// sum[count] = the sum over `size` parts, one after another from rank 0 on; part(rank) may be the memory of the sum.
template <class Packed, class Part>
void add_parts(Packed* sum, size_t count, uint32_t size, Part part) {
  constexpr size_t block = 1024;
  float total[block], value[block];
  for (size_t first = 0; first < count; first += block) {
    const size_t length = count - first < block ? count - first : block;
    unpack(total, part(0) + first, length);
    for (uint32_t rank = 1; rank < size; rank++) {
      unpack(value, part(rank) + first, length);
      for (size_t i = 0; i < length; i++) total[i] += value[i];
    }
    pack(sum + first, total, length);
  }
}

}  // namespace relora
