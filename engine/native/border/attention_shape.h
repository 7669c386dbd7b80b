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

/// The field `documents`, null or where the document of each position begins; ascending, and each document begins at its own begin.
inline const int32_t* documents_of(Arguments& in, const AttentionShape& shape) {
  if (in.is_null("documents")) return nullptr;
  const auto documents = in.ids("documents");
  in.shape(documents, {shape.batch, shape.time}, "batch * time");
  for (size_t i = 0; i < shape.batch * shape.time; i++) {
    const size_t t = i % shape.time;
    const int32_t begin = documents.data[i], least = t == 0 ? 0 : documents.data[i - 1];
    if (begin != least && begin != static_cast<int32_t>(t)) {
      in.refuse(std::string(documents.name) + "[" + std::to_string(i) + "] must be " + std::to_string(least) + ", as before it, or " +
                std::to_string(t) + ", got " + std::to_string(begin));
    }
  }
  return documents.data;
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
  shape.documents = documents_of(in, shape);
  check_heads(in, shape);
  return shape;
}

}  // namespace relora
