// The driver's functions for the model: one card, whose commands run one after another on a separate thread. Additional controls for tests
// (faults, orders, a card that is lost) are in driver_control.h.
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "../host/cuda_api.h"
#include "blas_queue.h"
#include "driver_control.h"
#include "faults.h"
#include "grid.h"
#include "memory.h"

using namespace relora::cuda;
using relora::model::Control;
using relora::model::Launch;
using relora::model::Module;

namespace relora::cuda {
struct ContextTag {};
struct StreamTag {};
struct EventTag {
  std::chrono::steady_clock::time_point recorded;
};
struct GraphTag {
  std::vector<std::function<void()>> commands;
};
struct GraphRunTag {
  std::vector<std::function<void()>> commands;
};
struct FunctionTag;
struct ModuleTag {
  Module module;
  std::map<std::string, FunctionTag*> functions;
};
struct FunctionTag {
  std::string name;
  const Module* module;
  void (*function)(const void*);
  int dynamic_shared_max = 49152;  // the limit without the attribute
};
}  // namespace relora::cuda

namespace relora::model {

Control control;

namespace {

/// The order of all streams is the order of submission, which any use of events allows.
class Queue {
 public:
  void submit(std::function<void()> command) {
    const std::lock_guard lock(mutex_);
    if (captured != nullptr) {
      captured->commands.push_back(std::move(command));
      return;
    }
    if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
    commands_.push_back(std::move(command));
    submitted_++;
    changed_.notify_all();
  }
  bool is_empty() {
    const std::lock_guard lock(mutex_);
    return done_ == submitted_;
  }
  void wait() {
    std::unique_lock lock(mutex_);
    const uint64_t until = submitted_;
    changed_.wait(lock, [&] { return done_ >= until; });
  }
  /// Where commands go instead, while a graph is captured.
  GraphTag* captured = nullptr;

  ~Queue() {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
      changed_.notify_all();
    }
    if (thread_.joinable()) thread_.join();
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return ends_ || !commands_.empty(); });
      if (commands_.empty()) return;
      const std::function<void()> command = std::move(commands_.front());
      commands_.pop_front();
      lock.unlock();
      while (std::chrono::steady_clock::now() < control.held_until.load())
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      command();
      lock.lock();
      done_++;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> commands_;
  uint64_t submitted_ = 0, done_ = 0;
  bool ends_ = false;
  std::thread thread_;
};

struct Card {
  Memory memory{control.memory_bytes, control.others_file};
  std::atomic<Status> lost = success;  // as on a card, all calls fail after the first failure
  std::atomic<uint64_t> launches = 0;
  std::atomic<int> contexts = 0;
  ContextTag context;
  /// Pinned host memory, which copies read when their turn comes, by its start.
  std::map<const char*, size_t> pinned;
  std::mutex pinned_mutex;
  Queue queue;

  bool is_pinned(const void* address) {
    const std::lock_guard lock(pinned_mutex);
    const char* const at = static_cast<const char*>(address);
    auto next = pinned.upper_bound(at);
    if (next == pinned.begin()) return false;
    --next;
    return at < next->first + next->second;
  }
};

Card& card() {
  static Card* const only = new Card;  // never freed: commands may still run when the process ends
  return *only;
}

char* host(DeviceAddress address) { return reinterpret_cast<char*>(address); }

/// Copies and fills: both ranges are checked when it runs, as the driver does.
Status submit_access(DeviceAddress address, size_t bytes, std::function<void()> action) {
  if (const Status lost = card().lost) return lost;
  if (!card().memory.holds(host(address), bytes)) {
    faults.report("a copy of " + std::to_string(bytes) + " bytes out of bounds: " + card().memory.describe(host(address)));
    return invalid_value;
  }
  card().queue.submit([action = std::move(action)] {
    if (card().lost == success) action();
  });
  return success;
}

const char* environment(const char* name, const char* otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

}  // namespace

Control::Control()
    : memory_bytes(std::strtoull(environment("CUDA_MODEL_MEMORY_BYTES", "8589934592"), nullptr, 10)),
      others_file(environment("CUDA_MODEL_OTHERS_FILE", "")),
      driver_version(std::atoi(environment("CUDA_MODEL_DRIVER_VERSION", "13000"))),
      capability(std::atoi(environment("CUDA_MODEL_CAPABILITY", "90"))),
      lose_after_launches(std::strtoull(environment("CUDA_MODEL_LOSE_AFTER_LAUNCHES", "0"), nullptr, 10)),
      lose_ordinal(std::atoi(environment("CUDA_MODEL_LOSE_ORDINAL", "-1"))),
      device_count(std::atoi(environment("CUDA_MODEL_DEVICE_COUNT", "1"))),
      first_device(std::atoi(environment("CUDA_MODEL_FIRST_DEVICE", "0"))),
      fail_after_sums(std::strtoull(environment("CUDA_MODEL_FAIL_AFTER_SUMS", "0"), nullptr, 10)) {}

