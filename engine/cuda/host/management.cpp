#include "management.h"

#include <dlfcn.h>

#include <map>

#include "libraries.h"

namespace relora::cuda {

namespace {

struct Management {
#define RELORA_DECLARE(name, arguments) int(*name) arguments;
  RELORA_MANAGEMENT_FUNCTIONS(RELORA_DECLARE)
#undef RELORA_DECLARE
};

const Management& open_management(const std::string& path) {
  static std::map<std::string, Management> opened;
  const auto known = opened.find(path);
  if (known != opened.end()) return known->second;
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw CudaError("LIBRARY_MISSING", dlerror());
  Management functions{};
#define RELORA_FIND(name, arguments)                                                  \
  functions.name = reinterpret_cast<int(*) arguments>(dlsym(library, #name));         \
  if (functions.name == nullptr) throw CudaError("LIBRARY_TOO_OLD", path + " has no " #name);
  RELORA_MANAGEMENT_FUNCTIONS(RELORA_FIND)
#undef RELORA_FIND
  if (const int status = functions.nvmlInit_v2()) {
    throw CudaError("MANAGEMENT_FAILED", "starting " + path + ": status " + std::to_string(status));
  }
  return opened.emplace(path, functions).first->second;
}

}  // namespace

std::vector<CardReading> read_cards(const std::string& path) {
  const Management& library = open_management(path);
  unsigned count = 0;
  if (const int status = library.nvmlDeviceGetCount_v2(&count)) {
    throw CudaError("MANAGEMENT_FAILED", "counting cards: status " + std::to_string(status));
  }
  std::vector<CardReading> readings;
  for (unsigned i = 0; i < count; i++) {
    ManagedCard card;
    char uuid[96] = {};
    // One that is lost is not among those that answer.
    if (library.nvmlDeviceGetHandleByIndex_v2(i, &card) != 0) continue;
    if (library.nvmlDeviceGetUUID(card, uuid, sizeof uuid) != 0) continue;
    CardReading reading;
    reading.uuid = uuid;
    if (Utilization rates; library.nvmlDeviceGetUtilizationRates(card, &rates) == 0) reading.utilization = rates.gpu / 100.0;
    if (ManagedMemory memory; library.nvmlDeviceGetMemoryInfo(card, &memory) == 0) {
      reading.memory_used = static_cast<double>(memory.used);
      reading.memory_total = static_cast<double>(memory.total);
    }
    constexpr int of_the_chip = 0;
    if (unsigned celsius; library.nvmlDeviceGetTemperature(card, of_the_chip, &celsius) == 0) reading.celsius = celsius;
    if (unsigned milliwatts; library.nvmlDeviceGetPowerUsage(card, &milliwatts) == 0) reading.watts = milliwatts / 1000.0;
    if (unsigned long long bits; library.nvmlDeviceGetCurrentClocksThrottleReasons(card, &bits) == 0) {
      reading.throttle_bits = static_cast<double>(bits);
    }
    readings.push_back(reading);
  }
  return readings;
}

}  // namespace relora::cuda
