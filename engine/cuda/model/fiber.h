// Threads of a block as fibers: each has a stack, and a switch saves callee-saved registers.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

namespace relora::model {

/// State of a suspended fiber, or of the worker that runs fibers.
struct Context {
  void* stack_pointer = nullptr;
  // For AddressSanitizer, which must know the current stack.
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
};

/// Switches from `from`, the current context, to `to`. `from_ends`: it will not be entered again.
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

/// Unused stacks. Creating one takes the system longer than most launches need.
class FiberStacks {
 public:
  explicit FiberStacks(size_t count);
  ~FiberStacks();
  FiberStack& operator[](size_t i) { return *stacks_[i]; }

 private:
  std::vector<std::unique_ptr<FiberStack>> stacks_;
};

}  // namespace relora::model
