#include "embedding.h"

#include <algorithm>
#include <cstring>

namespace relora {

void embedding_forward(Context& context, float* y, const float* table, const int32_t* ids, size_t rows,
                       size_t dim) {
  constexpr size_t block = 64;
  context.pool.run((rows + block - 1) / block, [&](size_t task, unsigned) {
    for (size_t row = task * block; row < std::min(rows, (task + 1) * block); row++) {
      std::memcpy(y + row * dim, table + static_cast<size_t>(ids[row]) * dim, dim * sizeof(float));
    }
  });
}

void embedding_backward(Context& context, float* dtable, const float* dy, const int32_t* ids, size_t rows,
                        size_t vocabulary, size_t dim) {
  // Each task owns a range of the vocabulary and reads all ids: one writer per table row, and rows are added in order.
  const size_t tasks = std::min<size_t>(vocabulary, 16);
  context.pool.run(tasks, [&](size_t task, unsigned) {
    const size_t begin = vocabulary * task / tasks, end = vocabulary * (task + 1) / tasks;
    std::memset(dtable + begin * dim, 0, (end - begin) * dim * sizeof(float));
    for (size_t row = 0; row < rows; row++) {
      const size_t id = static_cast<size_t>(ids[row]);
      if (id < begin || id >= end) continue;
      float* __restrict to = dtable + id * dim;
      const float* __restrict from = dy + row * dim;
      for (size_t i = 0; i < dim; i++) to[i] += from[i];
    }
  });
}

}  // namespace relora
