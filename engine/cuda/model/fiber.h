// Threads of a block as fibers: a stack each, and a switch that saves what a call has to preserve.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

namespace relora::model {

/// Where a fiber, or the worker that runs fibers, stands while it does not run.
struct Context {
  void* stack_pointer = nullptr;
  // For the address sanitizer, which has to know whose stack it looks at.
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
};

/// Leaves `from`, which is the one that runs, and continues in `to`. `from_ends`: it will not be entered again.
void switch_context(Context& from, Context& to, bool from_ends = false);

class FiberStack {
 public:
  static constexpr size_t bytes = 128 * 1024;

  FiberStack();
  ~FiberStack();
  FiberStack(const FiberStack&) = delete;

  /// A context that begins at function(argument), which must never return.
  Context prepare(void (*function)(void*), void* argument);
  bool holds(const void* address) const {
    return address >= memory_ && address < static_cast<const char*>(memory_) + bytes;
  }

 private:
  void forget_frames();

  void* memory_;
};

/// Stacks that no launch uses now. Making one takes the system longer than most launches need.
class FiberStacks {
 public:
  explicit FiberStacks(size_t count);
  ~FiberStacks();
  FiberStack& operator[](size_t i) { return *stacks_[i]; }

 private:
  std::vector<std::unique_ptr<FiberStack>> stacks_;
};

}  // namespace relora::model
