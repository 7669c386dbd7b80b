// NCCL's functions for the model of a card: processes of one machine add through a piece of shared memory, in the order of their ranks. As
// on a card, a sum that another rank does not join occupies the stream until the communicator is aborted.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>

#include "../host/cuda_api.h"
#include "blas_queue.h"
#include "driver_control.h"
#include "faults.h"

using namespace relora::cuda;
using relora::model::control;
using relora::model::faults;

namespace {

constexpr int ranks_max = 64;
constexpr size_t slot_floats = 16384;
constexpr std::chrono::microseconds pause{50};

/// Initially zero.
struct Shared {
  std::atomic<uint32_t> arrived, meetings;
  std::atomic<int> process_ids[ranks_max];
  std::atomic<uint64_t> counts[ranks_max];
};

struct Connection {
  Connection(void* memory, size_t bytes, int rank, int size)
      : shared(static_cast<Shared*>(memory)), bytes(bytes), rank(rank), size(size) {}

  Shared* const shared;
  const size_t bytes;
  const int rank, size;
  uint64_t sums = 0;
  std::atomic<Status> error = success;
  std::atomic<bool> is_aborted = false;

  ~Connection() { munmap(shared, bytes); }

  float* slot(int of) const { return reinterpret_cast<float*>(shared + 1) + static_cast<size_t>(of) * slot_floats; }

  /// Returns when all ranks have called it. False after an abort, for which it waits where another process is gone.
  bool meet() {
    const uint32_t meeting = shared->meetings;
    if (shared->arrived.fetch_add(1) + 1 == static_cast<uint32_t>(size)) {
      shared->arrived = 0;
      shared->meetings++;
      return true;
    }
    while (shared->meetings == meeting) {
      if (is_aborted) return false;
      for (int other = 0; other < size; other++) {
        const int process_id = shared->process_ids[other];
        if (process_id != 0 && kill(process_id, 0) < 0 && errno == ESRCH) error = ring_remote_error;
      }
      std::this_thread::sleep_for(pause);
    }
    return true;
  }

  void add(float* values, size_t count) {
    shared->counts[rank] = count;
    for (size_t done = 0; done < count; done += slot_floats) {
      const size_t length = std::min(slot_floats, count - done);
      std::memcpy(slot(rank), values + done, length * sizeof(float));
      if (!meet()) return;
      for (int other = 0; other < size; other++) {
        if (shared->counts[other] != count) faults.report("ranks add different numbers of values");
      }
      for (size_t i = 0; i < length; i++) {
        float sum = slot(0)[i];
        for (int other = 1; other < size; other++) sum += slot(other)[i];
        values[done + i] = sum;
      }
      if (!meet()) return;  // nobody writes to a slot that another still reads
    }
    relora::model::written_memory(values, count * sizeof(float));
  }
};

}  // namespace

namespace relora::cuda {
/// Shared with queued sums.
struct RingTag {
  std::shared_ptr<Connection> connection;
};
}  // namespace relora::cuda

#define EXPORT extern "C" __attribute__((visibility("default"))) Status

EXPORT ncclGetVersion(int* version) {
  *version = 22703;
  return success;
}
extern "C" __attribute__((visibility("default"))) const char* ncclGetErrorString(Status status) {
  switch (status) {
    case ring_card_error: return "unhandled cuda error";
    case ring_system_error: return "unhandled system error";
    case ring_invalid_argument: return "invalid argument";
    case ring_invalid_usage: return "invalid usage";
    case ring_remote_error: return "remote process exited or there was a network error";
    default: return "unknown result code";
  }
}
/// The name of the shared memory.
EXPORT ncclGetUniqueId(RingId* id) {
  std::random_device random;
  *id = {};
  std::snprintf(id->bytes, sizeof id->bytes, "/relora-model-%d-%08x%08x", getpid(), random(), random());
  return success;
}
EXPORT ncclCommInitRank(RingHandle* ring, int size, RingId id, int rank) {
  if (size < 1 || size > ranks_max || rank < 0 || rank >= size) return ring_invalid_argument;
  const size_t bytes = sizeof(Shared) + static_cast<size_t>(size) * slot_floats * sizeof(float);
  const int file = shm_open(id.bytes, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) < 0) return ring_system_error;
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return ring_system_error;
  auto connection = std::make_shared<Connection>(memory, bytes, rank, size);
  connection->shared->process_ids[rank] = getpid();
  connection->meet();
  shm_unlink(id.bytes);  // by the first, when all have it open
  *ring = new RingTag{std::move(connection)};
  return success;
}
EXPORT ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, RingHandle ring, StreamHandle) {
  if (from != to || type != ring_float32 || operation != ring_add) return ring_invalid_argument;
  if (!relora::model::holds_memory(to, count * sizeof(float))) {
    faults.report("a sum over cards reads or writes out of bounds");
    return ring_invalid_argument;
  }
  if (control.fail_after_sums != 0 && ++ring->connection->sums > control.fail_after_sums) return ring_system_error;
  const auto add = [connection = ring->connection, values = static_cast<float*>(to), count] { connection->add(values, count); };
  return relora::model::submit(add) == success ? Status{success} : Status{ring_card_error};
}
EXPORT ncclCommGetAsyncError(RingHandle ring, Status* error) {
  *error = ring->connection->error;
  return success;
}
EXPORT ncclCommAbort(RingHandle ring) {
  ring->connection->is_aborted = true;
  delete ring;
  return success;
}
