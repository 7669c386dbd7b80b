// Rotary position embedding (Su et al. 2021), half-split: element i of a head is rotated with element i + head_dim / 2.
#include "device.h"

struct RotaryParameters {
  activation* x;  // [rows, heads, head_dim] in place, rows `stride` apart
  const float* cosines;  // [position, head_dim / 2]
  const float* sines;
  const int* begins;  // [rows]: where, within its sequence, the document of each row begins, from which positions are counted; or null
  int rows;
  int heads;
  int head_dim;
  int stride;
  int time;  // row r is at position first_position + r % time - begins[r]
  int first_position;
  float sign;  // -1 rotates back: the transposed matrix, for the backward pass
};
/// One thread for each pair.
KERNEL(rotary, RotaryParameters, 256) {
  const u32 half = p.head_dim / 2, pairs = p.heads * half;
  const u64 index = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= static_cast<u64>(p.rows) * pairs) return;
  const u32 row = static_cast<u32>(index / pairs), pair = static_cast<u32>(index % pairs);
  const u32 head = pair / half, i = pair % half;
  const int begin = p.begins == nullptr ? 0 : p.begins[row];
  const u64 angle = static_cast<u64>(p.first_position + row % p.time - begin) * half + i;
  const float cosine = p.cosines[angle], sine = p.sign * p.sines[angle];
  activation* const first = p.x + static_cast<u64>(row) * p.stride + head * p.head_dim + i;
  const float a = to_float(first[0]), b = to_float(first[half]);
  first[0] = rounded_to<activation>(a * cosine - b * sine);
  first[half] = rounded_to<activation>(b * cosine + a * sine);
}
