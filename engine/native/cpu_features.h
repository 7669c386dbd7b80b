// Capabilities of this machine: instruction sets by CPUID and XGETBV or as reported by the system, CPUs by affinity and cgroup quota.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace relora {

/// The models emulate amx and neonBf16 with plain arithmetic on any machine: for tests of these two, never offered.
enum class InstructionSet {
  amx, avx512bf16, avx512, avx2, neon_bf16, neon_dot, neon, portable, amx_model, neon_bf16_model
};
/// The instructions that multiply int8: a separate feature, which not every CPU with AVX-512 or BFMMLA has.
enum class Int8Unit { amx, vnni, avx2, i8mm, dot, neon, portable };

/// The names JavaScript uses.
std::string_view name_of(InstructionSet set);
std::string_view name_of(Int8Unit unit);
/// Fastest first; always ends with portable.
std::vector<InstructionSet> supported_instruction_sets();
/// A supported set or the model, by its name.
std::optional<InstructionSet> usable_instruction_set(std::string_view name);
/// The unit that a supported set uses on this CPU.
Int8Unit int8_unit_of(InstructionSet set);
/// CPUs this process may use, at least 1: affinity mask, then cgroup quota rounded up.
unsigned usable_cpus();
std::string cpu_model();

}  // namespace relora
