// The addon's entry point. engine/src/device/cpu/nativeAddon.ts describes the functions; border/ checks their arguments before any kernel
// is called.
#include <new>
#include <utility>
#include <vector>

#include "border/call.h"
#include "scratch.h"

namespace relora {

namespace {

/// Data of one function of a device. It lives as long as the device's object, after which JavaScript cannot call the function.
struct Bound {
  const Entry& entry;
  Instance& instance;
};

/// Sets a property that is neither visible nor writable: `function` keeps `held` alive.
void hold(napi_env env, napi_value function, napi_value held) {
  napi_value name;
  napi_create_string_utf8(env, "device", NAPI_AUTO_LENGTH, &name);
  const napi_property_descriptor property = {nullptr, name,         nullptr, nullptr, nullptr,
                                             held,    napi_default, nullptr};
  napi_define_properties(env, function, 1, &property);
}

struct Device {
  std::unique_ptr<Instance> instance;
  std::vector<std::unique_ptr<Bound>> functions;
};

/// Wraps every call: converts C++ exceptions to JavaScript errors of the matching class.
napi_value enter(napi_env env, napi_callback_info info) {
  void* data;
  napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data);
  const auto& [entry, instance] = *static_cast<const Bound*>(data);
  instance.calls[entry.name]++;
  try {
    Arguments arguments(env, info, entry.name, entry.arguments);
    return entry.function({env, arguments, instance});
  } catch (const BadType& error) {
    napi_throw_type_error(env, "ERR_INVALID_ARG_TYPE", error.what());
  } catch (const BadValue& error) {
    napi_throw_range_error(env, "ERR_INVALID_ARG_VALUE", error.what());
  } catch (const std::bad_alloc&) {
    napi_throw_error(env, "ERR_OUT_OF_MEMORY", (std::string(entry.name) + ": not enough memory").c_str());
  } catch (const std::exception& error) {
    napi_throw_error(env, nullptr, (std::string(entry.name) + ": " + error.what()).c_str());
  }
  return nullptr;
}

}  // namespace

napi_value make_device(napi_env env, std::unique_ptr<Instance> instance) {
  auto device = std::make_unique<Device>(Device{std::move(instance), {}});
  // The functions hold the device, so that one taken out of the object keeps it alive.
  const auto finalize = [](napi_env, void* data, void*) { delete static_cast<Device*>(data); };
  napi_value object, holder;
  napi_create_object(env, &object);
  std::vector<napi_value> functions;
  for (const auto& entries :
       {machine_entries, product_entries, layer_entries, half_entries, training_entries, optimizer_entries,
        exchange_entries}) {
    for (const Entry& entry : entries) {
      Bound& bound = *device->functions.emplace_back(new Bound{entry, *device->instance});
      napi_value function;
      napi_create_function(env, entry.name, NAPI_AUTO_LENGTH, enter, &bound, &function);
      napi_set_named_property(env, object, entry.name, function);
      functions.push_back(function);
    }
  }
  napi_create_external(env, device.release(), finalize, nullptr, &holder);
  for (const napi_value function : functions) hold(env, function, holder);
  return object;
}

}  // namespace relora

NAPI_MODULE_INIT() {
  static_cast<void>(exports);
  relora::return_large_memory();
  return relora::make_device(env, std::make_unique<relora::Instance>());
}
