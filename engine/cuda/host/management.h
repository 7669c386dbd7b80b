// Readings of the machine's cards from NVIDIA's management library (libnvidia-ml). Declared here, like cuda_api.h.
#pragma once
#include <optional>
#include <string>
#include <vector>

namespace relora::cuda {

using ManagedCard = struct ManagedCardTag*;
struct Utilization {
  unsigned gpu, memory;  // percent
};
struct ManagedMemory {
  unsigned long long total, free, used;
};

#define RELORA_MANAGEMENT_FUNCTIONS(F)                                                        \
  F(nvmlInit_v2, ())                                                                          \
  F(nvmlDeviceGetCount_v2, (unsigned* count))                                                 \
  F(nvmlDeviceGetHandleByIndex_v2, (unsigned index, ManagedCard* card))                       \
  F(nvmlDeviceGetUUID, (ManagedCard card, char* uuid, unsigned bytes))                        \
  F(nvmlDeviceGetUtilizationRates, (ManagedCard card, Utilization* utilization))              \
  F(nvmlDeviceGetMemoryInfo, (ManagedCard card, ManagedMemory* memory))                       \
  F(nvmlDeviceGetTemperature, (ManagedCard card, int sensor, unsigned* celsius))              \
  F(nvmlDeviceGetPowerUsage, (ManagedCard card, unsigned* milliwatts))                        \
  F(nvmlDeviceGetCurrentClocksThrottleReasons, (ManagedCard card, unsigned long long* bits))

/// Readings of a card; empty for those it does not support.
struct CardReading {
  std::string uuid;
  std::optional<double> utilization, memory_used, memory_total, celsius, watts, throttle_bits;
};

/// All cards of the machine, including those that this process may not use. Throws LIBRARY_MISSING, LIBRARY_TOO_OLD or MANAGEMENT_FAILED.
std::vector<CardReading> read_cards(const std::string& path);

}  // namespace relora::cuda
