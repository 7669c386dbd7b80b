#include "cpu_features.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>
#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

namespace relora {

namespace {

#ifdef __x86_64__
struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

bool bit(uint32_t value, unsigned index) { return (value >> index & 1) != 0; }

/// Which registers the operating system saves: without it the CPU's features are of no use.
uint32_t saved_registers() {
  if (!bit(cpuid(1, 0).c, 27)) return 0;  // OSXSAVE
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

/// Linux saves the tiles of a process that asked for it; without that their first use ends the process.
bool may_use_tiles() {
#ifdef __linux__
  constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
#else
  return false;
#endif
}
#endif

#ifdef __linux__
/// Quota in CPUs of one cgroup directory; 0 when there is none.
double quota_of(const std::string& directory) {
  double quota = 0, period = 0;
  std::string text;
  if (std::ifstream(directory + "/cpu.max") >> text >> period) {  // version 2
    return text == "max" || period <= 0 ? 0 : std::strtod(text.c_str(), nullptr) / period;
  }
  std::ifstream(directory + "/cpu.cfs_quota_us") >> quota;  // version 1
  std::ifstream(directory + "/cpu.cfs_period_us") >> period;
  return quota > 0 && period > 0 ? quota / period : 0;
}

/// The smallest quota from this process's cgroup up to the root: every level limits.
double cgroup_quota() {
  double smallest = 0;
  std::ifstream membership("/proc/self/cgroup");
  for (std::string line; std::getline(membership, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && (',' + controllers + ',').find(",cpu,") == std::string::npos) continue;
    const std::string root = controllers.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controllers;
    for (std::string path = line.substr(second + 1);;) {
      const double quota = quota_of(path == "/" ? root : root + path);
      if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
      const size_t slash = path.rfind('/');
      if (path == "/" || slash == std::string::npos) break;
      path = slash == 0 ? "/" : path.substr(0, slash);
    }
  }
  return smallest;
}
#endif

}  // namespace

std::string_view name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::amx_model: return "amx-model";
    case InstructionSet::amx: return "amx";
    case InstructionSet::avx512bf16: return "avx512bf16";
    case InstructionSet::avx512: return "avx512";
    case InstructionSet::avx2: return "avx2";
    case InstructionSet::portable: break;
  }
  return "portable";
}

std::string_view name_of(Int8Unit unit) {
  switch (unit) {
    case Int8Unit::amx: return "amx";
    case Int8Unit::vnni: return "vnni";
    case Int8Unit::avx2: return "avx2";
    case Int8Unit::portable: break;
  }
  return "portable";
}

std::vector<InstructionSet> supported_instruction_sets() {
  std::vector<InstructionSet> sets;
#ifdef __x86_64__
  const uint32_t saved = saved_registers();
  const bool saves_ymm = (saved & 0x06) == 0x06, saves_zmm = (saved & 0xe6) == 0xe6;
  const Registers basic = cpuid(1, 0), extended = cpuid(7, 0);
  const Registers more = extended.a >= 1 ? cpuid(7, 1) : Registers{};
  // AVX2, FMA, AVX
  const bool avx2 = saves_ymm && bit(extended.b, 5) && bit(basic.c, 12) && bit(basic.c, 28);
  const bool avx512 = avx2 && saves_zmm && bit(extended.b, 16) && bit(extended.b, 17) &&
      bit(extended.b, 30) && bit(extended.b, 31);  // F, DQ, BW, VL
  const bool avx512bf16 = avx512 && bit(more.a, 5);
  const bool amx = (saved & 0x60000) == 0x60000 && bit(extended.d, 22) && bit(extended.d, 24) &&
      bit(extended.d, 25);  // BF16, TILE, INT8
  if (avx512bf16 && amx && may_use_tiles()) sets.push_back(InstructionSet::amx);
  if (avx512bf16) sets.push_back(InstructionSet::avx512bf16);
  if (avx512) sets.push_back(InstructionSet::avx512);
  if (avx2) sets.push_back(InstructionSet::avx2);
#endif
  sets.push_back(InstructionSet::portable);
  return sets;
}

std::optional<InstructionSet> usable_instruction_set(std::string_view name) {
  if (name == name_of(InstructionSet::amx_model)) return InstructionSet::amx_model;
  for (const InstructionSet set : supported_instruction_sets()) {
    if (name_of(set) == name) return set;
  }
  return std::nullopt;
}

Int8Unit int8_unit_of(InstructionSet set) {
#ifdef __x86_64__
  const bool vnni = bit(cpuid(7, 0).c, 11);  // AVX512_VNNI
  switch (set) {
    case InstructionSet::amx: return Int8Unit::amx;
    case InstructionSet::avx512bf16:
    case InstructionSet::avx512: return vnni ? Int8Unit::vnni : Int8Unit::avx2;
    case InstructionSet::avx2: return Int8Unit::avx2;
    default: break;
  }
#endif
  return Int8Unit::portable;
}

unsigned usable_cpus() {
  unsigned cpus = std::max(1u, std::thread::hardware_concurrency());
#ifdef __linux__
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) cpus = std::max(1, CPU_COUNT(&mask));
  const double quota = cgroup_quota();
  if (quota > 0) cpus = std::min(cpus, static_cast<unsigned>(std::ceil(quota)));
#endif
  return std::max(1u, cpus);
}

std::string cpu_model() {
#ifdef __x86_64__
  if (cpuid(0x80000000, 0).a >= 0x80000004) {
    char brand[49] = {};
    for (uint32_t part = 0; part < 3; part++) {
      const Registers r = cpuid(0x80000002 + part, 0);
      const uint32_t words[4] = {r.a, r.b, r.c, r.d};
      std::memcpy(brand + 16 * part, words, sizeof words);
    }
    const std::string text(brand);
    const size_t begin = text.find_first_not_of(' ');
    if (begin != std::string::npos) return text.substr(begin, text.find_last_not_of(' ') - begin + 1);
  }
#endif
#ifdef __APPLE__
  char brand[128] = {};
  size_t length = sizeof brand - 1;
  if (sysctlbyname("machdep.cpu.brand_string", brand, &length, nullptr, 0) == 0) return brand;
#endif
  return "unknown";
}

}  // namespace relora