void watch_writes() { card().memory.watch_writes(); }
void limit_memory(uint64_t bytes) { card().memory.limit(bytes); }
uint64_t launches() { return card().launches; }

int submit(std::function<void()> command) {
  if (const Status lost = card().lost) return lost;
  card().queue.submit([command = std::move(command)] {
    if (card().lost == success) command();
  });
  return success;
}
bool holds_memory(const void* address, size_t bytes) { return card().memory.holds(address, bytes); }
void written_memory(const void* address, size_t bytes) { card().memory.written_by_copy(address, bytes); }

}  // namespace relora::model

#define EXPORT extern "C" __attribute__((visibility("default"))) Status
using namespace relora::model;

EXPORT cuInit(unsigned) {
  // Like a driver that a sandboxed process cannot use: it makes a system call that is refused there.
  if (*environment("CUDA_MODEL_NEEDS_SOCKET", "") != '\0') {
    const int opened = socket(AF_UNIX, SOCK_STREAM, 0);
    if (opened < 0) return no_device;
    close(opened);
  }
  return control.device_count == 0 ? no_device : success;
}
EXPORT cuDriverGetVersion(int* version) {
  *version = control.driver_version;
  return success;
}
EXPORT cuGetErrorName(Status status, const char** text) {
  switch (status) {
    case success: *text = "CUDA_SUCCESS"; break;
    case invalid_value: *text = "CUDA_ERROR_INVALID_VALUE"; break;
    case out_of_memory: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case no_device: *text = "CUDA_ERROR_NO_DEVICE"; break;
    case invalid_image: *text = "CUDA_ERROR_INVALID_IMAGE"; break;
    case not_found: *text = "CUDA_ERROR_NOT_FOUND"; break;
    case illegal_address: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    case ecc_uncorrectable: *text = "CUDA_ERROR_ECC_UNCORRECTABLE"; break;
    case launch_failed: *text = "CUDA_ERROR_LAUNCH_FAILED"; break;
    default: *text = "CUDA_ERROR_UNKNOWN";
  }
  return success;
}
EXPORT cuGetErrorString(Status status, const char** text) { return cuGetErrorName(status, text); }
EXPORT cuDeviceGetCount(int* count) {
  *count = control.device_count;
  return success;
}
EXPORT cuDeviceGet(DeviceNumber* device, int ordinal) {
  *device = ordinal;
  return ordinal < control.device_count ? success : invalid_device;
}
EXPORT cuDeviceGetName(char* name, int bytes, DeviceNumber) {
  std::strncpy(name, "Model of a card", static_cast<size_t>(bytes));
  return success;
}
EXPORT cuDeviceGetUuid_v2(Uuid* uuid, DeviceNumber device) {
  std::memcpy(uuid->bytes, "relora-model-00", 16);
  uuid->bytes[15] = static_cast<char>(control.first_device + device);
  return success;
}
EXPORT cuDeviceTotalMem_v2(size_t* bytes, DeviceNumber) {
  *bytes = card().memory.bytes_max();
  return success;
}
EXPORT cuDeviceGetAttribute(int* value, int attribute, DeviceNumber) {
  switch (attribute) {
    case max_threads_per_block: *value = 1024; return success;
    case multiprocessor_count: *value = 4; return success;
    case capability_major: *value = control.capability / 10; return success;
    case capability_minor: *value = control.capability % 10; return success;
    case max_shared_memory_per_block_optin: *value = control.capability == 90 ? 232448 : 101376; return success;
    default: return invalid_value;
  }
}
EXPORT cuDevicePrimaryCtxRetain(ContextHandle* context, DeviceNumber device) {
  if (control.lose_ordinal >= 0 && control.lose_ordinal != device) control.lose_after_launches = 0;
  *context = &card().context;
  card().contexts++;
  return success;
}
EXPORT cuDevicePrimaryCtxRelease_v2(DeviceNumber) {
  // The only way to recover a card that was lost.
  card().queue.wait();
  if (--card().contexts == 0) card().lost = success;
  return success;
}
EXPORT cuCtxSetCurrent(ContextHandle) { return success; }
EXPORT cuMemGetInfo_v2(size_t* free, size_t* total) {
  *total = card().memory.bytes_max();
  const size_t used = card().memory.bytes_used() + card().memory.bytes_of_others();
  *free = used < *total ? *total - used : 0;
  return success;
}
EXPORT cuMemAlloc_v2(DeviceAddress* address, size_t bytes) {
  if (bytes == 0) return invalid_value;
  void* const memory = card().memory.allocate(bytes);
  *address = reinterpret_cast<DeviceAddress>(memory);
  return memory == nullptr ? out_of_memory : success;
}
EXPORT cuMemFree_v2(DeviceAddress address) {
  card().queue.wait();
  return card().memory.release(host(address)) ? success : invalid_value;
}
EXPORT cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = std::malloc(bytes);
  if (*memory == nullptr) return out_of_memory;
  const std::lock_guard lock(card().pinned_mutex);
  card().pinned.emplace(static_cast<const char*>(*memory), bytes);
  return success;
}
EXPORT cuMemFreeHost(void* memory) {
  card().queue.wait();
  {
    const std::lock_guard lock(card().pinned_mutex);
    card().pinned.erase(static_cast<const char*>(memory));
  }
  std::free(memory);
  return success;
}
EXPORT cuMemcpyHtoDAsync_v2(DeviceAddress to, const void* from, size_t bytes, StreamHandle) {
  if (card().is_pinned(from)) {
    return submit_access(to, bytes, [=] {
      std::memcpy(host(to), from, bytes);
      card().memory.written_by_copy(host(to), bytes);
    });
  }
  if (card().queue.captured != nullptr) return invalid_value;  // calls that wait cannot be captured
  // Memory that is not pinned is staged before the call returns.
  const auto* const begin = static_cast<const char*>(from);
  return submit_access(to, bytes, [to, staged = std::string(begin, begin + bytes)] {
    std::memcpy(host(to), staged.data(), staged.size());
    card().memory.written_by_copy(host(to), staged.size());
  });
}
EXPORT cuMemcpyDtoHAsync_v2(void* to, DeviceAddress from, size_t bytes, StreamHandle) {
  return submit_access(from, bytes, [=] { std::memcpy(to, host(from), bytes); });
}
EXPORT cuMemcpyDtoDAsync_v2(DeviceAddress to, DeviceAddress from, size_t bytes, StreamHandle) {
  if (!card().memory.holds(host(from), bytes)) return invalid_value;
  return submit_access(to, bytes, [=] {
    std::memmove(host(to), host(from), bytes);
    card().memory.written_by_copy(host(to), bytes);
  });
}
EXPORT cuMemsetD8Async(DeviceAddress to, unsigned char value, size_t bytes, StreamHandle) {
  return submit_access(to, bytes, [=] {
    std::memset(host(to), value, bytes);
    card().memory.written_by_copy(host(to), bytes);
  });
}
EXPORT cuStreamCreate(StreamHandle* stream, unsigned) {
  *stream = new StreamTag;
  return success;
}
EXPORT cuStreamDestroy_v2(StreamHandle stream) {
  card().queue.wait();
  delete stream;
  return success;
}
EXPORT cuStreamSynchronize(StreamHandle) {
  if (card().queue.captured != nullptr) return invalid_value;
  card().queue.wait();
  return card().lost;
}
EXPORT cuStreamQuery(StreamHandle) {
  if (!card().queue.is_empty()) return not_ready;
  return card().lost;
}
EXPORT cuStreamWaitEvent(StreamHandle, EventHandle, unsigned) { return card().lost; }
EXPORT cuEventCreate(EventHandle* event, unsigned) {
  *event = new EventTag;
  return success;
}
EXPORT cuEventDestroy_v2(EventHandle event) {
  card().queue.wait();
  delete event;
  return success;
}
EXPORT cuEventRecord(EventHandle event, StreamHandle) {
  card().queue.submit([event] { event->recorded = std::chrono::steady_clock::now(); });
  return card().lost;
}
EXPORT cuEventSynchronize(EventHandle) {
  card().queue.wait();
  return card().lost;
}
EXPORT cuStreamBeginCapture_v2(StreamHandle, int) {
  if (card().queue.captured != nullptr) return invalid_value;
  card().queue.captured = new GraphTag;
  return success;
}
EXPORT cuStreamEndCapture(StreamHandle, GraphHandle* graph) {
  *graph = card().queue.captured;
  card().queue.captured = nullptr;
  return *graph == nullptr ? invalid_value : success;
}
EXPORT cuGraphInstantiateWithFlags(GraphRunHandle* run, GraphHandle graph, unsigned long long) {
  *run = new GraphRunTag{graph->commands};
  return success;
}
EXPORT cuGraphLaunch(GraphRunHandle run, StreamHandle) {
  if (const Status lost = card().lost) return lost;
  for (const auto& command : run->commands) card().queue.submit(command);
  return success;
}
EXPORT cuGraphDestroy(GraphHandle graph) {
  delete graph;
  return success;
}
EXPORT cuGraphExecDestroy(GraphRunHandle run) {
  card().queue.wait();
  delete run;
  return success;
}
EXPORT cuEventElapsedTime(float* milliseconds, EventHandle begin, EventHandle end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->recorded - begin->recorded).count();
  return success;
}

