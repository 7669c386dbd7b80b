// Causal attention in true float32, for probes, for runs in FLOAT32 and for head sizes that are not a multiple of eight: a simple version
// with a warp per query or key, in a fixed order. Scores are never stored. Query i is at position i + keys - queries; in the backward pass,
// and with masked documents, there are as many keys as queries. A query sees keys from the begin of its document on, a key is seen by
// queries before the end of its own.
#include "device.h"

constexpr int most = 4;  // elements of a head in a lane: at most 128 in all

__device__ __forceinline__ float dot(const float* a, const float* b, int dim) {
  float sum = 0;
  for (int i = 0; i < dim; i++) sum += a[i] * b[i];
  return sum;
}

struct AttentionFloatForwardParameters {
  float* out;  // [batch * queries, heads * dim], `out_stride` apart
  float* log_sum_exp;  // [batch, heads, queries]
  const float* q;  // [batch * queries, heads * dim], `q_stride` apart
  const float* k;  // [batch * keys, kv_heads * dim], `kv_stride` apart
  const float* v;
  const int* begins;  // [batch, queries], or null: at 0
  int queries;
  int keys;
  int heads;
  int group;
  int dim;
  int q_stride;
  int kv_stride;
  int out_stride;
  float scale;
};
/// A warp for each query of a head: grid [queries / 4, heads, batch].
KERNEL(attention_float_forward, AttentionFloatForwardParameters, 128) {
  const int query = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, batch = blockIdx.z;
  if (query >= p.queries) return;
  const float* const q = p.q + (static_cast<u64>(batch) * p.queries + query) * p.q_stride + head * p.dim;
  const u64 kv = static_cast<u64>(batch) * p.keys * p.kv_stride + head / p.group * p.dim;
  const int seen = p.keys - p.queries + query + 1;
  float sums[most] = {}, largest = -infinity, total = 0;
  for (int first = p.begins == nullptr ? 0 : p.begins[batch * p.queries + query]; first < seen; first += 32) {
    const int key = first + lane;
    const float s = key < seen ? p.scale * dot(q, p.k + kv + static_cast<u64>(key) * p.kv_stride, p.dim) : -infinity;
    const float now = fmaxf(largest, largest_of_warp(s)), shrink = expf(largest - now);
    const float weight = expf(s - now);
    total = total * shrink + sum_of_warp(weight);
    largest = now;
#pragma unroll
    for (int i = 0; i < most; i++) sums[i] *= shrink;
    for (int j = 0; j < min(32, seen - first); j++) {
      const float of = __shfl_sync(0xffffffffu, weight, j);
      const float* const v = p.v + kv + static_cast<u64>(first + j) * p.kv_stride;
#pragma unroll
      for (int i = 0; i < most; i++) {
        if (lane + 32 * i < p.dim) sums[i] += of * v[lane + 32 * i];
      }
    }
  }
  float* const out = p.out + (static_cast<u64>(batch) * p.queries + query) * p.out_stride + head * p.dim;
#pragma unroll
  for (int i = 0; i < most; i++) {
    if (lane + 32 * i < p.dim) out[lane + 32 * i] = sums[i] / total;
  }
  if (lane == 0) p.log_sum_exp[(static_cast<u64>(batch) * p.heads + head) * p.queries + query] = largest + logf(total);
}

