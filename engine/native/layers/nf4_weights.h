// A frozen weight in four bits, unpacked a layer at a time while it is used.
#pragma once
#include <memory>

#include "../context.h"

namespace relora {

constexpr size_t nf4_block = 64;
constexpr size_t nf4_blocks(size_t count) { return (count + nf4_block - 1) / nf4_block; }

struct Nf4Weights {
  explicit Nf4Weights(size_t count)
      : count(count),
        codes(new uint8_t[nf4_blocks(count) * nf4_block / 2]),
        scales(new float[nf4_blocks(count)]) {}

  size_t bytes() const { return nf4_blocks(count) * (nf4_block / 2 + sizeof(float)); }

  size_t count;
  std::unique_ptr<uint8_t[]> codes;
  std::unique_ptr<float[]> scales;
};

}  // namespace relora
