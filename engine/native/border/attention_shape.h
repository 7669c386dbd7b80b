// The dimensions of attention among the arguments of a call.
#pragma once
#include <cmath>

#include "../kernels/kernels.h"
#include "arguments.h"

namespace relora {

inline void check_heads(const Arguments& in, const AttentionShape& shape) {
  if (shape.heads % shape.kv_heads != 0) {
    in.refuse("heads must be a multiple of kvHeads, got " + std::to_string(shape.heads) + " and " +
              std::to_string(shape.kv_heads));
  }
}

/// The next argument, `shape`.
inline AttentionShape attention_shape(Arguments& in) {
  const Arguments::Fields fields(in, "shape");
  AttentionShape shape{};
  shape.batch = in.dimension("batch");
  shape.time = in.dimension("time");
  shape.heads = in.dimension("heads");
  shape.kv_heads = in.dimension("kvHeads");
  shape.head_dim = in.dimension("headDim");
  shape.scale = static_cast<float>(in.number("scale"));
  check_heads(in, shape);
  return shape;
}

}  // namespace relora
