// The management library for the model: one card whose readings are in the environment (CUDA_MODEL_NVML, for example
// `utilization=40,celsius=65`); other readings are not supported, as on many real cards.
#include <cstdlib>
#include <cstring>
#include <string>

#include "../host/management.h"

using namespace relora::cuda;

namespace {

constexpr int success = 0, invalid_argument = 2, not_supported = 3;

/// False if the environment has no such reading.
bool reading(const char* name, double& value) {
  const char* const given = std::getenv("CUDA_MODEL_NVML");
  const std::string text = std::string(",") + (given == nullptr ? "" : given);
  const size_t at = text.find(std::string(",") + name + "=");
  if (at == std::string::npos) return false;
  value = std::strtod(text.c_str() + at + std::strlen(name) + 2, nullptr);
  return true;
}

template <class Number>
int give(const char* name, Number* to, double factor = 1) {
  double value;
  if (!reading(name, value)) return not_supported;
  *to = static_cast<Number>(value * factor);
  return success;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) int

EXPORT nvmlInit_v2() { return success; }
EXPORT nvmlDeviceGetCount_v2(unsigned* count) {
  *count = 1;
  return success;
}
EXPORT nvmlDeviceGetHandleByIndex_v2(unsigned index, ManagedCard* card) {
  *card = nullptr;
  return index == 0 ? success : invalid_argument;
}
EXPORT nvmlDeviceGetUUID(ManagedCard, char* uuid, unsigned bytes) {
  std::strncpy(uuid, "GPU-72656c6f-7261-2d6d-6f64-656c2d303000", bytes);
  return success;
}
EXPORT nvmlDeviceGetUtilizationRates(ManagedCard, Utilization* utilization) {
  return give("utilization", &utilization->gpu);
}
EXPORT nvmlDeviceGetMemoryInfo(ManagedCard, ManagedMemory* memory) {
  memory->total = 8ull << 30;
  return give("memory", &memory->used);
}
EXPORT nvmlDeviceGetTemperature(ManagedCard, int, unsigned* celsius) { return give("celsius", celsius); }
EXPORT nvmlDeviceGetPowerUsage(ManagedCard, unsigned* milliwatts) { return give("watts", milliwatts, 1000); }
EXPORT nvmlDeviceGetCurrentClocksThrottleReasons(ManagedCard, unsigned long long* bits) { return give("throttle", bits); }
