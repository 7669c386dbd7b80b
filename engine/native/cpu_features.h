// What this machine offers: instruction sets by CPUID and XGETBV or what the system says, CPUs by affinity and cgroup quota.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace relora {

/// The models compute what amx and neonBf16 do in plain arithmetic, on any machine: for tests of those two, never offered.
enum class InstructionSet {
  amx, avx512bf16, avx512, avx2, neon_bf16, neon_dot, neon, portable, amx_model, neon_bf16_model
};
/// What multiplies int8: a feature of its own, which not every CPU with AVX-512 or with BFMMLA has.
enum class Int8Unit { amx, vnni, avx2, i8mm, dot, neon, portable };

/// The names JavaScript uses.
std::string_view name_of(InstructionSet set);
std::string_view name_of(Int8Unit unit);
/// Best first; always ends with portable.
std::vector<InstructionSet> supported_instruction_sets();
/// A supported set or the model, by its name.
std::optional<InstructionSet> usable_instruction_set(std::string_view name);
/// The unit that a supported set uses on this CPU.
Int8Unit int8_unit_of(InstructionSet set);
/// CPUs this process may use, at least 1: affinity mask, then cgroup quota rounded up.
unsigned usable_cpus();
std::string cpu_model();

}  // namespace relora
