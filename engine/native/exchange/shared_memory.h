// Exchange between processes of one machine through shared memory: an open file created by their parent, with a header and slots.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "exchange.h"

namespace relora {

class SharedMemory : public Exchange {
 public:
  /// Maps the file; every member passes the same length. Throws if it is too short for this many members.
  SharedMemory(int file, uint32_t rank, uint32_t size);
  ~SharedMemory() override;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void sum(float* values, size_t count, TravelType type, const Written& written) override;
  void gather(uint8_t* all, const uint8_t* own, size_t bytes) override;
  void leave() override;

 private:
  struct Header;
  enum class Kind : uint32_t { sum = 1, gather = 2, sum_bfloat16 = 3 };

  template <class Packed>
  void sum_packed(Kind kind, float* values, size_t count, const Written& written);
  void begin(Kind kind, size_t count);
  /// Returns when all members have called it.
  void meet();
  void check(Kind kind, size_t count);
  [[noreturn]] void lost(uint32_t rank);
  uint8_t* slot(uint32_t rank) const;

  size_t bytes_ = 0;
  /// Size of a slot; every member has two, used alternately.
  size_t slot_bytes_ = 0;
  uint8_t* memory_ = nullptr;
  Header* header_ = nullptr;
  /// Index of the current slot.
  uint32_t turn_ = 0;
};

}  // namespace relora
