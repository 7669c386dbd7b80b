#include "grid.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <thread>
#include <link.h>

#include "faults.h"
#include "fiber.h"
#include "shadow.h"
#include "warp.h"

namespace relora::model {

Faults faults;

namespace {

std::atomic<uint32_t> runs = first_run;

enum class Standing { ready, at_warp, at_block, ended };

struct PendingCopy {
  void* to;
  const void* from;
  uint32_t bytes, source_bytes, group;
};

struct Lane {
  Context context;
  Standing standing;
  WarpOperation operation;
  void* arguments;
  uint32_t copy_group = 0;
  std::vector<PendingCopy> copies;
};

/// Numbers below `bound`, the same for the same seed.
class Draw {
 public:
  explicit Draw(uint32_t seed) : state_(seed * 2654435761u + 1) {}
  uint32_t below(uint32_t bound) {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state_ >> 33) % bound;
  }

 private:
  uint64_t state_;
};

std::vector<uint32_t> in_order(uint32_t count, const Schedule& schedule, uint32_t salt) {
  std::vector<uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (schedule.order == Order::backward) std::reverse(order.begin(), order.end());
  if (schedule.order == Order::seeded) {
    Draw draw(schedule.seed ^ salt);
    for (uint32_t i = count; i > 1; i--) std::swap(order[i - 1], order[draw.below(i)]);
  }
  return order;
}

/// Static shared memory of a module, as this thread sees it.
struct SharedRange {
  char *begin = nullptr, *end = nullptr;
};

SharedRange static_shared_of(const Module& module) {
  struct Search {
    const Module* module;
    SharedRange found;
  } search{&module, {}};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto& search = *static_cast<Search*>(data);
        if (search.module->path != info->dlpi_name || info->dlpi_tls_data == nullptr) return 0;
        for (int i = 0; i < info->dlpi_phnum; i++) {
          if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
          char* const begin = static_cast<char*>(info->dlpi_tls_data);
          search.found = {begin, begin + info->dlpi_phdr[i].p_memsz};
        }
        return 1;
      },
      &search);
  return search.found;
}

/// Runs blocks one after another on the thread that created it.
class Worker {
 public:
  Worker(const Launch& launch, Memory& memory, uint32_t launch_begin);
  ~Worker() { current = nullptr; }
  bool run_block(uint32_t index);

  static thread_local Worker* current;

  void meet(WarpOperation operation, void* arguments);
  void synchronize_block() { wait(Standing::at_block); }
  void copy_async(void* to, const void* from, uint32_t bytes, uint32_t source_bytes);
  void commit_copies() { lane().copy_group++; }
  void wait_copies(uint32_t pending_groups);
  void access(const void* address, size_t bytes, bool is_write, bool is_of_warp = false);
  [[noreturn]] void abandon(const std::string& what);
  void report(const std::string& what) { faults.report(who(thread_) + ": " + what); }

 private:
  Lane& lane() { return lanes_[thread_]; }
  void wait(Standing);
  bool run_warp(uint32_t warp);
  bool complete(uint32_t warp);
  void check_matrix_rows(uint32_t warp, void* const* arguments);
  void look_at(ShadowRecord*, const void* address, size_t bytes, bool is_write, bool is_shared);
  std::string who(uint32_t thread) const;
  std::string describe(const void*) const;
  bool is_shared(const void* address, size_t bytes, size_t& offset) const;
  static void begin_thread(void* worker);

  const Launch& launch_;
  Memory& memory_;
  const uint32_t launch_begin_, threads_;
  const bool is_checked_;
  SharedRange static_shared_;
  std::vector<char> dynamic_shared_;
  std::vector<ShadowRecord> shared_shadow_;
  FiberStacks stacks_;
  std::vector<Lane> lanes_;
  std::vector<uint32_t> warp_barriers_;
  uint32_t block_barriers_ = 0, run_ = 0, thread_ = 0;
  bool is_abandoned_ = false;
  ThreadView view_;
  Context scheduler_;
};

thread_local Worker* Worker::current = nullptr;

