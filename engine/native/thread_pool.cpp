#include "thread_pool.h"

#include <chrono>

namespace relora {

namespace {

constexpr uint32_t closed = uint32_t{1} << 31;
// Longer than the gap between two operations of a step, shorter than anyone would notice on an idle machine.
constexpr auto spin_time = std::chrono::microseconds(50);

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Polls `ready` for spin_time; returns whether it became true.
template <class Ready>
bool spin_until(const Ready& ready) {
  const auto deadline = std::chrono::steady_clock::now() + spin_time;
  do {
    for (int i = 0; i < 64; i++) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(unsigned threads)
    : threads_(threads < 1 ? 1 : threads), shares_(new Share[threads_]), joined_(closed) {
  try {
    for (unsigned worker = 1; worker < threads_; worker++) {
      workers_.emplace_back([this, worker] { serve(worker); });
    }
  } catch (...) {  // the system refused a thread: ends those that run, and rethrows
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_ = true;
  {
    std::lock_guard lock(mutex_);
    generation_++;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_shared(size_t tasks, const void* context, Call call) {
  // No worker is inside a job here: the last one was closed and all have left it.
  for (unsigned worker = 0; worker < threads_; worker++) {
    shares_[worker].next.store(tasks * worker / threads_, std::memory_order_relaxed);
    shares_[worker].end = tasks * (worker + 1) / threads_;
  }
  context_ = context;
  call_ = call;
  joined_.store(0, std::memory_order_release);
  generation_.fetch_add(1);
  if (parked_.load() > 0) {
    // a worker about to park has either seen the new generation or waits already
    { std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  work(0);
  // Workers that have not joined by now are not needed: waiting for a parked worker to wake up would cost more than it helps.
  joined_.fetch_or(closed);
  const auto all_left = [this] { return joined_.load(std::memory_order_acquire) == closed; };
  while (!spin_until(all_left)) std::this_thread::yield();
}

void ThreadPool::work(unsigned worker) {
  for (unsigned offset = 0; offset < threads_; offset++) {
    Share& share = shares_[(worker + offset) % threads_];
    for (;;) {
      const size_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= share.end) break;
      call_(context_, task, worker);
    }
  }
}

void ThreadPool::serve(unsigned worker) {
  uint64_t seen = 0;
  while (await_job(seen)) {
    if (!join_job()) continue;
    work(worker);
    joined_.fetch_sub(1, std::memory_order_release);
  }
}

bool ThreadPool::await_job(uint64_t& seen) {
  const auto changed = [&] { return generation_.load(std::memory_order_acquire) != seen; };
  if (!spin_until(changed)) {
    std::unique_lock lock(mutex_);
    parked_++;
    wake_.wait(lock, [&] { return generation_.load() != seen; });
    parked_--;
  }
  seen = generation_.load(std::memory_order_acquire);
  return !stopping_;
}

bool ThreadPool::join_job() {
  uint32_t state = joined_.load(std::memory_order_acquire);
  while ((state & closed) == 0) {
    if (joined_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

}  // namespace relora
