// Causal attention in tiles, forward and backward (Dao 2023): scores are never stored. Queries, keys and values are adjacent columns, as
// one product computed them, row by row; query head h uses key head h / group. HEAD_DIM is the head size, a multiple of eight; only in
// shared memory it is zero-padded to a multiple of 16. Query i is at position i + keys - queries. dq has a separate kernel, so that no two
// blocks add to the same element. With masked documents there are as many keys as queries: a query sees keys from the begin of its document
// on, a key is seen by queries before the end of its own, and tiles that nobody sees are skipped.
#include "tiles.h"

#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif
constexpr int padded_dim = (HEAD_DIM + 15) / 16 * 16, tile_queries = 64, tile_keys = 64;
/// Keys per block, and queries at a time, of the kernel for dk and dv, which keeps two sums in registers.
constexpr int own_keys = 64, step_queries = 32;

template <int rows>
using HeadTile = bf16[rows][padded_dim + tile_padding];

constexpr float log2e = 1.4426950408889634f;

/// p[16, 64] rounded to bfloat16 as a left operand: a lane's sums are the elements that it needs.
template <int columns>
__device__ __forceinline__ void as_left(u32 (&a)[4], const float (&p)[columns / 8][4], int step) {
  a[0] = pack_bf16(p[2 * step][0], p[2 * step][1]);
  a[1] = pack_bf16(p[2 * step][2], p[2 * step][3]);
  a[2] = pack_bf16(p[2 * step + 1][0], p[2 * step + 1][1]);
  a[3] = pack_bf16(p[2 * step + 1][2], p[2 * step + 1][3]);
}

/// s[16, columns] += left[16, 16] right^T from column d on of a tile of heads.
template <int columns>
__device__ __forceinline__ void multiply_piece(float (&s)[columns / 8][4], const u32 (&left)[4], int d,
                                               const bf16 (*right)[padded_dim + tile_padding]) {
#pragma unroll
  for (int i = 0; i < columns / 16; i++) {
    u32 b[2][2];
    load_right_transposed(b, right, d, 16 * i);
    multiply_bf16(s[2 * i], left, b[0]);
    multiply_bf16(s[2 * i + 1], left, b[1]);
  }
}
/// s[16, columns] = left[16 rows from `row`] right^T, both tiles of heads.
template <int columns>
__device__ __forceinline__ void multiply_heads(float (&s)[columns / 8][4], const bf16 (*left)[padded_dim + tile_padding], int row,
                                               const bf16 (*right)[padded_dim + tile_padding]) {
#pragma unroll
  for (int i = 0; i < columns / 8; i++) s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0;
#pragma unroll
  for (int d = 0; d < padded_dim; d += 16) {
    u32 a[4];
    load_left(a, left, row, d);
    multiply_piece<columns>(s, a, d, right);
  }
}

/// sums[16, head] += p[16, depth] right[depth, head].
template <int depth>
__device__ __forceinline__ void multiply_rows(float (&sums)[padded_dim / 8][4], const float (&p)[depth / 8][4],
                                              const bf16 (*right)[padded_dim + tile_padding]) {
#pragma unroll
  for (int step = 0; step < depth / 16; step++) {
    u32 a[4];
    as_left<depth>(a, p, step);
#pragma unroll
    for (int d = 0; d < padded_dim / 16; d++) {
      u32 b[2][2];
      load_right(b, right, 16 * step, 16 * d);
      multiply_bf16(sums[2 * d], a, b[0]);
      multiply_bf16(sums[2 * d + 1], a, b[1]);
    }
  }
}

/// Rows row + lane / 4 and eight below of `left` rows are written, HEAD_DIM elements each.
__device__ __forceinline__ void store_rows(bf16* to, const float (&sums)[padded_dim / 8][4], int stride, int row, int rows,
                                           float first_factor, float second_factor) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < padded_dim / 8; i++) {
    const int column = 8 * i + 2 * (lane % 4);
    if (column >= HEAD_DIM) continue;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int at = row + lane / 4 + 8 * half;
      const float factor = half == 0 ? first_factor : second_factor;
      if (at >= rows) continue;
      *reinterpret_cast<u32*>(to + static_cast<u64>(at) * stride + column) =
          pack_bf16(sums[i][2 * half] * factor, sums[i][2 * half + 1] * factor);
    }
  }
}

