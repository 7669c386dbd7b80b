// Rows of a table by ids, and their gradient without atomic sums: positions are sorted by id on the host, and one block adds the rows of
// one id in their order.
#include "device.h"

struct EmbeddingForwardParameters {
  activation* y;  // [rows, hidden], `stride` apart
  const float* table;  // [vocabulary, hidden]
  const int* ids;  // [rows]
  int hidden;
  int stride;
};
/// One block for each row.
KERNEL(embedding_forward, EmbeddingForwardParameters, 128) {
  const float* const from = p.table + static_cast<u64>(p.ids[blockIdx.x]) * p.hidden;
  activation* const to = p.y + static_cast<u64>(blockIdx.x) * p.stride;
  for (int i = threadIdx.x; i < p.hidden; i += 128) to[i] = rounded_to<activation>(from[i]);
}

struct EmbeddingBackwardParameters {
  float* dtable;  // [vocabulary, hidden], added to
  const activation* dy;  // [rows, hidden], `stride` apart
  const int* rows;  // [rows] sorted by id, and of one id by their place
  const int* begins;  // [count + 1] where the rows of each id that occurs begin
  const int* ids;  // [count] those ids
  int hidden;
  int stride;
};
/// One block for each id that occurs.
KERNEL(embedding_backward, EmbeddingBackwardParameters, 128) {
  float* const to = p.dtable + static_cast<u64>(p.ids[blockIdx.x]) * p.hidden;
  const int begin = p.begins[blockIdx.x], end = p.begins[blockIdx.x + 1];
  for (int i = threadIdx.x; i < p.hidden; i += 128) {
    float sum = 0;
    for (int at = begin; at < end; at++) sum += to_float(p.dy[static_cast<u64>(p.rows[at]) * p.stride + i]);
    to[i] += sum;
  }
}
