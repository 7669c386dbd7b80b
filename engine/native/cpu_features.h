// What this machine offers: instruction sets by CPUID and XGETBV, CPUs by affinity and cgroup quota.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace relora {

enum class InstructionSet { avx512bf16, avx512, avx2, portable };

/// The name JavaScript uses.
std::string_view name_of(InstructionSet set);
/// Best first; always ends with portable.
std::vector<InstructionSet> supported_instruction_sets();
/// CPUs this process may use, at least 1: affinity mask, then cgroup quota rounded up.
unsigned usable_cpus();
std::string cpu_model();

}  // namespace relora