struct AttentionForwardParameters {
  bf16* out;  // [batch * queries, heads * head], `out_stride` apart
  float* log_sum_exp;  // [batch, heads, queries]
  const bf16* q;  // [batch * queries, heads * head], `q_stride` apart
  const bf16* k;  // [batch * keys, kv_heads * head], `kv_stride` apart
  const bf16* v;
  const int* begins;  // [batch, queries], or null: at 0
  int queries;
  int keys;
  int heads;
  int group;  // heads that share a key head
  int q_stride;
  int kv_stride;
  int out_stride;
  float scale;
};

struct ForwardShared {
  HeadTile<tile_queries> q;
  struct {
    HeadTile<tile_keys> k, v;
  } stage[2];
};

/// One block for 64 queries of a head: grid [tiles, heads, batch].
KERNEL(attention_forward, AttentionForwardParameters, 128) {
  DYNAMIC_SHARED(ForwardShared, shared);
  const int tile = gridDim.x - 1 - blockIdx.x;  // the longest first
  const int head = blockIdx.y, batch = blockIdx.z;
  const int first_query = tile * tile_queries, before = p.keys - p.queries;
  const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  const bf16* const q = p.q + (static_cast<u64>(batch) * p.queries + first_query) * p.q_stride + head * HEAD_DIM;
  const u64 kv = static_cast<u64>(batch) * p.keys * p.kv_stride + head / p.group * HEAD_DIM;
  const int last_key = min(p.keys, before + first_query + tile_queries);  // one past the last visible key
  const int steps = (last_key + tile_keys - 1) / tile_keys;
  // For the tile, for this lane's rows, and for the warp's last row: documents begin in order.
  int tile_begin = 0, begins[2] = {}, warp_begin = 0;
  if (p.begins != nullptr) {
    const int* const of = p.begins + batch * p.queries;
    const int last = p.queries - 1;
    tile_begin = of[first_query];
    begins[0] = of[min(first_query + row + lane / 4, last)];
    begins[1] = of[min(first_query + row + lane / 4 + 8, last)];
    warp_begin = of[min(first_query + row + 15, last)];
  }
  const int first_step = tile_begin / tile_keys;

  const auto bring = [&](int step) {
    if (step < steps) {
      auto& stage = shared.stage[step % 2];
      const u64 at = kv + static_cast<u64>(step) * tile_keys * p.kv_stride;
      copy_tile<tile_keys, padded_dim, 128>(stage.k, p.k + at, p.kv_stride, p.keys - step * tile_keys, HEAD_DIM);
      copy_tile<tile_keys, padded_dim, 128>(stage.v, p.v + at, p.kv_stride, p.keys - step * tile_keys, HEAD_DIM);
    }
    commit_copies();
  };
  copy_tile<tile_queries, padded_dim, 128>(shared.q, q, p.q_stride, p.queries - first_query, HEAD_DIM);
  bring(first_step);

  // Not -infinity: a row whose document begins after the tile has seen nothing, and 2^(-infinity + infinity) is NaN.
  constexpr float least = -3.402823466e38f;
  float sums[padded_dim / 8][4] = {}, largest[2] = {least, least}, total[2] = {};
  u32 queries[padded_dim / 16][4];  // of this warp, for all steps
  for (int step = first_step; step < steps; step++) {
    bring(step + 1);
    wait_copies<1>();
    __syncthreads();
    const auto& stage = shared.stage[step % 2];
    if (step == first_step) {
#pragma unroll
      for (int d = 0; d < padded_dim / 16; d++) load_left(queries[d], shared.q, row, 16 * d);
    }
    float s[tile_keys / 8][4] = {};
#pragma unroll
    for (int d = 0; d < padded_dim / 16; d++) multiply_piece<tile_keys>(s, queries[d], 16 * d, stage.k);
    float most[2] = {largest[0], largest[1]};
    // Whether every query of the warp sees every key of the tile, so that nothing has to be masked: true for most tiles.
    const int behind = (step + 1) * tile_keys;
    const bool is_whole = behind <= before + first_query + row + 1 && behind <= p.keys && step * tile_keys >= warp_begin;
#pragma unroll
    for (int i = 0; i < tile_keys / 8; i++) {
#pragma unroll
      for (int part = 0; part < 4; part++) {
        s[i][part] *= p.scale * log2e;
        if (!is_whole) {
          const int key = step * tile_keys + 8 * i + 2 * (lane % 4) + part % 2;
          const int query = before + first_query + row + lane / 4 + part / 2 * 8;
          if (key > query || key >= p.keys || key < begins[part / 2]) s[i][part] = -infinity;
        }
        most[part / 2] = fmaxf(most[part / 2], s[i][part]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      most[half] = fmaxf(most[half], __shfl_xor_sync(0xffffffffu, most[half], 1));
      most[half] = fmaxf(most[half], __shfl_xor_sync(0xffffffffu, most[half], 2));
      // A row that has seen no key yet has nothing to scale: zero stays zero.
      const float shrink = power_of_two(largest[half] - most[half]);
      largest[half] = most[half];
      total[half] *= shrink;
#pragma unroll
      for (int i = 0; i < padded_dim / 8; i++) {
        sums[i][2 * half] *= shrink;
        sums[i][2 * half + 1] *= shrink;
      }
    }
#pragma unroll
    for (int i = 0; i < tile_keys / 8; i++) {
#pragma unroll
      for (int part = 0; part < 4; part++) {
        s[i][part] = power_of_two(s[i][part] - largest[part / 2]);
        total[part / 2] += s[i][part];
      }
    }
    multiply_rows<tile_keys>(sums, s, stage.v);
    __syncthreads();  // all have read the tile: the one after the next may overwrite it
  }
  wait_copies<0>();

#pragma unroll
  for (int half = 0; half < 2; half++) {
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
    const int query = first_query + row + lane / 4 + 8 * half;
    if (lane % 4 == 0 && query < p.queries) {
      p.log_sum_exp[(static_cast<u64>(batch) * p.heads + head) * p.queries + query] =
          largest[half] / log2e + logf(total[half]);
    }
  }
  store_rows(p.out + static_cast<u64>(batch) * p.queries * p.out_stride + head * HEAD_DIM, sums, p.out_stride, first_query + row,
             p.queries, 1.0f / total[0], 1.0f / total[1]);
}

struct AttentionDeltaParameters {
  float* delta;  // [batch, heads, time]
  const bf16* out;  // [batch * time, heads * head], `out_stride` apart
  const bf16* dout;
  int rows;
  int time;
  int heads;
  int out_stride;
};
/// delta = sum over a head of out * dout: a warp for each row and head.
KERNEL(attention_delta, AttentionDeltaParameters, 256) {
  const u32 index = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (index >= static_cast<u32>(p.rows) * p.heads) return;
  const u32 row = index / p.heads, head = index % p.heads;
  const u64 at = static_cast<u64>(row) * p.out_stride + head * HEAD_DIM;
  float sum = 0;
  for (int i = lane; i < HEAD_DIM; i += 32) sum += to_float(p.out[at + i]) * to_float(p.dout[at + i]);
  sum = sum_of_warp(sum);
  if (lane == 0) p.delta[(static_cast<u64>(row / p.time) * p.heads + head) * p.time + row % p.time] = sum;
}

struct AttentionBackwardParameters {
  bf16* dq;  // as q; dk and dv as k and v
  bf16* dk;
  bf16* dv;
  const bf16* q;  // [batch * time, heads * head], `stride` apart, as k and v
  const bf16* k;
  const bf16* v;
  const bf16* dout;  // [batch * time, heads * head], `out_stride` apart
  const float* log_sum_exp;  // [batch, heads, time]
  const float* delta;
  const int* begins;  // [batch, time], or null: at 0
  const int* ends;  // with begins
  int time;
  int heads;
  int group;
  int stride;
  int out_stride;
  float scale;
};

struct QueryShared {
  HeadTile<tile_queries> q, dout;
  HeadTile<tile_keys> k, v;
};

/// One block for 64 queries of a head: grid [tiles, heads, batch].
KERNEL(attention_backward_q, AttentionBackwardParameters, 128) {
  DYNAMIC_SHARED(QueryShared, shared);
  const int tile = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
  const int first_query = tile * tile_queries, row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  const u64 first_row = static_cast<u64>(batch) * p.time;
  const u64 at_query = (first_row + first_query) * p.stride + head * HEAD_DIM;
  copy_tile<tile_queries, padded_dim, 128>(shared.q, p.q + at_query, p.stride, p.time - first_query, HEAD_DIM);
  copy_tile<tile_queries, padded_dim, 128>(shared.dout, p.dout + (first_row + first_query) * p.out_stride + head * HEAD_DIM,
                                           p.out_stride, p.time - first_query, HEAD_DIM);
  commit_copies();
  float log_sum_exp[2], delta[2];
  int begins[2] = {}, tile_begin = 0, warp_begin = 0;  // as in the forward pass
  if (p.begins != nullptr) {
    tile_begin = p.begins[first_row + first_query];
    warp_begin = p.begins[first_row + min(first_query + row + 15, p.time - 1)];
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int query = min(first_query + row + lane / 4 + 8 * half, p.time - 1);
    if (p.begins != nullptr) begins[half] = p.begins[first_row + query];
    const u64 at = (static_cast<u64>(batch) * p.heads + head) * p.time + query;
    log_sum_exp[half] = p.log_sum_exp[at] * log2e;
    delta[half] = p.delta[at];
  }
  float sums[padded_dim / 8][4] = {};
  const int last_key = min(p.time, first_query + tile_queries);
  for (int first_key = tile_begin / tile_keys * tile_keys; first_key < last_key; first_key += tile_keys) {
    const u64 at = (first_row + first_key) * p.stride + head / p.group * HEAD_DIM;
    copy_tile<tile_keys, padded_dim, 128>(shared.k, p.k + at, p.stride, p.time - first_key, HEAD_DIM);
    copy_tile<tile_keys, padded_dim, 128>(shared.v, p.v + at, p.stride, p.time - first_key, HEAD_DIM);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    float s[tile_keys / 8][4], dp[tile_keys / 8][4];
    multiply_heads<tile_keys>(s, shared.q, row, shared.k);
    multiply_heads<tile_keys>(dp, shared.dout, row, shared.v);
    const bool is_whole = first_key + tile_keys <= first_query + row + 1 && first_query + tile_queries <= p.time && first_key >= warp_begin;
#pragma unroll
    for (int i = 0; i < tile_keys / 8; i++) {
#pragma unroll
      for (int part = 0; part < 4; part++) {
        const float weight = power_of_two(s[i][part] * (p.scale * log2e) - log_sum_exp[part / 2]);
        s[i][part] = weight * (dp[i][part] - delta[part / 2]) * p.scale;
        if (!is_whole) {
          const int key = first_key + 8 * i + 2 * (lane % 4) + part % 2;
          const int query = first_query + row + lane / 4 + part / 2 * 8;
          if (key > query || query >= p.time || key < begins[part / 2]) s[i][part] = 0;
        }
      }
    }
    multiply_rows<tile_keys>(sums, s, shared.k);
    __syncthreads();
  }
  store_rows(p.dq + first_row * p.stride + head * HEAD_DIM, sums, p.stride, first_query + row, p.time, 1.0f, 1.0f);
}

struct KeyShared {
  HeadTile<own_keys> k, v;
  HeadTile<step_queries> q, dout;
  float log_sum_exp[step_queries], delta[step_queries];
};

/// One block for 64 keys of a key head, which adds its query heads in order: grid [tiles, kv_heads, batch].
KERNEL(attention_backward_kv, AttentionBackwardParameters, 128) {
  DYNAMIC_SHARED(KeyShared, shared);
  const int first_key = blockIdx.x * own_keys, kv_head = blockIdx.y, batch = blockIdx.z;
  const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  const u64 first_row = static_cast<u64>(batch) * p.time;
  const u64 at_key = (first_row + first_key) * p.stride + kv_head * HEAD_DIM;
  copy_tile<own_keys, padded_dim, 128>(shared.k, p.k + at_key, p.stride, p.time - first_key, HEAD_DIM);
  copy_tile<own_keys, padded_dim, 128>(shared.v, p.v + at_key, p.stride, p.time - first_key, HEAD_DIM);
  commit_copies();
  // One past the last query that sees the last key of the tile, this lane's keys, and the warp's first: documents end in order.
  int tile_end = p.time, ends[2] = {p.time, p.time}, warp_end = p.time;
  if (p.ends != nullptr) {
    const int* const of = p.ends + first_row;
    const int last = p.time - 1;
    tile_end = of[min(first_key + own_keys - 1, last)];
    ends[0] = of[min(first_key + row + lane / 4, last)];
    ends[1] = of[min(first_key + row + lane / 4 + 8, last)];
    warp_end = of[min(first_key + row, last)];
  }
  float dk[padded_dim / 8][4] = {}, dv[padded_dim / 8][4] = {};
  for (int head = kv_head * p.group; head < (kv_head + 1) * p.group; head++) {
    const u64 statistics = (static_cast<u64>(batch) * p.heads + head) * p.time;
    for (int first_query = first_key; first_query < tile_end; first_query += step_queries) {
      const u64 at_row = first_row + first_query;
      copy_tile<step_queries, padded_dim, 128>(shared.q, p.q + at_row * p.stride + head * HEAD_DIM, p.stride,
                                               p.time - first_query, HEAD_DIM);
      copy_tile<step_queries, padded_dim, 128>(shared.dout, p.dout + at_row * p.out_stride + head * HEAD_DIM, p.out_stride,
                                               p.time - first_query, HEAD_DIM);
      commit_copies();
      if (threadIdx.x < step_queries) {
        const u64 at = statistics + min(first_query + static_cast<int>(threadIdx.x), p.time - 1);
        shared.log_sum_exp[threadIdx.x] = p.log_sum_exp[at] * log2e;
        shared.delta[threadIdx.x] = p.delta[at];
      }
      wait_copies<0>();
      __syncthreads();
      float s[step_queries / 8][4], dp[step_queries / 8][4];
      multiply_heads<step_queries>(s, shared.k, row, shared.q);  // transposed: a row for each key
      multiply_heads<step_queries>(dp, shared.v, row, shared.dout);
      const bool is_whole = first_key + row + 16 <= first_query + 1 && first_query + step_queries <= warp_end;
#pragma unroll
      for (int i = 0; i < step_queries / 8; i++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
          const int column = 8 * i + 2 * (lane % 4) + part % 2;
          s[i][part] = power_of_two(s[i][part] * (p.scale * log2e) - shared.log_sum_exp[column]);
          if (!is_whole) {
            const int query = first_query + column, key = first_key + row + lane / 4 + part / 2 * 8;
            if (key > query || query >= ends[part / 2]) s[i][part] = 0;
          }
          // A weight of zero masks invisible keys; elements beyond the end are zero themselves.
          dp[i][part] = s[i][part] * (dp[i][part] - shared.delta[column]) * p.scale;
        }
      }
      multiply_rows<step_queries>(dv, s, shared.dout);
      multiply_rows<step_queries>(dk, dp, shared.q);
      __syncthreads();
    }
  }
  const u64 to = first_row * p.stride + kv_head * HEAD_DIM;
  store_rows(p.dk + to, dk, p.stride, first_key + row, p.time, 1.0f, 1.0f);
  store_rows(p.dv + to, dv, p.stride, first_key + row, p.time, 1.0f, 1.0f);
}
