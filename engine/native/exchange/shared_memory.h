// What the processes of one machine exchange through memory that they share: an open file that their parent made, header and slots.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "exchange.h"

namespace relora {

class SharedMemory : public Exchange {
 public:
  /// Maps the file, of which every member has the same length. Throws where it is too short for so many.
  SharedMemory(int file, uint32_t rank, uint32_t size);
  ~SharedMemory() override;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void sum(float* values, size_t count, TravelType type) override;
  void gather(uint8_t* all, const uint8_t* own, size_t bytes) override;
  void leave() override;

 private:
  struct Header;
  enum class Kind : uint32_t { sum = 1, gather = 2, sum_bfloat16 = 3 };

  template <class Packed>
  void sum_packed(Kind kind, float* values, size_t count);
  void begin(Kind kind, size_t count);
  /// Returns when all members have come here.
  void meet();
  void check(Kind kind, size_t count);
  [[noreturn]] void lost(uint32_t rank);
  uint8_t* slot(uint32_t rank) const;

  size_t bytes_ = 0;
  /// Of a slot; every member has two, used in turn.
  size_t slot_bytes_ = 0;
  uint8_t* memory_ = nullptr;
  Header* header_ = nullptr;
  /// Which of the two is used.
  uint32_t turn_ = 0;
};

}  // namespace relora
