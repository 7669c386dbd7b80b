// One call from JavaScript: what every function of the border gets, and how it is listed.
#pragma once
#include <memory>
#include <span>
#include <string_view>

#include "arguments.h"

namespace relora {

/// What one JavaScript environment keeps: freed with it, so worker threads do not share state.
struct Instance {
  std::unique_ptr<Context> context;
};

struct Call {
  napi_env env;
  Arguments& arguments;
  Instance& instance;

  /// Until configured: the best set and all CPUs.
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
    training_entries;

inline napi_value undefined() { return nullptr; }

inline napi_value number(napi_env env, double value) {
  napi_value result;
  napi_create_double(env, value, &result);
  return result;
}

}  // namespace relora