Worker::Worker(const Launch& launch, Memory& memory, uint32_t launch_begin)
    : launch_(launch),
      memory_(memory),
      launch_begin_(launch_begin),
      threads_(launch.block.x * launch.block.y * launch.block.z),
      is_checked_(launch.module->is_checked),
      dynamic_shared_(launch.dynamic_shared_bytes + 128),
      stacks_(threads_),
      lanes_(threads_),
      warp_barriers_(threads_ / warp_lanes) {
  current = this;
  view_ = {{}, {}, launch.block, launch.grid, nullptr};
  const auto address = reinterpret_cast<uintptr_t>(dynamic_shared_.data());
  view_.dynamic_shared = reinterpret_cast<void*>((address + 127) / 128 * 128);
  launch.module->enter(&view_);  // the first access creates this thread's copy of the module's static shared memory
  static_shared_ = static_shared_of(*launch.module);
  if (is_checked_) {
    shared_shadow_.resize(launch.dynamic_shared_bytes + static_cast<size_t>(static_shared_.end - static_shared_.begin));
  }
}

std::string Worker::who(uint32_t thread) const {
  return launch_.kernel + ", block " + std::to_string(view_.block.x) + "," + std::to_string(view_.block.y) + "," +
         std::to_string(view_.block.z) + ", thread " + std::to_string(thread);
}

bool Worker::is_shared(const void* address, size_t bytes, size_t& offset) const {
  const char* const at = static_cast<const char*>(address);
  const char* const dynamic = static_cast<const char*>(view_.dynamic_shared);
  if (at >= dynamic && at + bytes <= dynamic + launch_.dynamic_shared_bytes) {
    offset = static_cast<size_t>(at - dynamic);
    return true;
  }
  if (at >= static_shared_.begin && at + bytes <= static_shared_.end) {
    offset = launch_.dynamic_shared_bytes + static_cast<size_t>(at - static_shared_.begin);
    return true;
  }
  return false;
}

std::string Worker::describe(const void* address) const {
  size_t offset;
  if (is_shared(address, 1, offset)) return "offset " + std::to_string(offset) + " of shared memory";
  return memory_.describe(address);
}

void Worker::look_at(ShadowRecord* records, const void* address, size_t bytes, bool is_write, bool is_shared) {
  const Touch now{run_, block_barriers_, warp_barriers_[thread_ / warp_lanes], static_cast<uint16_t>(thread_),
                  false, false, false};
  Finding worst = Finding::none;
  for (size_t i = 0; i < bytes; i++) {
    worst = std::max(worst, touch(records[i], now, launch_begin_, is_write, is_shared));
  }
  if (worst == Finding::none) return;
  const std::string verb = is_write ? "write" : "read";
  report((worst == Finding::race ? verb + " without a barrier after another thread's access: "
                                 : verb + " of memory that nothing has written: ") +
         describe(address));
}

void Worker::access(const void* address, size_t bytes, bool is_write, bool is_of_warp) {
  if (stacks_[thread_].holds(address)) return;
  size_t offset;
  if (is_shared(address, bytes, offset)) {
    if (is_checked_) look_at(shared_shadow_.data() + offset, address, bytes, is_write, true);
    return;
  }
  if (!is_checked_ && memory_.holds(address, bytes)) return;
  if (ShadowRecord* const records = is_checked_ ? memory_.shadow_of(address, bytes) : nullptr) {
    look_at(records, address, bytes, is_write, false);
    return;
  }
  const char* const at = static_cast<const char*>(address);
  const char* const parameters = static_cast<const char*>(launch_.parameters);
  if (!is_write && at >= parameters && at + bytes <= parameters + launch_.parameter_bytes) return;
  if (!is_write && at >= launch_.module->image_begin && at + bytes <= launch_.module->image_end) return;
  const std::string what = std::string(is_write ? "write" : "read") + " of " + std::to_string(bytes) +
                           " bytes out of bounds: " + describe(address);
  if (!is_of_warp) abandon(what);
  report(what);
  is_abandoned_ = true;
}

/// Abandons the block: its fibers are never entered again.
void Worker::abandon(const std::string& what) {
  report(what);
  is_abandoned_ = true;
  lane().standing = Standing::ended;
  switch_context(lane().context, scheduler_, true);
  __builtin_unreachable();
}

