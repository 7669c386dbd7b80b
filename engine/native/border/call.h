// A call from JavaScript: the input of every function of the border, and the table of functions.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string_view>

#include "arguments.h"

namespace relora {

/// State of one device: freed with the JavaScript object that holds its functions, so devices share no state.
struct Instance {
  std::unique_ptr<Context> context;
  /// Calls so far, by the function's name.
  std::map<std::string_view, uint64_t> calls;
};

/// An object with all functions of the border on an instance of its own.
napi_value make_device(napi_env env, std::unique_ptr<Instance> instance);

struct Call {
  napi_env env;
  Arguments& arguments;
  Instance& instance;

  /// Default until configured: the best instruction set and all CPUs.
  Context& context() const {
    if (!instance.context) {
      instance.context = std::make_unique<Context>(supported_instruction_sets().front(), usable_cpus());
    }
    return *instance.context;
  }
};

struct Entry {
  const char* name;
  size_t arguments;
  napi_value (*function)(const Call&);
};

extern const std::span<const Entry> machine_entries, product_entries, layer_entries, half_entries,
    training_entries, optimizer_entries, exchange_entries;

inline napi_value undefined() { return nullptr; }

inline napi_value number(napi_env env, double value) {
  napi_value result;
  napi_create_double(env, value, &result);
  return result;
}

}  // namespace relora
