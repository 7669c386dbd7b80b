// Rows of a table by ids, and their gradient without atomic sums: the host sorts positions by id, and one block adds a limited number of
// rows of the same id, in order.
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
  float* partial;  // [parts, hidden] of ids that occur often
  const activation* dy;  // [rows, hidden], `stride` apart
  const int* rows;  // [rows] sorted by id, in ascending order within an id
  const int* segments;  // [segments, 4]: begin and end among the rows, id, place among the parts or -1
  int hidden;
  int stride;
};
/// One block for each segment: rows of one id.
KERNEL(embedding_backward, EmbeddingBackwardParameters, 128) {
  const int* const segment = p.segments + 4 * blockIdx.x;
  const int begin = segment[0], end = segment[1], part = segment[3];
  if (begin == end) return;  // launched for the maximum number of segments
  float* const to = part < 0 ? p.dtable + static_cast<u64>(segment[2]) * p.hidden : p.partial + static_cast<u64>(part) * p.hidden;
  for (int i = threadIdx.x; i < p.hidden; i += 128) {
    float sum = 0;
    for (int at = begin; at < end; at++) sum += to_float(p.dy[static_cast<u64>(p.rows[at]) * p.stride + i]);
    to[i] = part < 0 ? to[i] + sum : sum;
  }
}

struct EmbeddingAddPartsParameters {
  float* dtable;
  const float* partial;
  const int* ids;  // [ids, 3]: id, begin and end among the parts
  int hidden;
};
/// One block for each id that has parts.
KERNEL(embedding_add_parts, EmbeddingAddPartsParameters, 128) {
  const int* const id = p.ids + 3 * blockIdx.x;
  if (id[1] == id[2]) return;
  float* const to = p.dtable + static_cast<u64>(id[0]) * p.hidden;
  for (int i = threadIdx.x; i < p.hidden; i += 128) {
    float sum = 0;
    for (int part = id[1]; part < id[2]; part++) sum += p.partial[static_cast<u64>(part) * p.hidden + i];
    to[i] += sum;
  }
}