struct AttentionFloatBackwardParameters {
  float* dq;  // as q; dk and dv as k and v
  float* dk;
  float* dv;
  float* delta;  // [batch, heads, time]: made by the kernel for dq
  const float* q;  // [batch * time, heads * dim], `q_stride` apart
  const float* k;  // [batch * time, kv_heads * dim], `kv_stride` apart
  const float* v;
  const float* out;  // [batch * time, heads * dim], `out_stride` apart
  const float* dout;
  const float* log_sum_exp;
  const int* begins;  // [batch, time], or null: at 0
  const int* ends;  // with begins
  int time;
  int heads;
  int group;
  int dim;
  int q_stride;
  int kv_stride;
  int out_stride;
  float scale;
};
KERNEL(attention_float_backward_q, AttentionFloatBackwardParameters, 128) {
  const int query = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, batch = blockIdx.z;
  if (query >= p.time) return;
  const u64 row = static_cast<u64>(batch) * p.time + query;
  const float* const q = p.q + row * p.q_stride + head * p.dim;
  const float* const dout = p.dout + row * p.out_stride + head * p.dim;
  const u64 kv = static_cast<u64>(batch) * p.time * p.kv_stride + head / p.group * p.dim;
  const u64 statistic = (static_cast<u64>(batch) * p.heads + head) * p.time + query;
  float delta = 0;
  for (int i = lane; i < p.dim; i += 32) delta += dout[i] * p.out[row * p.out_stride + head * p.dim + i];
  delta = sum_of_warp(delta);
  if (lane == 0) p.delta[statistic] = delta;
  const float log_sum_exp = p.log_sum_exp[statistic];
  float sums[most] = {};
  for (int first = p.begins == nullptr ? 0 : p.begins[row]; first <= query; first += 32) {
    const int key = first + lane;
    float ds = 0;
    if (key <= query) {
      const u64 at = kv + static_cast<u64>(key) * p.kv_stride;
      const float weight = expf(p.scale * dot(q, p.k + at, p.dim) - log_sum_exp);
      ds = p.scale * weight * (dot(dout, p.v + at, p.dim) - delta);
    }
    for (int j = 0; j < min(32, query + 1 - first); j++) {
      const float of = __shfl_sync(0xffffffffu, ds, j);
      const float* const k = p.k + kv + static_cast<u64>(first + j) * p.kv_stride;
#pragma unroll
      for (int i = 0; i < most; i++) {
        if (lane + 32 * i < p.dim) sums[i] += of * k[lane + 32 * i];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < most; i++) {
    if (lane + 32 * i < p.dim) p.dq[row * p.q_stride + head * p.dim + lane + 32 * i] = sums[i];
  }
}

/// A warp for each key of a key head, which adds its query heads in order: grid [time / 4, kv_heads, batch].
KERNEL(attention_float_backward_kv, AttentionFloatBackwardParameters, 128) {
  const int key = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.y, batch = blockIdx.z;
  if (key >= p.time) return;
  const u64 first_row = static_cast<u64>(batch) * p.time, at = (first_row + key) * p.kv_stride + kv_head * p.dim;
  const int end = p.ends == nullptr ? p.time : p.ends[first_row + key];  // one past the last query that sees the key
  float dk[most] = {}, dv[most] = {};
  for (int head = kv_head * p.group; head < (kv_head + 1) * p.group; head++) {
    for (int first = key; first < end; first += 32) {
      const int query = first + lane;
      float weight = 0, ds = 0;
      if (query < end) {
        const u64 statistic = (static_cast<u64>(batch) * p.heads + head) * p.time + query;
        const u64 row = first_row + query;
        const float s = p.scale * dot(p.q + row * p.q_stride + head * p.dim, p.k + at, p.dim);
        weight = expf(s - p.log_sum_exp[statistic]);
        ds = p.scale * weight * (dot(p.dout + row * p.out_stride + head * p.dim, p.v + at, p.dim) - p.delta[statistic]);
      }
      for (int j = 0; j < min(32, end - first); j++) {
        const float of_weight = __shfl_sync(0xffffffffu, weight, j), of_ds = __shfl_sync(0xffffffffu, ds, j);
        const u64 row = first_row + first + j;
#pragma unroll
        for (int i = 0; i < most; i++) {
          const int element = lane + 32 * i;
          if (element >= p.dim) continue;
          dv[i] += of_weight * p.dout[row * p.out_stride + head * p.dim + element];
          dk[i] += of_ds * p.q[row * p.q_stride + head * p.dim + element];
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < most; i++) {
    if (lane + 32 * i >= p.dim) continue;
    p.dk[at + lane + 32 * i] = dk[i];
    p.dv[at + lane + 32 * i] = dv[i];
  }
}
