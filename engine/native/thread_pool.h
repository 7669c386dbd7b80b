// A persistent pool. The caller works too; an idle worker spins for a moment, then parks.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace relora {

class ThreadPool {
 public:
  explicit ThreadPool(unsigned threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  unsigned threads() const { return threads_; }

  /// Calls body(task, worker) once for every task in [0, tasks), worker in [0, threads()). Each worker begins
  /// with its own contiguous share, so that it finds its caches again, and then helps the others. Bodies must
  /// not throw.
  template <class Body>
  void run(size_t tasks, const Body& body) {
    if (threads_ == 1 || tasks <= 1) {
      for (size_t task = 0; task < tasks; task++) body(task, 0u);
      return;
    }
    run_shared(tasks, &body, [](const void* context, size_t task, unsigned worker) {
      (*static_cast<const Body*>(context))(task, worker);
    });
  }

 private:
  using Call = void (*)(const void* context, size_t task, unsigned worker);
  struct alignas(64) Share {
    std::atomic<size_t> next{0};
    size_t end = 0;
  };

  void stop();
  void run_shared(size_t tasks, const void* context, Call call);
  void work(unsigned worker);
  void serve(unsigned worker);
  bool await_job(uint64_t& seen);
  bool join_job();

  const unsigned threads_;
  std::unique_ptr<Share[]> shares_;
  const void* context_ = nullptr;
  Call call_ = nullptr;

  alignas(64) std::atomic<uint64_t> generation_{0};
  alignas(64) std::atomic<uint32_t> joined_;  // workers inside the job, and the `closed` bit
  alignas(64) std::atomic<uint32_t> parked_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace relora
