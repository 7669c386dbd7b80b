#include "cpu_features.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>
#ifdef __linux__
#include <sched.h>
#include <sys/auxv.h>
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

/// Registers that the operating system saves: without that, the CPU's features cannot be used.
uint32_t saved_registers() {
  if (!bit(cpuid(1, 0).c, 27)) return 0;  // OSXSAVE
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

/// On Intel's processors vdpbf16ps is slower than widening both operands to float32 (docs/performance.md).
bool has_slow_bfloat16() {
  constexpr uint32_t first_of_genuine_intel = 0x756e6547;
  return cpuid(0, 0).b == first_of_genuine_intel;
}

/// Linux saves tiles only for processes that request it; otherwise their first use ends the process.
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

#ifdef __aarch64__
struct ArmFeatures {
  bool dot, bf16, i8mm;
};

ArmFeatures arm_features() {
#if defined(__linux__)
  // arch/arm64/include/uapi/asm/hwcap.h: ASIMDDP, BF16, I8MM
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  return {(first >> 20 & 1) != 0, (second >> 14 & 1) != 0, (second >> 13 & 1) != 0};
#elif defined(__APPLE__)
  const auto has = [](const char* name) {
    int value = 0;
    size_t length = sizeof value;
    return sysctlbyname(name, &value, &length, nullptr, 0) == 0 && value != 0;
  };
  return {has("hw.optional.arm.FEAT_DotProd"), has("hw.optional.arm.FEAT_BF16"), has("hw.optional.arm.FEAT_I8MM")};
#else
  return {};
#endif
}

#ifdef __linux__
/// Name of the current core, from its identification register, which Linux lets every process read.
std::string arm_core() {
  struct Core {
    unsigned implementer, part;
    const char* name;
  };
  constexpr Core cores[] = {
      {0x41, 0xd03, "Cortex-A53"},     {0x41, 0xd05, "Cortex-A55"},     {0x41, 0xd07, "Cortex-A57"},
      {0x41, 0xd08, "Cortex-A72"},     {0x41, 0xd0b, "Cortex-A76"},     {0x41, 0xd41, "Cortex-A78"},
      {0x41, 0xd0c, "Neoverse N1"},    {0x41, 0xd49, "Neoverse N2"},    {0x41, 0xd8e, "Neoverse N3"},
      {0x41, 0xd40, "Neoverse V1"},    {0x41, 0xd4f, "Neoverse V2"},    {0x41, 0xd84, "Neoverse V3"},
      {0x43, 0x0af, "ThunderX2"},      {0x46, 0x001, "A64FX"},          {0x48, 0xd01, "Kunpeng 920"},
      {0x61, 0x022, "Apple M1"},       {0x61, 0x023, "Apple M1"},       {0x6d, 0xd49, "Azure Cobalt 100"},
      {0xc0, 0xac3, "Ampere-1"},       {0xc0, 0xac4, "Ampere-1a"},
  };
  constexpr unsigned long readable = 1 << 11;  // HWCAP_CPUID
  if ((getauxval(AT_HWCAP) & readable) == 0) return "ARM processor";
  uint64_t identification;
  asm("mrs %0, midr_el1" : "=r"(identification));
  const unsigned implementer = identification >> 24 & 0xff, part = identification >> 4 & 0xfff;
  for (const Core& core : cores) {
    if (core.implementer == implementer && core.part == part) return core.name;
  }
  std::ostringstream text;
  text << std::hex << "ARM processor, implementer 0x" << implementer << ", part 0x" << part;
  return text.str();
}
#endif
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
    case InstructionSet::neon_bf16_model: return "neonBf16-model";
    case InstructionSet::neon_bf16: return "neonBf16";
    case InstructionSet::neon_dot: return "neonDot";
    case InstructionSet::neon: return "neon";
    case InstructionSet::portable: break;
  }
  return "portable";
}

std::string_view name_of(Int8Unit unit) {
  switch (unit) {
    case Int8Unit::amx: return "amx";
    case Int8Unit::vnni: return "vnni";
    case Int8Unit::avx2: return "avx2";
    case Int8Unit::i8mm: return "i8mm";
    case Int8Unit::dot: return "dot";
    case Int8Unit::neon: return "neon";
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
  if (avx512bf16 && has_slow_bfloat16()) std::swap(sets[sets.size() - 2], sets.back());
  if (avx2) sets.push_back(InstructionSet::avx2);
#elif defined(__aarch64__)
  const ArmFeatures features = arm_features();
  if (features.dot && features.bf16) sets.push_back(InstructionSet::neon_bf16);
  if (features.dot) sets.push_back(InstructionSet::neon_dot);
  sets.push_back(InstructionSet::neon);
#endif
  sets.push_back(InstructionSet::portable);
  return sets;
}

std::optional<InstructionSet> usable_instruction_set(std::string_view name) {
  for (const InstructionSet model : {InstructionSet::amx_model, InstructionSet::neon_bf16_model}) {
    if (name == name_of(model)) return model;
  }
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
#elif defined(__aarch64__)
  switch (set) {
    case InstructionSet::neon_bf16: return arm_features().i8mm ? Int8Unit::i8mm : Int8Unit::dot;
    case InstructionSet::neon_dot: return Int8Unit::dot;
    case InstructionSet::neon: return Int8Unit::neon;
    default: break;
  }
#endif
  return Int8Unit::portable;
}

unsigned usable_cpus() {
  unsigned cpus = std::max(1u, std::thread::hardware_concurrency());
#ifdef __APPLE__
  // Only the fast cores count: a product is as slow as its slowest part.
  int fast = 0;
  size_t length = sizeof fast;
  if (sysctlbyname("hw.perflevel0.logicalcpu", &fast, &length, nullptr, 0) == 0 && fast > 0) {
    cpus = static_cast<unsigned>(fast);
  }
#endif
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
#elif defined(__aarch64__) && defined(__linux__)
  return arm_core();
#endif
  return "unknown";
}

}  // namespace relora
