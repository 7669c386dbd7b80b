#include "ring.h"

#include <chrono>
#include <thread>
#include <utility>

namespace relora::cuda {

namespace {

/// Between two looks at a sum: a hundredth of the time that a large one takes, and few enough looks for an idle processor.
constexpr std::chrono::microseconds pause{50};

}  // namespace

Ring::Ring(const Driver& driver, const Nccl& nccl) : driver_(driver), nccl_(nccl) {}

void Ring::join(const RingId& id, int rank, int size) {
  RingHandle joined = nullptr;
  nccl_.check(nccl_.ncclCommInitRank(&joined, size, id, rank), "joining the cards of " + std::to_string(size) + " ranks");
  handle_ = joined;
}

void Ring::sum(DeviceAddress values, size_t count, StreamHandle stream) {
  if (handle_ == nullptr) throw CudaError("NOT_OPEN", "the cards are not connected");
  constexpr const char* doing = "adding over the cards";
  void* const at = reinterpret_cast<void*>(values);
  Status error = nccl_.ncclAllReduce(at, at, count, ring_float32, ring_add, handle_, stream);
  Status card = driver_.cuStreamQuery(stream);
  // Where another rank is lost the stream would never come to an end: only NCCL knows.
  while (error == success && card == not_ready && !is_aborted_) {
    std::this_thread::sleep_for(pause);
    card = driver_.cuStreamQuery(stream);
    nccl_.check(nccl_.ncclCommGetAsyncError(handle_, &error), doing);
  }
  if (error == success && card == success) return;
  end();
  // A lost card is the cause of what NCCL reports.
  if (card != not_ready) driver_.check(card, doing);
  nccl_.check(error, doing);
  throw CudaError("NCCL_ABORTED", std::string(doing) + ": this rank leaves");
}

void Ring::end() {
  if (handle_ != nullptr) nccl_.ncclCommAbort(std::exchange(handle_, nullptr));
}

}  // namespace relora::cuda
