// The frozen base w[in, out] of a linear layer, packed once for both directions.
#pragma once
#include <memory>

#include "../gemm/product.h"
#include "nf4_weights.h"

namespace relora {

struct FreeAligned {
  void operator()(uint32_t* words) const { free_aligned(words); }
};

/// The two packings of w: for x w and for dy wᵀ. Bound to the instruction set it was packed under. In int8 each packing is scaled by its
/// own columns; a column with a weight that is not finite gives NaN. In nf4 w is stored once, and packed for each pass.
struct PackedBase {
  PackedBase(Context& context, Precision precision, const float* w, size_t in, size_t out);
  /// Packs another w of the same size into the same memory.
  void pack(Context& context, const float* w);

  /// For one pass: their memory may be in the arena, packed for `unpacked_kernel` if it was not packed before.
  RightPanels forward_panels(Context& context, const ProductKernel& unpacked_kernel) const;
  RightPanels backward_panels(Context& context, const ProductKernel& unpacked_kernel) const;

  InstructionSet set;
  /// The adapter of an int8 base is computed in bfloat16, any other in the precision of the base.
  const ProductKernel *kernel, *adapter_kernel;
  size_t in, out, bytes;
  std::unique_ptr<uint32_t[], FreeAligned> forward_words, backward_words;
  RightPanels forward, backward;
  std::unique_ptr<Nf4Weights> nf4;

 private:
  RightPanels unpack(Context& context, const ProductKernel& unpacked_kernel, bool transposed) const;
};

}  // namespace relora