EXPORT cuModuleLoadData(ModuleHandle* module, const void* image) {
  // The image begins with its length, as the compiler of the model writes it.
  ModelImage header;
  std::memcpy(&header, image, sizeof header);
  if (std::memcmp(header.magic, model_image_magic, sizeof header.magic) != 0) return invalid_image;
  const int file = memfd_create("relora-model-kernels", MFD_CLOEXEC);
  const char* const begin = static_cast<const char*>(image) + sizeof header;
  for (size_t done = 0; done < header.bytes;) {
    const ssize_t count = write(file, begin + done, header.bytes - done);
    if (count <= 0) return out_of_memory;
    done += static_cast<size_t>(count);
  }
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    faults.report(std::string("a module does not load: ") + dlerror());
    return invalid_image;
  }
  const auto attach = reinterpret_cast<Attach>(dlsym(handle, "relora_model_attach"));
  const auto enter = reinterpret_cast<Enter>(dlsym(handle, "relora_model_enter"));
  if (attach == nullptr || enter == nullptr) return invalid_image;
  attach(&runtime_of_kernels);
  auto* const loaded = new ModuleTag{{path, handle, enter, nullptr, nullptr, header.is_checked != 0}, {}};
  // The file stays open, so that its name cannot be reused for another module.
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        Module& module = *static_cast<Module*>(data);
        if (module.path != info->dlpi_name) return 0;
        module.image_begin = module.image_end = reinterpret_cast<const char*>(info->dlpi_addr);
        for (int i = 0; i < info->dlpi_phnum; i++) {
          const auto& segment = info->dlpi_phdr[i];
          const char* const end = module.image_begin + segment.p_vaddr + segment.p_memsz;
          if (segment.p_type == PT_LOAD && end > module.image_end) module.image_end = end;
        }
        return 1;
      },
      &loaded->module);
  *module = loaded;
  return success;
}
EXPORT cuModuleUnload(ModuleHandle) {
  card().queue.wait();  // the library stays loaded: its functions may be in use elsewhere
  return success;
}
EXPORT cuModuleGetFunction(FunctionHandle* function, ModuleHandle module, const char* name) {
  void* const symbol = dlsym(module->module.handle, name);
  if (symbol == nullptr) return not_found;
  // One handle for each function of a module, as the driver has it.
  FunctionHandle& known = module->functions[name];
  if (known == nullptr) known = new FunctionTag{name, &module->module, reinterpret_cast<void (*)(const void*)>(symbol)};
  *function = known;
  return success;
}
EXPORT cuFuncGetAttribute(int* value, int, FunctionHandle) {
  *value = 0;  // registers and the like exist only on a real card
  return success;
}
EXPORT cuFuncSetAttribute(FunctionHandle function, int attribute, int value) {
  if (attribute != max_dynamic_shared_bytes) return invalid_value;
  int most;
  cuDeviceGetAttribute(&most, max_shared_memory_per_block_optin, 0);
  if (value > most) return invalid_value;
  function->dynamic_shared_max = value;
  return success;
}
EXPORT cuLaunchKernel(FunctionHandle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared_bytes, StreamHandle, void**, void** extra) {
  if (const Status lost = card().lost) return lost;
  const uint64_t threads = uint64_t{block_x} * block_y * block_z;
  const bool fits = grid_x > 0 && grid_y > 0 && grid_z > 0 && grid_y < 65536 && grid_z < 65536 && threads > 0 &&
                    threads <= 1024 && threads % warp_lanes == 0 &&
                    shared_bytes <= static_cast<unsigned>(function->dynamic_shared_max);
  if (!fits || extra == nullptr || extra[0] != launch_parameters_begin || extra[2] != launch_parameters_size) {
    return invalid_value;
  }
  const char* const parameters = static_cast<const char*>(extra[1]);
  std::string copied(parameters, parameters + *static_cast<size_t*>(extra[3]));
  card().queue.submit([=, parameters = std::move(copied), schedule = control.schedule] {
    if (card().lost != success) return;
    const uint64_t number = ++card().launches;
    if (control.lose_after_launches != 0 && number > control.lose_after_launches) {
      control.lose_after_launches = 0;
      card().lost = ecc_uncorrectable;
      return;
    }
    const Launch launch{function->module, function->name, function->function, {grid_x, grid_y, grid_z},
                        {block_x, block_y, block_z}, shared_bytes, parameters.data(), parameters.size(), schedule};
    if (!run_grid(launch, card().memory)) card().lost = illegal_address;
  });
  return success;
}
