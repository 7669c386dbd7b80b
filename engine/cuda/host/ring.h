// Sums over the cards of several processes by NCCL.
#pragma once
#include <atomic>

#include "libraries.h"

namespace relora::cuda {

/// One rank of a ring. `join` and `sum` block, one at a time, on a thread to which the card is current; `abort` may come from any other.
class Ring {
 public:
  Ring(const Driver&, const Nccl&);
  /// Ends what other ranks have not joined. Never waits for them, as ncclCommDestroy may.
  ~Ring() { end(); }
  Ring(const Ring&) = delete;

  /// Returns when all ranks have joined by the same id, each with a card of its own.
  void join(const RingId&, int rank, int size);
  /// values[count], float32 on the card, becomes the sum over all ranks, which make the same calls. Returns when the stream has done it.
  /// Throws once another rank is lost, or after `abort`.
  void sum(DeviceAddress values, size_t count, StreamHandle);
  void abort() { is_aborted_ = true; }

 private:
  /// A stream that waits for other ranks continues only after this.
  void end();

  const Driver driver_;
  const Nccl nccl_;
  RingHandle handle_ = nullptr;
  std::atomic<bool> is_aborted_ = false;
};

}  // namespace relora::cuda