void Worker::wait(Standing standing) {
  Lane& mine = lane();
  mine.standing = standing;
  switch_context(mine.context, scheduler_);
}

void Worker::meet(WarpOperation operation, void* arguments) {
  Lane& mine = lane();
  mine.operation = operation;
  mine.arguments = arguments;
  wait(Standing::at_warp);
}

void Worker::copy_async(void* to, const void* from, uint32_t bytes, uint32_t source_bytes) {
  const auto is_aligned = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; };
  if (!is_aligned(to) || !is_aligned(from)) abandon("an asynchronous copy of " + std::to_string(bytes) + " bytes is not aligned");
  if (source_bytes > 0) access(from, source_bytes, false);
  access(to, bytes, true);
  // Visible only after a wait; earlier reads find NaN.
  std::memset(to, 0xff, bytes);
  lane().copies.push_back({to, from, bytes, source_bytes, lane().copy_group});
}

void Worker::wait_copies(uint32_t pending_groups) {
  Lane& mine = lane();
  const auto is_due = [&](const PendingCopy& copy) { return copy.group + pending_groups < mine.copy_group; };
  for (const PendingCopy& copy : mine.copies) {
    if (!is_due(copy)) continue;
    std::memcpy(copy.to, copy.from, copy.source_bytes);
    std::memset(static_cast<char*>(copy.to) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    access(copy.to, copy.bytes, true);
  }
  std::erase_if(mine.copies, is_due);
}

void Worker::check_matrix_rows(uint32_t warp, void* const* arguments) {
  for (uint32_t i = 0; i < warp_lanes; i++) {
    const auto& load = *static_cast<const LoadMatrix*>(arguments[i]);
    if (i >= load.count * 8) continue;
    thread_ = warp * warp_lanes + i;
    if (reinterpret_cast<uintptr_t>(load.row) % 16 != 0) {
      report("a row of ldmatrix is not aligned to 16 bytes");
      is_abandoned_ = true;
    }
    access(load.row, 16, false, true);
  }
}

/// All lanes of the warp have reached an operation. False if they are not at the same one.
bool Worker::complete(uint32_t warp) {
  Lane* const lanes = lanes_.data() + warp * warp_lanes;
  void* arguments[warp_lanes];
  for (uint32_t i = 0; i < warp_lanes; i++) {
    if (lanes[i].operation != lanes[0].operation) return false;
    arguments[i] = lanes[i].arguments;
  }
  switch (lanes[0].operation) {
    case WarpOperation::synchronize: warp_barriers_[warp]++; break;
    case WarpOperation::shuffle: shuffle(arguments); break;
    case WarpOperation::ballot: ballot(arguments); break;
    case WarpOperation::load_matrix:
      check_matrix_rows(warp, arguments);
      if (!is_abandoned_) load_matrix(arguments);
      break;
    case WarpOperation::multiply_bf16: multiply_bf16(arguments); break;
    case WarpOperation::multiply_e4m3: multiply_e4m3(arguments); break;
  }
  for (uint32_t i = 0; i < warp_lanes; i++) lanes[i].standing = Standing::ready;
  return true;
}

/// Runs every ready lane until it waits. Returns whether any was ready.
bool Worker::run_warp(uint32_t warp) {
  bool ran = false;
  const auto order = in_order(warp_lanes, launch_.schedule, warp_barriers_[warp] * 31 + warp + 7);
  for (const uint32_t i : order) {
    thread_ = warp * warp_lanes + i;
    if (lane().standing != Standing::ready) continue;
    const Dimensions& size = launch_.block;
    view_.thread = {thread_ % size.x, thread_ / size.x % size.y, thread_ / size.x / size.y};
    switch_context(scheduler_, lane().context);
    ran = true;
    if (is_abandoned_) return true;
  }
  return ran;
}

void Worker::begin_thread(void* argument) {
  Worker& worker = *static_cast<Worker*>(argument);
  worker.launch_.function(worker.launch_.parameters);
  Lane& mine = worker.lane();
  if (!mine.copies.empty()) worker.report("ends before its asynchronous copies have");
  mine.standing = Standing::ended;
  switch_context(mine.context, worker.scheduler_, true);
}

bool Worker::run_block(uint32_t index) {
  const Dimensions& grid = launch_.grid;
  view_.block = {index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
  run_ = runs++;
  block_barriers_ = 0;
  std::fill(warp_barriers_.begin(), warp_barriers_.end(), 0);
  std::memset(dynamic_shared_.data(), 0xff, dynamic_shared_.size());
  std::memset(static_shared_.begin, 0xff, static_cast<size_t>(static_shared_.end - static_shared_.begin));
  launch_.module->enter(&view_);
  for (uint32_t i = 0; i < threads_; i++) {
    lanes_[i].context = stacks_[i].prepare(begin_thread, this);
    lanes_[i].standing = Standing::ready;
    lanes_[i].copies.clear();
    lanes_[i].copy_group = 0;
  }

  const uint32_t warps = threads_ / warp_lanes;
  Draw draw(launch_.schedule.seed + index);
  for (;;) {
    bool progress = false;
    for (const uint32_t warp : in_order(warps, launch_.schedule, index + draw.below(1u << 30))) {
      // A warp runs as long as it can; in a seeded order, others may run between its operations.
      for (;;) {
        const bool ran = run_warp(warp);
        if (is_abandoned_) return false;
        progress |= ran;
        Lane* const lanes = lanes_.data() + warp * warp_lanes;
        const auto stands = [&](const Lane& lane) { return lane.standing == Standing::at_warp; };
        if (!std::all_of(lanes, lanes + warp_lanes, stands)) break;
        if (!complete(warp)) {
          report("lanes of a warp stand at different operations");
          return false;
        }
        if (is_abandoned_) return false;
        progress = true;
        if (launch_.schedule.order == Order::seeded && draw.below(4) == 0) break;
      }
    }
    if (std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return lane.standing == Standing::ended; })) {
      return true;
    }
    if (std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return lane.standing == Standing::at_block; })) {
      block_barriers_++;
      for (Lane& lane : lanes_) lane.standing = Standing::ready;
      continue;
    }
    if (progress) continue;
    const auto waiting = std::find_if(lanes_.begin(), lanes_.end(),
                                      [](const Lane& lane) { return lane.standing != Standing::ended; });
    thread_ = static_cast<uint32_t>(waiting - lanes_.begin());
    report(waiting->standing == Standing::at_block ? "waits at a barrier that other threads do not come to"
                                                   : "waits for lanes of its warp that do not come");
    return false;
  }
}

}  // namespace

