#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <mutex>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace relora::model {

namespace {
thread_local Context* entered_from;  // what a switch came from, for the address sanitizer

void announce_arrival(Context& here) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(here.fake_stack, &entered_from->stack_bottom, &entered_from->stack_bytes);
#else
  (void)here;
#endif
}

struct Start {
  void (*function)(void*);
  void* argument;
};

void begin(Start* start) {
  Context fresh;
  announce_arrival(fresh);
  start->function(start->argument);
  __builtin_trap();
}

}  // namespace

#if defined(__x86_64__)

asm(R"(
.text
.local relora_model_switch
.type relora_model_switch, @function
relora_model_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size relora_model_switch, .-relora_model_switch
.local relora_model_begin
.type relora_model_begin, @function
relora_model_begin:
  movq %r12, %rdi
  xorl %ebp, %ebp
  callq *%r13
.size relora_model_begin, .-relora_model_begin
)");
extern "C" void relora_model_switch(void** from, void* to) asm("relora_model_switch");
extern "C" void relora_model_begin() asm("relora_model_begin");

static void exchange_stacks(Context& from, Context& to) {
  relora_model_switch(&from.stack_pointer, to.stack_pointer);
}

static void* first_frame(char* top, void (*function)(Start*), Start* start) {
  // As a switch leaves the stack: six registers, then the return address; a multiple of 16 bytes remains for the call there.
  void** frame = reinterpret_cast<void**>(top) - 9;
  frame[0] = nullptr;                                 // r15
  frame[1] = nullptr;                                 // r14
  frame[2] = reinterpret_cast<void*>(function);       // r13
  frame[3] = start;                                   // r12
  frame[4] = frame[5] = nullptr;                      // rbx, rbp
  frame[6] = reinterpret_cast<void*>(relora_model_begin);
  frame[7] = frame[8] = nullptr;
  return frame;
}

#else

// On other processors the C library's switch, which is slower by a system call.
static void exchange_stacks(Context& from, Context& to) {
  ucontext_t here;
  from.stack_pointer = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to.stack_pointer));
}

static void enter(unsigned high, unsigned low) {
  const uint64_t start = static_cast<uint64_t>(high) << 32 | low;
  begin(reinterpret_cast<Start*>(start));
}

static void* first_frame(char* top, void (*)(Start*), Start* start) {
  auto* const context = reinterpret_cast<ucontext_t*>(top - sizeof(ucontext_t)) - 1;
  getcontext(context);
  char* const bottom = top - FiberStack::bytes + 4096;
  context->uc_stack.ss_sp = bottom;
  context->uc_stack.ss_size = reinterpret_cast<char*>(context) - bottom;
  context->uc_link = nullptr;
  const uint64_t bits = reinterpret_cast<uint64_t>(start);
  makecontext(context, reinterpret_cast<void (*)()>(enter), 2, static_cast<unsigned>(bits >> 32),
              static_cast<unsigned>(bits));
  return context;
}

#endif

void switch_context(Context& from, Context& to, [[maybe_unused]] bool from_ends) {
  entered_from = &from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to.stack_bottom, to.stack_bytes);
#endif
  exchange_stacks(from, to);
  announce_arrival(from);
}

FiberStack::FiberStack()
    : memory_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
  if (memory_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory_, 4096, PROT_NONE);  // guards against stack overflow
}

FiberStack::~FiberStack() {
  forget_frames();
  munmap(memory_, bytes);
}

/// A fiber ends without returning from its functions, whose frames AddressSanitizer would still guard.
void FiberStack::forget_frames() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory_, bytes);
#endif
}

Context FiberStack::prepare(void (*function)(void*), void* argument) {
  forget_frames();
  char* const top = static_cast<char*>(memory_) + bytes - 64;
  auto* const start = reinterpret_cast<Start*>(top);
  *start = {function, argument};
  Context context;
  context.stack_pointer = first_frame(top, begin, start);
  context.stack_bottom = memory_;
  context.stack_bytes = bytes;
  return context;
}

namespace {
std::mutex free_mutex;
std::vector<std::unique_ptr<FiberStack>>& free_stacks() {
  static auto* const stacks = new std::vector<std::unique_ptr<FiberStack>>;  // never freed: a launch may outlive main
  return *stacks;
}
}  // namespace

FiberStacks::FiberStacks(size_t count) {
  const std::lock_guard lock(free_mutex);
  while (stacks_.size() < count && !free_stacks().empty()) {
    stacks_.push_back(std::move(free_stacks().back()));
    free_stacks().pop_back();
  }
  while (stacks_.size() < count) stacks_.push_back(std::make_unique<FiberStack>());
}

FiberStacks::~FiberStacks() {
  const std::lock_guard lock(free_mutex);
  for (auto& stack : stacks_) free_stacks().push_back(std::move(stack));
}

}  // namespace relora::model
