// AdamW (Loshchilov & Hutter 2019): m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
// p -= rate (decay p + (m / correction1) / (sqrt(v / correction2) + epsilon)). Whether there is an update at all, and the factor of
// clipping, are decided here from what the step came to: nobody waits for the norm.
#include "device.h"


/// One of the parameters of a group, all of one length.
struct Member {
  float* parameter;
  const float* gradient;
  void* first;  // moments: floats, or codes
  float* first_scales;  // of codes: one for each 256
  void* second;
  float* second_scales;
  bf16* rounded;  // as products read the parameter, kept beside it; null for none
  u64 rounded_stride;
};

struct AdamWParameters {
  const Member* members;
  const double* result;  // [loss, sum of losses, squared norm]
  u32 length;  // of each
  u32 columns;  // of its rows: of the rounded ones, which are `rounded_stride` apart
  float learning_rate;
  float beta1;
  float rest1;  // 1 - beta1
  float beta2;
  float rest2;
  float inverse1;  // 1 / correction1
  float inverse2;
  float epsilon;
  float weight_decay;
  float norm_max;
};

/// What gradients are multiplied with; negative where loss or norm are not finite and nothing may change.
__device__ __forceinline__ float factor_of(const double* result, float norm_max) {
  const double loss = result[0], squares = result[2];
  if (!(fabs(loss) <= 1e300) || !(squares <= 1e300)) return -1.0f;
  const double norm = sqrt(squares);
  return norm > norm_max ? static_cast<float>(norm_max / norm) : 1.0f;
}

__device__ __forceinline__ void store_updated(const AdamWParameters& p, const Member& member, u64 i, float value) {
  member.parameter[i] = value;
  if (member.rounded == nullptr) return;
  const u32 row = static_cast<u32>(i) / p.columns, column = static_cast<u32>(i) % p.columns;
  member.rounded[row * member.rounded_stride + column] = rounded_to<bf16>(value);
}

template <class Parameters>
__device__ __forceinline__ float updated(const Parameters& p, float value, float gradient, float& m, float& v) {
  m = p.beta1 * m + p.rest1 * gradient;
  v = p.beta2 * v + p.rest2 * (gradient * gradient);
  return value - p.learning_rate * (p.weight_decay * value + m * p.inverse1 / (sqrtf(v * p.inverse2) + p.epsilon));
}

/// Grid [blocks of a parameter, parameters].
KERNEL(adamw, AdamWParameters, 256) {
  const u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  const float factor = factor_of(p.result, p.norm_max);
  if (i >= p.length || factor < 0) return;
  const Member& member = p.members[blockIdx.y];
  float* const first = static_cast<float*>(member.first);
  float* const second = static_cast<float*>(member.second);
  float m = first[i], v = second[i];
  store_updated(p, member, i, updated(p, member.parameter[i], factor * member.gradient[i], m, v));
  first[i] = m;
  second[i] = v;
}

// Moments in eight bits, in blocks of 256 with one scale each: the codes of the kernels for CPUs (moment_codes.h). Cell k of decade d
// stands for slope[d] k + offset[d]; a share y of the scale lies in cell floor(rate[d] y + start[d]).

template <int decades>
struct CodeTable {
  float edge[8], slope[8], offset[8], rate[8], start[8];

  __device__ constexpr CodeTable() : edge{}, slope{}, offset{}, rate{}, start{} {
    const double last = static_cast<double>(1 << (decades - 1));
    const double top = 1 - 0.45 / last;
    double power = 1;
    for (int d = decades - 1; d >= 0; d--) {
      const double cells = static_cast<double>(1 << d);
      edge[d] = static_cast<float>(0.1 * power / top);
      slope[d] = static_cast<float>(0.9 * power / cells / top);
      offset[d] = static_cast<float>((0.45 / cells - 0.8) * power / top);
      rate[d] = static_cast<float>(top * cells / 0.9 / power);
      start[d] = static_cast<float>(cells * 8 / 9);
      power /= 10;
    }
  }
};
__constant__ constexpr CodeTable<7> first_codes;
__constant__ constexpr CodeTable<8> second_codes;

template <int decades>
__device__ __forceinline__ float decoded(const CodeTable<decades>& table, int cell) {
  if (cell == 0) return 0;
  const int decade = static_cast<int>(__float_as_uint(static_cast<float>(cell)) >> 23) - 127;  // its exponent
  return table.slope[decade] * static_cast<float>(cell) + table.offset[decade];
}

template <int decades>
__device__ __forceinline__ int encoded(const CodeTable<decades>& table, float share) {
  int decade = 0;
#pragma unroll
  for (int d = 1; d < decades; d++) decade += share >= table.edge[d];
  return min(static_cast<int>(table.rate[decade] * share + table.start[decade]), (1 << decades) - 1);
}

/// One block for the 256 moments of a scale: grid [scales of a parameter, parameters].
KERNEL(coded_adamw, AdamWParameters, 256) {
  __shared__ float scratch_first[8];
  __shared__ float scratch_second[8];
  const u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  const float factor = factor_of(p.result, p.norm_max);
  if (factor < 0) return;  // all threads alike
  const Member& member = p.members[blockIdx.y];
  u8* const first_code = static_cast<u8*>(member.first);  // signed
  u8* const second_code = static_cast<u8*>(member.second);
  const bool is_there = i < p.length;
  float m = 0, v = 0;
  if (is_there) {
    const int code = static_cast<signed char>(first_code[i]);
    m = decoded(first_codes, code < 0 ? -code : code) * member.first_scales[blockIdx.x];
    if (code < 0) m = -m;
    v = decoded(second_codes, second_code[i]) * member.second_scales[blockIdx.x];
    store_updated(p, member, i, updated(p, member.parameter[i], factor * member.gradient[i], m, v));
  }
  // Both barriers of the sums stand between the reads of the old scales and the writes of the new ones.
  const float first_scale = largest_of_block<256>(fabsf(m), scratch_first);
  const float second_scale = largest_of_block<256>(v, scratch_second);
  if (is_there) {
    // Divided: the inverse of a tiny scale is infinite.
    const int first = encoded(first_codes, fabsf(m) / (first_scale > 0 ? first_scale : 1.0f));
    first_code[i] = static_cast<u8>(m < 0 ? -first : first);
    const int second = encoded(second_codes, v / (second_scale > 0 ? second_scale : 1.0f));
    // One that is not zero never becomes zero: its first moment would be divided by epsilon alone.
    second_code[i] = static_cast<u8>(v > 0 && second < 1 ? 1 : second);
  }
  if (threadIdx.x == 0) {
    member.first_scales[blockIdx.x] = first_scale;
    member.second_scales[blockIdx.x] = second_scale;
  }
}