bool run_grid(const Launch& launch, Memory& memory) {
  const uint32_t blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  const uint32_t launch_begin = runs;
  const auto order = in_order(blocks, launch.schedule, 1);
  std::atomic<uint32_t> next = 0;
  std::atomic<bool> is_sound = true;
  const auto work = [&] {
    Worker worker(launch, memory, launch_begin);
    for (uint32_t i = next++; i < blocks && is_sound; i = next++) {
      if (!worker.run_block(order[i])) is_sound = false;
    }
  };
  // Checked blocks run one after another: conflicts between blocks show in the shadow. A few blocks are not worth a thread.
  const unsigned processors = std::max(1u, std::thread::hardware_concurrency());
  const unsigned workers = launch.module->is_checked ? 1 : std::clamp(blocks / 4, 1u, processors);
  std::vector<std::thread> others;
  for (unsigned i = 1; i < workers; i++) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  memory.check_guards(launch.kernel);
  return is_sound;
}

const Runtime runtime_of_kernels = {
    .meet = [](WarpOperation operation, void* arguments) { Worker::current->meet(operation, arguments); },
    .synchronize_block = [] { Worker::current->synchronize_block(); },
    .copy_async = [](void* to, const void* from, uint32_t bytes,
                     uint32_t source) { Worker::current->copy_async(to, from, bytes, source); },
    .commit_copies = [] { Worker::current->commit_copies(); },
    .wait_copies = [](uint32_t pending) { Worker::current->wait_copies(pending); },
    .access = [](const void* address, size_t bytes, bool w) { Worker::current->access(address, bytes, w); },
    .out_of_bounds_index =
        [](const char* file, uint32_t line) {
          Worker::current->abandon("an index beyond its array in " + std::string(file) + ", line " + std::to_string(line));
        },
};

}  // namespace relora::model
