#include "device.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

namespace relora::cuda {

DeviceDescription describe_device(const Driver& driver, int ordinal) {
  const std::string doing = "describing card " + std::to_string(ordinal);
  DeviceNumber device;
  driver.check(driver.cuDeviceGet(&device, ordinal), doing);
  const auto attribute = [&](int which) {
    int value;
    driver.check(driver.cuDeviceGetAttribute(&value, which, device), doing);
    return value;
  };
  char name[256] = {};
  driver.check(driver.cuDeviceGetName(name, sizeof name - 1, device), doing);
  Uuid uuid;
  driver.check(driver.cuDeviceGetUuid_v2(&uuid, device), doing);
  size_t bytes;
  driver.check(driver.cuDeviceTotalMem_v2(&bytes, device), doing);
  std::string text = "GPU-";
  for (int i = 0; i < 16; i++) {
    constexpr char digits[] = "0123456789abcdef";
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    const auto byte = static_cast<unsigned char>(uuid.bytes[i]);
    text += {digits[byte >> 4], digits[byte & 15]};
  }
  return {ordinal,
          name,
          text,
          attribute(capability_major),
          attribute(capability_minor),
          attribute(multiprocessor_count),
          attribute(max_shared_memory_per_block_optin),
          bytes};
}

namespace {

/// Cards whose context is kept until the process ends. Only JavaScript's thread opens and closes cards.
std::set<DeviceNumber> kept_contexts;

}  // namespace

Device::Device(const Driver& driver, int ordinal) : driver_(driver), description_(describe_device(driver, ordinal)) {
  DeviceNumber device;
  check(driver_.cuDeviceGet(&device, ordinal), "opening the card");
  number_ = device;
  check(driver_.cuDevicePrimaryCtxRetain(&context_, device), "opening the card");
  make_current();
  check(driver_.cuStreamCreate(&stream_, stream_non_blocking), "making a stream");
}

Device::~Device() {
  // Errors are ignored, since the card may be lost: anything not freed here is freed with the context.
  driver_.cuCtxSetCurrent(context_);
  ring_.reset();  // before waiting for the stream, in which a sum may wait for other ranks
  const bool is_well = stream_ != nullptr && driver_.cuStreamSynchronize(stream_) == success;
  const bool has_products = products_ != nullptr;
  products_.reset();
  for (GraphRunHandle graph : graphs_) {
    if (graph != nullptr) driver_.cuGraphExecDestroy(graph);
  }
  if (free_staged_.memory != nullptr) driver_.cuMemFreeHost(free_staged_.memory);
  if (passage_.memory != nullptr) driver_.cuMemFreeHost(passage_.memory);
  for (EventHandle event : passage_.done) {
    if (event != nullptr) driver_.cuEventDestroy_v2(event);
  }
  for (const auto& [memory, bytes] : host_allocations_) driver_.cuMemFreeHost(memory);
  for (const auto& [address, bytes] : allocations_) driver_.cuMemFree_v2(address);
  for (ModuleHandle module : modules_) driver_.cuModuleUnload(module);
  if (stream_ != nullptr) driver_.cuStreamDestroy_v2(stream_);
  // cuBLASLt keeps what it has loaded into this context, so the context outlives its devices, unless it is broken.
  if (is_well && has_products && kept_contexts.insert(number_).second) return;
  driver_.cuDevicePrimaryCtxRelease_v2(number_);
  if (!is_well && kept_contexts.erase(number_) > 0) driver_.cuDevicePrimaryCtxRelease_v2(number_);
}

void Device::make_current() { check(driver_.cuCtxSetCurrent(context_), "choosing the card"); }

DeviceAddress Device::allocate(size_t bytes) {
  DeviceAddress address;
  check(driver_.cuMemAlloc_v2(&address, bytes), "allocating " + std::to_string(bytes) + " bytes");
  allocations_.emplace(address, bytes);
  bytes_allocated_ += bytes;
  bytes_peak_ = std::max(bytes_peak_, bytes_allocated_);
  return address;
}

void Device::release(DeviceAddress address) {
  const auto found = allocations_.find(address);
  if (found == allocations_.end()) throw CudaError("BAD_ADDRESS", "releasing what was not allocated");
  bytes_allocated_ -= found->second;
  allocations_.erase(found);
  check(driver_.cuMemFree_v2(address), "releasing memory");
}

void Device::check_range(DeviceAddress address, size_t bytes, const char* doing) const {
  auto next = allocations_.upper_bound(address);
  if (next != allocations_.begin()) {
    const auto& [begin, size] = *std::prev(next);
    if (address - begin <= size && bytes <= size - (address - begin)) return;
  }
  throw CudaError("BAD_ADDRESS", std::string(doing) + " of " + std::to_string(bytes) + " bytes lies outside every allocation");
}

char* Device::through_passage(size_t bytes) {
  constexpr size_t alignment = 256;
  const size_t padded = (bytes + alignment - 1) / alignment * alignment;
  if (passage_.memory == nullptr) {
    void* memory;
    check(driver_.cuMemHostAlloc(&memory, 2 * half_bytes, 0), "allocating pinned memory");
    passage_.memory = static_cast<char*>(memory);
    for (EventHandle& event : passage_.done) {
      check(driver_.cuEventCreate(&event, event_disable_timing), "making an event");
      check(driver_.cuEventRecord(event, stream_), "recording an event");
    }
  }
  if (passage_.used + padded > half_bytes) {
    // The copy from the other half has completed, or will soon.
    check(driver_.cuEventRecord(passage_.done[passage_.half], stream_), "recording an event");
    passage_.half = 1 - passage_.half;
    passage_.used = 0;
    check(driver_.cuEventSynchronize(passage_.done[passage_.half]), "waiting for an upload");
  }
  char* const place = passage_.memory + static_cast<size_t>(passage_.half) * half_bytes + passage_.used;
  passage_.used += padded;
  return place;
}

void Device::upload(DeviceAddress to, const void* from, size_t bytes) {
  check_range(to, bytes, "an upload");
  if (bytes <= half_bytes / 4) {
    char* const place = through_passage(bytes);
    std::memcpy(place, from, bytes);
    from = place;
  }
  check(driver_.cuMemcpyHtoDAsync_v2(to, from, bytes, stream_), "uploading");
}

void Device::download(void* to, DeviceAddress from, size_t bytes) {
  check_range(from, bytes, "a download");
  check(driver_.cuMemcpyDtoHAsync_v2(to, from, bytes, stream_), "downloading");
  synchronize();
}

Device::Staged Device::download_staged(DeviceAddress from, size_t bytes) {
  if (bytes > 0) check_range(from, bytes, "a download");
  Staged staged = std::exchange(free_staged_, {});
  if (staged.capacity < bytes || staged.memory == nullptr) {
    if (staged.memory != nullptr) driver_.cuMemFreeHost(staged.memory);
    staged = {};
    const size_t capacity = std::max<size_t>(bytes, 4096);
    check(driver_.cuMemHostAlloc(&staged.memory, capacity, 0), "allocating " + std::to_string(capacity) + " pinned bytes");
    staged.capacity = capacity;
  }
  staged.bytes = bytes;
  if (bytes > 0) check(driver_.cuMemcpyDtoHAsync_v2(staged.memory, from, bytes, stream_), "downloading");
  return staged;
}

void Device::give_staged(const Staged& staged) {
  // Large ones are rare, and pinned memory is taken from the whole machine.
  constexpr size_t kept_bytes = size_t{64} << 20;
  if (free_staged_.memory == nullptr && staged.capacity <= kept_bytes) free_staged_ = staged;
  else driver_.cuMemFreeHost(staged.memory);
}

void Device::fill(DeviceAddress address, unsigned char value, size_t bytes) {
  check_range(address, bytes, "a fill");
  check(driver_.cuMemsetD8Async(address, value, bytes, stream_), "filling");
}

void Device::copy(DeviceAddress to, DeviceAddress from, size_t bytes) {
  check_range(to, bytes, "a copy");
  check_range(from, bytes, "a copy");
  check(driver_.cuMemcpyDtoDAsync_v2(to, from, bytes, stream_), "copying");
}

void Device::synchronize() { check(driver_.cuStreamSynchronize(stream_), "waiting for the card"); }

void* Device::allocate_host(size_t bytes) {
  void* memory;
  check(driver_.cuMemHostAlloc(&memory, bytes, 0), "allocating " + std::to_string(bytes) + " pinned bytes");
  host_allocations_.emplace(memory, bytes);
  return memory;
}

void Device::release_host(void* memory) {
  if (host_allocations_.erase(memory) == 0) throw CudaError("BAD_ADDRESS", "releasing what was not allocated");
  synchronize();  // copies may still be under way
  check(driver_.cuMemFreeHost(memory), "releasing pinned memory");
}

void Device::upload_host(DeviceAddress to, const void* from, size_t bytes) {
  check_range(to, bytes, "an upload");
  check(driver_.cuMemcpyHtoDAsync_v2(to, from, bytes, stream_), "uploading");
}

void Device::download_host(void* to, DeviceAddress from, size_t bytes) {
  check_range(from, bytes, "a download");
  check(driver_.cuMemcpyDtoHAsync_v2(to, from, bytes, stream_), "downloading");
}

void Device::open_products(const Blas& blas, size_t workspace_bytes) {
  products_ = std::make_unique<Products>(blas, allocate(workspace_bytes), workspace_bytes);
}

Products& Device::products() {
  if (products_ == nullptr) throw CudaError("NOT_OPEN", "cuBLASLt is not open");
  return *products_;
}

void Device::open_ring(const Nccl& nccl) {
  if (ring_ != nullptr) throw CudaError("NOT_OPEN", "the card has joined a ring already");
  ring_ = std::make_unique<Ring>(driver_, nccl);
}

void Device::join_ring(const RingId& id, int rank, int size) { ring_->join(id, rank, size); }

void Device::sum_ring(DeviceAddress values, size_t count) {
  if (ring_ == nullptr) throw CudaError("NOT_OPEN", "the card has joined no ring");
  ring_->sum(values, count, stream_);
}

void Device::leave_ring() {
  if (ring_ != nullptr) ring_->abort();
}

void Device::begin_capture() {
  // The staging buffer's events must not become part of a graph: empties it, so that captured uploads fit without waiting for one.
  synchronize();
  passage_.used = 0;
  check(driver_.cuStreamBeginCapture_v2(stream_, capture_thread_local), "capturing");
}

uint32_t Device::end_capture() {
  GraphHandle graph = nullptr;
  check(driver_.cuStreamEndCapture(stream_, &graph), "capturing");
  GraphRunHandle run = nullptr;
  const Status status = driver_.cuGraphInstantiateWithFlags(&run, graph, 0);
  driver_.cuGraphDestroy(graph);
  check(status, "preparing a graph");
  graphs_.push_back(run);
  return static_cast<uint32_t>(graphs_.size() - 1);
}

void Device::run_graph(uint32_t graph) {
  if (graph >= graphs_.size() || graphs_[graph] == nullptr) throw CudaError("BAD_LIST", "there is no such graph");
  check(driver_.cuGraphLaunch(graphs_[graph], stream_), "running a graph");
}

void Device::release_graph(uint32_t graph) {
  if (graph >= graphs_.size() || graphs_[graph] == nullptr) throw CudaError("BAD_LIST", "there is no such graph");
  synchronize();
  check(driver_.cuGraphExecDestroy(std::exchange(graphs_[graph], nullptr)), "releasing a graph");
}

uint32_t Device::load_module(const void* image) {
  ModuleHandle module;
  check(driver_.cuModuleLoadData(&module, image), "loading kernels");
  modules_.push_back(module);
  return static_cast<uint32_t>(modules_.size() - 1);
}

uint32_t Device::load_kernel(uint32_t module, const std::string& name, uint32_t dynamic_shared_bytes) {
  FunctionHandle function;
  check(driver_.cuModuleGetFunction(&function, modules_.at(module), name.c_str()), "finding kernel " + name);
  // A function may be loaded for several sizes: the largest counts.
  uint32_t& most = shared_bytes_[function];
  if (dynamic_shared_bytes > most) {
    most = dynamic_shared_bytes;
    check(driver_.cuFuncSetAttribute(function, max_dynamic_shared_bytes, static_cast<int>(dynamic_shared_bytes)),
          "giving " + name + " " + std::to_string(dynamic_shared_bytes) + " bytes of shared memory");
  }
  kernels_.push_back({function, name});
  return static_cast<uint32_t>(kernels_.size() - 1);
}

KernelAttributes Device::attributes(uint32_t kernel) const {
  const auto attribute = [&](int which) {
    int value;
    check(driver_.cuFuncGetAttribute(&value, which, kernels_.at(kernel).function), "describing a kernel");
    return value;
  };
  return {attribute(register_count), attribute(local_bytes), attribute(static_shared_bytes)};
}

void Device::run(const void* commands, size_t bytes) {
  const char* const begin = static_cast<const char*>(commands);
  const auto for_each = [&](const auto& body) {
    for (size_t at = 0; at < bytes;) {
      LaunchCommand command;
      if (bytes - at < sizeof command) throw CudaError("BAD_LIST", "a launch is cut off");
      std::memcpy(&command, begin + at, sizeof command);
      at += sizeof command;
      const size_t padded = (size_t{command.parameter_bytes} + 7) / 8 * 8;
      if (bytes - at < padded) throw CudaError("BAD_LIST", "parameters of a launch are cut off");
      if (command.kernel == product_command) {
        ProductArguments product;
        if (command.parameter_bytes != sizeof product) throw CudaError("BAD_LIST", "a product is cut off");
        std::memcpy(&product, begin + at, sizeof product);
        if (product.plan >= products().count()) throw CudaError("BAD_LIST", "a product names no plan");
      } else if (command.kernel >= kernels_.size()) {
        throw CudaError("BAD_LIST", "a launch names no kernel");
      }
      body(command, begin + at);
      at += padded;
    }
  };
  for_each([](const LaunchCommand&, const char*) {});
  for_each([&](const LaunchCommand& command, const char* parameters) {
    launches_++;
    if (command.kernel == product_command) {
      ProductArguments product;
      std::memcpy(&product, parameters, sizeof product);
      products_->run(product, stream_);
      return;
    }
    const Kernel& kernel = kernels_[command.kernel];
    size_t size = command.parameter_bytes;
    void* extra[] = {launch_parameters_begin, const_cast<char*>(parameters), launch_parameters_size, &size,
                     launch_parameters_end};
    check(driver_.cuLaunchKernel(kernel.function, command.grid[0], command.grid[1], command.grid[2], command.threads, 1, 1,
                                 command.shared_bytes, stream_, nullptr, extra),
          "launching " + kernel.name);
  });
}

void Device::memory_info(size_t& free, size_t& total) {
  check(driver_.cuMemGetInfo_v2(&free, &total), "asking for free memory");
}

}  // namespace relora::cuda
