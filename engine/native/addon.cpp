// The addon's entry. engine/src/backend/nativeAddon.ts describes the functions; border/ checks their
// arguments, and only then are kernels called.
#include <new>

#include "border/call.h"

namespace relora {

namespace {

/// Every call passes here: C++ exceptions become JavaScript errors of the matching class.
napi_value enter(napi_env env, napi_callback_info info) {
  void *data, *instance_data;
  napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data);
  napi_get_instance_data(env, &instance_data);
  const Entry& entry = *static_cast<const Entry*>(data);
  Instance& instance = *static_cast<Instance*>(instance_data);
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

}  // namespace relora

NAPI_MODULE_INIT() {
  using namespace relora;
  // Freed when the environment goes, which joins the pool's threads.
  const auto finalize = [](napi_env, void* data, void*) { delete static_cast<Instance*>(data); };
  napi_set_instance_data(env, new Instance, finalize, nullptr);
  for (const auto& entries :
       {machine_entries, product_entries, layer_entries, half_entries, training_entries}) {
    for (const Entry& entry : entries) {
      napi_value function;
      napi_create_function(env, entry.name, NAPI_AUTO_LENGTH, enter, const_cast<Entry*>(&entry), &function);
      napi_set_named_property(env, exports, entry.name, function);
    }
  }
  return exports;
}
