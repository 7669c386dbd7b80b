// The border of functions about the machine: description, choice of instruction set, peak.
#include <cmath>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "../gemm/peak.h"
#include "../mapped_floats.h"
#include "call.h"

namespace relora {

namespace {

constexpr size_t threads_max = 1024;

napi_value text(napi_env env, std::string_view value) {
  napi_value result;
  napi_create_string_utf8(env, value.data(), value.size(), &result);
  return result;
}

napi_value describe(const Call& call) {
  napi_value result, sets;
  napi_create_object(call.env, &result);
  napi_create_array(call.env, &sets);
  uint32_t index = 0;
  const std::vector<InstructionSet> supported = supported_instruction_sets();
  for (const InstructionSet set : supported) {
    napi_set_element(call.env, sets, index++, text(call.env, name_of(set)));
  }
  napi_set_named_property(call.env, result, "instructionSets", sets);
  const std::string_view int8 = name_of(int8_unit_of(supported.front()));
  napi_set_named_property(call.env, result, "int8", text(call.env, int8));
  napi_set_named_property(call.env, result, "threadsMax", number(call.env, usable_cpus()));
  napi_set_named_property(call.env, result, "cpuModel", text(call.env, cpu_model()));
  return result;
}

napi_value allocations(const Call& call) {
  const Allocations held = relora::allocations();
  napi_value result;
  napi_create_object(call.env, &result);
  napi_set_named_property(call.env, result, "count", number(call.env, static_cast<double>(held.count)));
  napi_set_named_property(call.env, result, "bytes", number(call.env, static_cast<double>(held.bytes)));
  return result;
}

/// The context that options {instructionSet, threads} ask for.
std::unique_ptr<Context> context_of(Arguments& in) {
  const napi_value options = in.object("options");
  const std::string wanted = in.text_option(options, "instructionSet");
  const double threads = in.option(options, "threads");
  if (!(threads >= 1 && threads <= threads_max) || std::trunc(threads) != threads) {
    in.refuse("options.threads must be an integer from 1 to " + std::to_string(threads_max) + ", got " +
              std::to_string(threads));
  }
  std::string offered;
  if (const auto set = usable_instruction_set(wanted)) {
    return std::make_unique<Context>(*set, static_cast<unsigned>(threads));
  }
  for (const InstructionSet set : supported_instruction_sets()) {
    offered += (offered.empty() ? "" : ", ") + std::string(name_of(set));
  }
  in.refuse("options.instructionSet '" + wanted + "' is not offered by this CPU, which has " + offered);
}

napi_value configure(const Call& call) {
  call.instance.context = context_of(call.arguments);
  return undefined();
}

napi_value open(const Call& call) {
  auto instance = std::make_unique<Instance>();
  instance->context = context_of(call.arguments);
  return make_device(call.env, std::move(instance));
}

napi_value call_counts(const Call& call) {
  napi_value result;
  napi_create_object(call.env, &result);
  for (const auto& [name, count] : call.instance.calls) {
    napi_set_named_property(call.env, result, name.data(), number(call.env, static_cast<double>(count)));
  }
  return result;
}

napi_value measure_peak(const Call& call) {
  Arguments& in = call.arguments;
  const Precision precision = in.base_precision("precision");
  const double milliseconds = in.number("milliseconds");
  if (!(milliseconds > 0 && milliseconds <= 60000)) {
    in.refuse("milliseconds must be in (0, 60000], got " + std::to_string(milliseconds));
  }
  return number(call.env, relora::measure_peak(call.context(), call.context().product_kernel(precision),
                                               milliseconds));
}

napi_value map_floats(const Call& call) {
  Arguments& in = call.arguments;
  const std::string folder = in.text("folder");
  const size_t count = in.dimension("count");
  auto mapped = std::make_unique<MappedFloats>(folder, count);
  const auto finalize = [](napi_env, void*, void* hint) { delete static_cast<MappedFloats*>(hint); };
  napi_value buffer, result;
  napi_create_external_arraybuffer(call.env, mapped->data(), count * sizeof(float), finalize, mapped.get(),
                                   &buffer);
  mapped.release();
  napi_create_typedarray(call.env, napi_float32_array, count, buffer, 0, &result);
  return result;
}

napi_value release_pages(const Call& call) {
  const auto mapped = call.arguments.input("mapped");
  relora::release_pages(mapped.data, mapped.length * sizeof(float));
  return undefined();
}

napi_value free_buffer(const Call& call) {
  napi_detach_arraybuffer(call.env, call.arguments.buffer("buffer"));
  return undefined();
}

napi_value trim_heap(const Call&) {
#ifdef __GLIBC__
  // Memory freed below the top of the heap, up to 64 MiB, would otherwise stay resident.
  malloc_trim(0);
#endif
  return undefined();
}

constexpr Entry entries[] = {
    {"mapFloats", 2, map_floats},
    {"releasePages", 1, release_pages},
    {"freeBuffer", 1, free_buffer},
    {"trimHeap", 0, trim_heap},
    {"describe", 0, describe},
    {"allocations", 0, allocations},
    {"configure", 1, configure},
    {"open", 1, open},
    {"callCounts", 0, call_counts},
    {"measurePeak", 2, measure_peak},
};

}  // namespace

constinit const std::span<const Entry> machine_entries = entries;

}  // namespace relora
