// One card in use: its context, streams, modules and memory. Commands are queued and run one after the other.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "libraries.h"
#include "products.h"
#include "ring.h"

namespace relora::cuda {

struct DeviceDescription {
  int ordinal;
  std::string name, uuid;
  int capability_major, capability_minor, multiprocessors, shared_bytes_max;
  size_t memory_bytes;
};

DeviceDescription describe_device(const Driver&, int ordinal);

/// Instead of a kernel's number: the parameters are ProductArguments.
constexpr uint32_t product_command = 0xffffffff;
/// One launch of the list that `run` is given, followed by its parameters and padded to eight bytes.
struct LaunchCommand {
  uint32_t kernel;
  uint32_t grid[3];
  uint32_t threads, shared_bytes, parameter_bytes, reserved;
};

struct KernelAttributes {
  int registers, local_bytes, static_shared_bytes;
};

class Device {
 public:
  Device(const Driver& driver, int ordinal);
  ~Device();
  Device(const Device&) = delete;

  DeviceAddress allocate(size_t bytes);
  void release(DeviceAddress);
  /// Small uploads go through our own pinned memory, so that the caller need not wait for earlier commands.
  void upload(DeviceAddress to, const void* from, size_t bytes);
  /// Waits for everything queued before.
  void download(void* to, DeviceAddress from, size_t bytes);
  /// Pinned memory for a queued download; the last one used is kept.
  struct Staged {
    void* memory = nullptr;
    size_t bytes = 0, capacity = 0;
  };
  Staged download_staged(DeviceAddress from, size_t bytes);
  void give_staged(const Staged&);
  void fill(DeviceAddress, unsigned char value, size_t bytes);
  void copy(DeviceAddress to, DeviceAddress from, size_t bytes);
  void synchronize();

  /// Pinned host memory, for values that are copied to the card now and then.
  void* allocate_host(size_t bytes);
  void release_host(void* memory);
  void upload_host(DeviceAddress to, const void* from, size_t bytes);
  void download_host(void* to, DeviceAddress from, size_t bytes);

  /// Opens cuBLASLt for products in lists of launches, with a workspace of ours.
  void open_products(const Blas&, size_t workspace_bytes);
  Products& products();

  /// Prepares for a ring of cards. The others are its calls; the first two block, on a thread to which the card is current.
  void open_ring(const Nccl&);
  void join_ring(const RingId&, int rank, int size);
  void sum_ring(DeviceAddress, size_t count);
  void leave_ring();
  /// Throws unless the range lies in one allocation.
  void check_range(DeviceAddress, size_t bytes, const char* doing) const;

  /// Commands queued until `end_capture` become a graph instead of running.
  void begin_capture();
  uint32_t end_capture();
  void run_graph(uint32_t graph);
  void release_graph(uint32_t graph);

  /// For use on another thread than the one that created it.
  void make_current();

  /// The number of a kernel that was loaded, for `run`.
  uint32_t load_kernel(uint32_t module, const std::string& name, uint32_t dynamic_shared_bytes);
  uint32_t load_module(const void* image);
  KernelAttributes attributes(uint32_t kernel) const;
  /// Queues every launch of a list. Throws before the first where the list is malformed.
  void run(const void* commands, size_t bytes);

  size_t bytes_allocated() const { return bytes_allocated_; }
  size_t bytes_peak() const { return bytes_peak_; }
  size_t allocation_count() const { return allocations_.size(); }
  size_t launches() const { return launches_; }
  void memory_info(size_t& free, size_t& total);
  const DeviceDescription& description() const { return description_; }

 private:
  void check(Status status, const std::string& doing) const { driver_.check(status, doing); }

  const Driver driver_;
  const DeviceDescription description_;
  DeviceNumber number_ = 0;
  ContextHandle context_ = nullptr;
  StreamHandle stream_ = nullptr;
  std::map<DeviceAddress, size_t> allocations_;
  size_t bytes_allocated_ = 0, bytes_peak_ = 0, launches_ = 0;
  Staged free_staged_;
  /// Staging buffer for uploads: two halves of pinned memory used alternately; each has an event after its last copy.
  struct Passage {
    char* memory = nullptr;
    size_t used = 0;
    int half = 0;
    EventHandle done[2] = {};
  } passage_;
  static constexpr size_t half_bytes = size_t{4} << 20;
  char* through_passage(size_t bytes);
  std::map<FunctionHandle, uint32_t> shared_bytes_;
  std::map<void*, size_t> host_allocations_;
  std::unique_ptr<Products> products_;
  std::unique_ptr<Ring> ring_;
  std::vector<GraphRunHandle> graphs_;
  std::vector<ModuleHandle> modules_;
  struct Kernel {
    FunctionHandle function;
    std::string name;
  };
  std::vector<Kernel> kernels_;
};

}  // namespace relora::cuda
