// Norms of individual heads of queries and keys, between their projection and their rotation.
#pragma once
#include "kernels.h"
#include "rows.h"

namespace relora::RELORA_ISA {

namespace {

/// Normalizes each of the heads[count, dim] in place.
inline void normalize_heads(float* heads, const float* gain, size_t count, size_t dim, float epsilon) {
  for (float* head = heads; head < heads + count * dim; head += dim) {
    normalize_row(head, head, gain, inverse_root_mean_square(head, dim, epsilon), dim);
  }
}

/// Converts d[rows, width] to the gradient of the norm's input `made`; dgain is the sum over all heads of all rows. Partial sums are over a
/// fixed number of rows, so that they do not depend on threads.
template <class Element>
void differentiate_heads(Context& context, const HeadNorm& norm, Element* d, const Element* made, size_t rows,
                         size_t width, const AttentionPass& pass) {
  if (norm.gain == nullptr) return;
  constexpr size_t block = 32;
  const size_t dim = pass.shape.head_dim, parts = (rows + block - 1) / block;
  float* const partial = context.shared(Shared::first).floats(parts * dim);
  context.reserve_worker_memory(dim);
  context.pool.run(parts, [&](size_t part, unsigned worker) {
    float* const x = context.worker_memory(worker);
    float* const sums = partial + part * dim;
    std::memset(sums, 0, dim * sizeof(float));
    const size_t end = (part + 1) * block < rows ? (part + 1) * block : rows;
    for (size_t at = part * block * width; at < end * width; at += dim) {
      for_vectors(dim, [&](size_t i, size_t count) { store(x + i, load(made + at + i, count), count); });
      const float rstd = inverse_root_mean_square(x, dim, pass.epsilon);
      const float dot = sum_row(dim, [&](Vec sum, size_t i, size_t count) {
        return multiply_add(load(d + at + i, count) * load(norm.gain + i, count), load(x + i, count), sum);
      });
      const float along = dot * rstd * rstd / static_cast<float>(dim);
      for_vectors(dim, [&](size_t i, size_t count) {
        const Vec upstream = load(d + at + i, count), v = load(x + i, count);
        store(sums + i, load(sums + i, count) + upstream * v * rstd, count);
        store(d + at + i, (upstream * load(norm.gain + i, count) - v * along) * rstd, count);
      });
    }
  });
  std::memset(norm.dgain, 0, dim * sizeof(float));
  for (size_t part = 0; part < parts; part++) {
    const float* const from = partial + part * dim;
    for_vectors(dim, [&](size_t i, size_t count) {
      store(norm.dgain + i, load(norm.dgain + i, count) + load(from + i, count), count);
    });
  }
}

}  // namespace

}  // namespace relora::RELORA_ISA
