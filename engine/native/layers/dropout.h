// Counter-based dropout masks: a pure function of an element's position in a run.
#pragma once
#include "../context.h"

namespace relora {

struct DropoutStream {
  double share;
  uint64_t seed;
  uint32_t step, first_sequence, layer;
  size_t sequence_length;  // elements of one sequence
};

/// mask[sequences * sequence_length]: 0 with probability `share`, else 1 / (1 - share). engine/src/device/dropout.ts defines how each
/// element is drawn, and is the reference.
void dropout_mask(Context& context, float* mask, size_t length, const DropoutStream& stream);

}  // namespace relora
