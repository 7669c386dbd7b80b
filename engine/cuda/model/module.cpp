// JavaScript functions by which tests control the model: this file is part of the library that the host code opens.
#include <iterator>

#include "../host/values.h"
#include "driver_control.h"
#include "faults.h"

namespace relora::model {

namespace {

using cuda::Values;

/// {order: 'forward' | 'backward' | 'seeded', seed}
napi_value set_schedule(napi_env env, napi_value argument) {
  const Values values(env);
  const std::string order = values.text(values.property(argument, "order"), "order");
  const uint32_t seed = values.small(values.property(argument, "seed"), "seed");
  control.schedule = {order == "forward" ? Order::forward : order == "backward" ? Order::backward : Order::seeded, seed};
  return nullptr;
}

napi_value take_faults(napi_env env, napi_value) {
  const Values values(env);
  std::vector<napi_value> texts;
  for (const std::string& text : faults.take()) texts.push_back(values.of(text));
  return values.array(texts);
}

napi_value watch_writes_call(napi_env, napi_value) {
  watch_writes();
  return nullptr;
}

/// Sets the given fields: memoryBytes, driverVersion, capability, loseAfterLaunches (from now), deviceCount, heldSeconds (0: no longer).
napi_value set_card(napi_env env, napi_value argument) {
  const Values values(env);
  const auto set = [&](const char* name, const auto& to) {
    bool is_there = false;
    napi_has_named_property(env, argument, name, &is_there);
    if (is_there) to(values.number(values.property(argument, name), name));
  };
  set("memoryBytes", [](double v) { limit_memory(static_cast<uint64_t>(v)); });
  set("driverVersion", [](double v) { control.driver_version = static_cast<int>(v); });
  set("capability", [](double v) { control.capability = static_cast<int>(v); });
  set("loseAfterLaunches", [](double v) { control.lose_after_launches = launches() + static_cast<uint64_t>(v); });
  set("heldSeconds", [](double v) {
    control.held_until = std::chrono::steady_clock::now() + std::chrono::milliseconds(static_cast<int64_t>(1000 * v));
  });
  set("deviceCount", [](double v) { control.device_count = static_cast<int>(v); });
  return nullptr;
}

struct Function {
  const char* name;
  napi_value (*call)(napi_env, napi_value);
};
constexpr Function functions[] = {
    {"setSchedule", set_schedule},
    {"takeFaults", take_faults},
    {"watchWrites", watch_writes_call},
    {"setCard", set_card},
};

napi_value enter(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value argument;
  void* data;
  napi_get_cb_info(env, info, &count, &argument, nullptr, &data);
  try {
    return static_cast<const Function*>(data)->call(env, argument);
  } catch (const std::exception& error) {
    napi_throw_type_error(env, nullptr, error.what());
    return nullptr;
  }
}

}  // namespace

}  // namespace relora::model

NAPI_MODULE_INIT() {
  using namespace relora::model;
  for (const Function& function : functions) {
    napi_value made;
    napi_create_function(env, function.name, NAPI_AUTO_LENGTH, enter, const_cast<Function*>(&function), &made);
    napi_set_named_property(env, exports, function.name, made);
  }
  return exports;
}
