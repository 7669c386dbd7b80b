#include "dropout.h"

#include <algorithm>
#include <array>

namespace relora {

namespace {

/// Philox4x32-10 (Salmon and others 2011).
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, uint64_t seed) {
  uint32_t left = static_cast<uint32_t>(seed), right = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t first = uint64_t{0xd2511f53} * counter[0], third = uint64_t{0xcd9e8d57} * counter[2];
    counter = {static_cast<uint32_t>(third >> 32) ^ counter[1] ^ left, static_cast<uint32_t>(third),
               static_cast<uint32_t>(first >> 32) ^ counter[3] ^ right, static_cast<uint32_t>(first)};
    left += 0x9e3779b9;
    right += 0xbb67ae85;
  }
  return counter;
}

}  // namespace

void dropout_mask(Context& context, float* mask, size_t length, const DropoutStream& stream) {
  const double threshold = stream.share * 4294967296.0;
  const float kept = static_cast<float>(1 / (1 - stream.share));
  // Each task has the elements of whole counters of one sequence.
  constexpr size_t block = 16384;
  const size_t blocks = (stream.sequence_length + block - 1) / block;
  const size_t sequences = length / stream.sequence_length;
  context.pool.run(sequences * blocks, [&](size_t task, unsigned) {
    const size_t sequence = task / blocks, begin = task % blocks * block;
    const size_t end = std::min(stream.sequence_length, begin + block);
    float* const to = mask + sequence * stream.sequence_length;
    const uint32_t place = stream.first_sequence + static_cast<uint32_t>(sequence);
    for (size_t element = begin; element < end; element += 4) {
      const auto words =
          philox({static_cast<uint32_t>(element >> 2), place, stream.step, stream.layer}, stream.seed);
      for (size_t word = 0; word < 4 && element + word < end; word++) {
        to[element + word] = words[word] < threshold ? 0.0f : kept;
      }
    }
  });
}

}  // namespace relora
