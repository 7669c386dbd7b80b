// The border of the addon for NVIDIA cards. engine/src/device/cuda/cudaAddon.ts describes its functions. It contains no kernels: sources,
// parameters and launches come from there.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "device.h"
#include "management.h"
#include "values.h"

namespace relora::cuda {

namespace {

struct Instance {
  std::optional<Driver> driver;
  std::optional<Compiler> compiler;
  std::optional<Blas> blas;
  std::optional<Nccl> nccl;
};

/// An open card, behind the functions of its JavaScript object; shared with pending waits. Null once it is closed.
struct OpenCard {
  std::shared_ptr<Device> device;
};

struct Call {
  napi_env env;
  Values values;
  Instance& instance;
  OpenCard* card;
  std::span<const napi_value> arguments;

  const Driver& driver() const {
    if (!instance.driver) throw CudaError("NOT_OPEN", "the driver is not open");
    return *instance.driver;
  }
  Device& device() const {
    if (card->device == nullptr) throw CudaError("NOT_OPEN", "the card was closed");
    return *card->device;
  }
  DeviceAddress address(size_t i, const char* name) const {
    return static_cast<DeviceAddress>(values.number(arguments[i], name));
  }
  size_t size(size_t i, const char* name) const { return static_cast<size_t>(values.number(arguments[i], name)); }
};

struct Entry {
  const char* name;
  size_t arguments;
  napi_value (*function)(const Call&);
};

napi_value description_of(const Values& values, const DeviceDescription& of) {
  return values.object({{"ordinal", values.of(of.ordinal)},
                        {"name", values.of(of.name)},
                        {"uuid", values.of(of.uuid)},
                        {"capability", values.of(of.capability_major * 10 + of.capability_minor)},
                        {"multiprocessors", values.of(of.multiprocessors)},
                        {"sharedBytesMax", values.of(of.shared_bytes_max)},
                        {"memoryBytes", values.of(static_cast<double>(of.memory_bytes))}});
}

napi_value open_driver_call(const Call& call) {
  const Driver driver = open_driver(call.values.text(call.arguments[0], "path"));
  int version, count = 0;
  driver.check(driver.cuInit(0), "starting the driver");
  driver.check(driver.cuDriverGetVersion(&version), "asking for the driver's version");
  driver.check(driver.cuDeviceGetCount(&count), "counting cards");
  call.instance.driver = driver;
  std::vector<napi_value> devices;
  for (int i = 0; i < count; i++) devices.push_back(description_of(call.values, describe_device(driver, i)));
  return call.values.object({{"version", call.values.of(version)}, {"devices", call.values.array(devices)}});
}

napi_value open_compiler_call(const Call& call) {
  const Compiler compiler = open_compiler(call.values.text(call.arguments[0], "path"));
  int major, minor, count;
  compiler.nvrtcVersion(&major, &minor);
  compiler.nvrtcGetNumSupportedArchs(&count);
  std::vector<int> architectures(static_cast<size_t>(count));
  compiler.nvrtcGetSupportedArchs(architectures.data());
  call.instance.compiler = compiler;
  std::vector<napi_value> listed;
  for (const int architecture : architectures) listed.push_back(call.values.of(architecture));
  return call.values.object({{"major", call.values.of(major)},
                             {"minor", call.values.of(minor)},
                             {"architectures", call.values.array(listed)}});
}

napi_value open_blas_call(const Call& call) {
  call.instance.blas = open_blas(call.values.text(call.arguments[0], "path"));
  return call.values.of(static_cast<double>(call.instance.blas->cublasLtGetVersion()));
}

napi_value open_nccl_call(const Call& call) {
  const Nccl nccl = open_nccl(call.values.text(call.arguments[0], "path"));
  int version;
  nccl.check(nccl.ncclGetVersion(&version), "asking for the version of NCCL");
  call.instance.nccl = nccl;
  return call.values.of(version);
}

const Nccl& nccl_of(const Call& call) {
  if (!call.instance.nccl) throw CudaError("NOT_OPEN", "NCCL is not open");
  return *call.instance.nccl;
}

napi_value new_ring_id(const Call& call) {
  RingId id;
  nccl_of(call).check(nccl_of(call).ncclGetUniqueId(&id), "making an id for the cards of all ranks");
  void* data;
  napi_value buffer, result;
  napi_create_arraybuffer(call.env, sizeof id, &data, &buffer);
  std::memcpy(data, &id, sizeof id);
  napi_create_typedarray(call.env, napi_uint8_array, sizeof id, buffer, 0, &result);
  return result;
}

napi_value compile(const Call& call) {
  if (!call.instance.compiler) throw CudaError("NOT_OPEN", "the compiler is not open");
  const Compiler& compiler = *call.instance.compiler;
  const Values& values = call.values;
  const auto text = [&](const char* name) { return values.text(values.property(call.arguments[0], name), name); };
  const auto texts = [&](const char* name) { return values.texts(values.property(call.arguments[0], name), name); };
  const std::string name = text("name"), source = text("source");
  const std::vector<std::string> header_names = texts("headerNames"), headers = texts("headers"), options = texts("options");
  if (header_names.size() != headers.size()) Values::refuse("headers", "one for each name");
  const auto pointers = [](const std::vector<std::string>& strings) {
    std::vector<const char*> result;
    for (const std::string& string : strings) result.push_back(string.c_str());
    return result;
  };
  ProgramHandle program;
  if (compiler.nvrtcCreateProgram(&program, source.c_str(), name.c_str(), static_cast<int>(headers.size()),
                                  pointers(headers).data(), pointers(header_names).data()) != 0) {
    throw CudaError("COMPILER_FAILED", "the compiler takes no program");
  }
  const Status status =
      compiler.nvrtcCompileProgram(program, static_cast<int>(options.size()), pointers(options).data());
  size_t bytes = 0;
  compiler.nvrtcGetProgramLogSize(program, &bytes);
  std::string log(bytes, '\0');
  if (bytes > 0) compiler.nvrtcGetProgramLog(program, log.data());
  while (!log.empty() && log.back() == '\0') log.pop_back();
  napi_value image;
  napi_get_null(call.env, &image);
  if (status == 0) {
    compiler.nvrtcGetCUBINSize(program, &bytes);
    void* data;
    napi_value buffer;
    napi_create_arraybuffer(call.env, bytes, &data, &buffer);
    compiler.nvrtcGetCUBIN(program, static_cast<char*>(data));
    napi_create_typedarray(call.env, napi_uint8_array, bytes, buffer, 0, &image);
  }
  compiler.nvrtcDestroyProgram(&program);
  return values.object({{"image", image}, {"log", values.of(log)}});
}

napi_value read_cards_call(const Call& call) {
  const Values& values = call.values;
  const auto number = [&](const std::optional<double>& value) {
    napi_value none;
    napi_get_null(call.env, &none);
    return value ? values.of(*value) : none;
  };
  std::vector<napi_value> cards;
  for (const CardReading& of : read_cards(values.text(call.arguments[0], "path"))) {
    cards.push_back(values.object({{"uuid", values.of(of.uuid)},
                                   {"utilization", number(of.utilization)},
                                   {"memoryUsedBytes", number(of.memory_used)},
                                   {"memoryBytes", number(of.memory_total)},
                                   {"celsius", number(of.celsius)},
                                   {"watts", number(of.watts)},
                                   {"throttleBits", number(of.throttle_bits)}}));
  }
  return values.array(cards);
}

napi_value close_device(const Call& call) {
  call.card->device.reset();
  return nullptr;
}

napi_value allocate(const Call& call) {
  return call.values.of(static_cast<double>(call.device().allocate(call.size(0, "bytes"))));
}

napi_value release(const Call& call) {
  call.device().release(call.address(0, "address"));
  return nullptr;
}

napi_value upload(const Call& call) {
  const Bytes from = call.values.bytes(call.arguments[1], "from");
  if (from.size > 0) call.device().upload(call.address(0, "to"), from.data, from.size);
  return nullptr;
}

napi_value download(const Call& call) {
  const Bytes to = call.values.bytes(call.arguments[0], "to");
  if (to.size > 0) call.device().download(to.data, call.address(1, "from"), to.size);
  return nullptr;
}

napi_value fill(const Call& call) {
  call.device().fill(call.address(0, "address"), static_cast<unsigned char>(call.size(1, "value")), call.size(2, "bytes"));
  return nullptr;
}

napi_value copy(const Call& call) {
  call.device().copy(call.address(0, "to"), call.address(1, "from"), call.size(2, "bytes"));
  return nullptr;
}

napi_value load_module(const Call& call) {
  return call.values.of(call.device().load_module(call.values.bytes(call.arguments[0], "image").data));
}

napi_value load_kernel(const Call& call) {
  return call.values.of(call.device().load_kernel(call.values.small(call.arguments[0], "module"),
                                                  call.values.text(call.arguments[1], "name"),
                                                  call.values.small(call.arguments[2], "dynamicSharedBytes")));
}

napi_value kernel_attributes(const Call& call) {
  const KernelAttributes of = call.device().attributes(call.values.small(call.arguments[0], "kernel"));
  return call.values.object({{"registers", call.values.of(of.registers)},
                             {"localBytes", call.values.of(of.local_bytes)},
                             {"staticSharedBytes", call.values.of(of.static_shared_bytes)}});
}

napi_value run(const Call& call) {
  const Bytes commands = call.values.bytes(call.arguments[0], "commands");
  call.device().run(commands.data, commands.size);
  return nullptr;
}

napi_value synchronize(const Call& call) {
  call.device().synchronize();
  return nullptr;
}

napi_value memory(const Call& call) {
  size_t free, total;
  const Device& device = call.device();
  call.device().memory_info(free, total);
  const auto number = [&](size_t value) { return call.values.of(static_cast<double>(value)); };
  return call.values.object({{"freeBytes", number(free)},
                             {"totalBytes", number(total)},
                             {"allocatedBytes", number(device.bytes_allocated())},
                             {"peakBytes", number(device.bytes_peak())},
                             {"allocationCount", number(device.allocation_count())},
                             {"launches", number(device.launches())}});
}

napi_value allocate_host(const Call& call) {
  void* const memory = call.device().allocate_host(call.size(0, "bytes"));
  return call.values.of(static_cast<double>(reinterpret_cast<uintptr_t>(memory)));
}

void* host_address(const Call& call, size_t i, const char* name) {
  return reinterpret_cast<void*>(static_cast<uintptr_t>(call.values.number(call.arguments[i], name)));
}

napi_value release_host(const Call& call) {
  call.device().release_host(host_address(call, 0, "memory"));
  return nullptr;
}

napi_value upload_host(const Call& call) {
  call.device().upload_host(call.address(0, "to"), host_address(call, 1, "from"), call.size(2, "bytes"));
  return nullptr;
}

napi_value download_host(const Call& call) {
  call.device().download_host(host_address(call, 0, "to"), call.address(1, "from"), call.size(2, "bytes"));
  return nullptr;
}

napi_value open_products(const Call& call) {
  if (!call.instance.blas) throw CudaError("NOT_OPEN", "cuBLASLt is not open");
  call.device().open_products(*call.instance.blas, call.size(0, "workspaceBytes"));
  return nullptr;
}

napi_value plan_product(const Call& call) {
  const auto field = [&](const char* name) { return call.values.number(call.values.property(call.arguments[0], name), name); };
  const auto small = [&](const char* name) { return call.values.small(call.values.property(call.arguments[0], name), name); };
  const auto wide = [&](const char* name) { return static_cast<uint64_t>(field(name)); };
  const ProductShape shape{small("m"), small("n"), small("k"), small("batch"),
                           small("isATransposed"), small("isBTransposed"),
                           static_cast<int>(small("typeAB")), static_cast<int>(small("typeCD")),
                           wide("leadA"), wide("leadB"), wide("leadC"), wide("leadD"),
                           wide("strideA"), wide("strideB"), wide("strideC"), wide("strideD"),
                           small("alignmentA"), small("alignmentB"), small("alignmentC"), small("alignmentD"),
                           small("isScaled"), 0};
  Products& products = call.device().products();
  const int plan = products.plan(shape);
  napi_value result;
  napi_get_null(call.env, &result);
  if (plan < 0) return result;
  std::string algorithm;
  for (const uint64_t word : products.algorithm(static_cast<uint32_t>(plan)).data) {
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(word));
    algorithm += text;
  }
  return call.values.object({{"plan", call.values.of(plan)}, {"algorithm", call.values.of(algorithm)}});
}

napi_value begin_capture(const Call& call) {
  call.device().begin_capture();
  return nullptr;
}

napi_value end_capture(const Call& call) { return call.values.of(call.device().end_capture()); }

napi_value run_graph(const Call& call) {
  call.device().run_graph(call.values.small(call.arguments[0], "graph"));
  return nullptr;
}

napi_value release_graph(const Call& call) {
  call.device().release_graph(call.values.small(call.arguments[0], "graph"));
  return nullptr;
}

/// Work on a thread of the pool, to which the card is current, so that the event loop stays free; downloaded data is handed over
/// afterwards.
struct Wait {
  std::shared_ptr<Device> device;
  std::function<void(Device&)> task;
  Device::Staged staged{};
  napi_ref array = nullptr;  // which must not be collected
  napi_deferred deferred = nullptr;
  napi_async_work work = nullptr;
  std::string code{}, message{};
};

napi_value begin_wait(const Call& call, Wait* wait) {
  napi_value promise, name = call.values.of(std::string("relora:cuda:wait"));
  napi_create_promise(call.env, &wait->deferred, &promise);
  napi_create_async_work(
      call.env, nullptr, name,
      [](napi_env, void* data) {
        auto& wait = *static_cast<Wait*>(data);
        try {
          wait.device->make_current();
          wait.task(*wait.device);
        } catch (const CudaError& error) {
          wait.code = error.code;
          wait.message = error.what();
        }
      },
      [](napi_env env, napi_status, void* data) {
        const std::unique_ptr<Wait> wait(static_cast<Wait*>(data));
        const Values values(env);
        napi_value result;
        if (wait->array != nullptr) {
          napi_get_reference_value(env, wait->array, &result);
          const Bytes to = values.bytes(result, "to");
          if (wait->code.empty()) std::memcpy(to.data, wait->staged.memory, std::min(to.size, wait->staged.bytes));
          napi_delete_reference(env, wait->array);
          wait->device->give_staged(wait->staged);
        }
        if (wait->code.empty()) {
          napi_get_undefined(env, &result);
          napi_resolve_deferred(env, wait->deferred, result);
        } else {
          napi_create_error(env, values.of(wait->code), values.of(wait->message), &result);
          napi_reject_deferred(env, wait->deferred, result);
        }
        napi_delete_async_work(env, wait->work);
      },
      wait, &wait->work);
  napi_queue_async_work(call.env, wait->work);
  return promise;
}

napi_value wait_for_device(const Call& call) {
  call.device();
  return begin_wait(call, new Wait{call.card->device, &Device::synchronize});
}

napi_value join_ring(const Call& call) {
  const Bytes given = call.values.bytes(call.arguments[0], "id");
  RingId id;
  if (given.size != sizeof id) Values::refuse("id", std::to_string(sizeof id) + " bytes");
  std::memcpy(&id, given.data, sizeof id);
  const auto rank = static_cast<int>(call.size(1, "rank")), size = static_cast<int>(call.size(2, "size"));
  call.device().open_ring(nccl_of(call));
  return begin_wait(call, new Wait{call.card->device, [=](Device& device) { device.join_ring(id, rank, size); }});
}

napi_value sum_ring(const Call& call) {
  const DeviceAddress address = call.address(0, "address");
  const size_t count = call.size(1, "count");
  call.device().check_range(address, count * sizeof(float), "a sum");
  return begin_wait(call, new Wait{call.card->device, [=](Device& device) { device.sum_ring(address, count); }});
}

/// Also when the process ends, which waits for threads of the pool; the card may be closed by then.
napi_value leave_ring(const Call& call) {
  if (call.card->device != nullptr) call.device().leave_ring();
  return nullptr;
}

/// Queued like everything else: later writes are not visible to it.
napi_value download_later(const Call& call) {
  const Bytes to = call.values.bytes(call.arguments[0], "to");
  const Device::Staged staged = call.device().download_staged(call.address(1, "from"), to.size);
  auto* const wait = new Wait{call.card->device, &Device::synchronize, staged};
  napi_create_reference(call.env, call.arguments[0], 1, &wait->array);
  return begin_wait(call, wait);
}

constexpr Entry card_entries[] = {
    {"close", 0, close_device},
    {"allocate", 1, allocate},
    {"release", 1, release},
    {"upload", 2, upload},
    {"download", 2, download},
    {"fill", 3, fill},
    {"copy", 3, copy},
    {"loadModule", 1, load_module},
    {"loadKernel", 3, load_kernel},
    {"kernelAttributes", 1, kernel_attributes},
    {"run", 1, run},
    {"synchronize", 0, synchronize},
    {"wait", 0, wait_for_device},
    {"downloadLater", 2, download_later},
    {"memory", 0, memory},
    {"allocateHost", 1, allocate_host},
    {"releaseHost", 1, release_host},
    {"uploadHost", 3, upload_host},
    {"downloadHost", 3, download_host},
    {"openProducts", 1, open_products},
    {"planProduct", 1, plan_product},
    {"joinRing", 3, join_ring},
    {"sumRing", 2, sum_ring},
    {"leaveRing", 0, leave_ring},
    {"beginCapture", 0, begin_capture},
    {"endCapture", 0, end_capture},
    {"runGraph", 1, run_graph},
    {"releaseGraph", 1, release_graph},
};

napi_value open_card(const Call& call);

constexpr Entry entries[] = {
    {"openDriver", 1, open_driver_call},
    {"openCompiler", 1, open_compiler_call},
    {"openBlas", 1, open_blas_call},
    {"openNccl", 1, open_nccl_call},
    {"newRingId", 0, new_ring_id},
    {"compile", 1, compile},
    {"openCard", 1, open_card},
    {"readCards", 1, read_cards_call},
};

/// Data attached to a JavaScript function.
struct Bound {
  const Entry* entry;
  std::shared_ptr<OpenCard> card;
};

napi_value enter(napi_env env, napi_callback_info info) {
  constexpr size_t most = 4;
  napi_value arguments[most];
  size_t count = most;
  void *data, *instance;
  napi_get_cb_info(env, info, &count, arguments, nullptr, &data);
  napi_get_instance_data(env, &instance);
  const Bound& bound = *static_cast<const Bound*>(data);
  const Entry& entry = *bound.entry;
  try {
    if (count != entry.arguments) {
      throw BadArgument("expected " + std::to_string(entry.arguments) + " arguments, got " + std::to_string(count));
    }
    return entry.function({env, Values(env), *static_cast<Instance*>(instance), bound.card.get(), {arguments, count}});
  } catch (const CudaError& error) {
    napi_throw_error(env, error.code.c_str(), error.what());
  } catch (const BadArgument& error) {
    napi_throw_type_error(env, "ERR_INVALID_ARG_VALUE", (std::string(entry.name) + ": " + error.what()).c_str());
  } catch (const std::exception& error) {
    napi_throw_error(env, nullptr, (std::string(entry.name) + ": " + error.what()).c_str());
  }
  return nullptr;
}

void add_functions(napi_env env, napi_value object, std::span<const Entry> listed, const std::shared_ptr<OpenCard>& card) {
  for (const Entry& entry : listed) {
    auto* const bound = new Bound{&entry, card};
    napi_value function;
    napi_create_function(env, entry.name, NAPI_AUTO_LENGTH, enter, bound, &function);
    // Freed with the function that it is attached to.
    napi_add_finalizer(env, function, bound, [](napi_env, void* data, void*) { delete static_cast<Bound*>(data); }, nullptr,
                       nullptr);
    napi_set_named_property(env, object, entry.name, function);
  }
}

napi_value open_card(const Call& call) {
  const auto card = std::make_shared<OpenCard>();
  card->device = std::make_shared<Device>(call.driver(), static_cast<int>(call.size(0, "ordinal")));
  napi_value object;
  napi_create_object(call.env, &object);
  napi_set_named_property(call.env, object, "description",
                          description_of(call.values, card->device->description()));
  add_functions(call.env, object, card_entries, card);
  return object;
}

}  // namespace

}  // namespace relora::cuda

NAPI_MODULE_INIT() {
  using namespace relora::cuda;
  napi_set_instance_data(env, new Instance, [](napi_env, void* data, void*) { delete static_cast<Instance*>(data); }, nullptr);
  add_functions(env, exports, entries, nullptr);
  return exports;
}
