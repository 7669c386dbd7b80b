// AdamW (Loshchilov & Hutter 2019): m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
// p -= rate (decay p + (m / correction1) / (sqrt(v / correction2) + epsilon)). Whether there is an update at all, and the factor of
// clipping, are determined here from the result of the step, so that the host does not wait for the norm.
#include "moments.h"

struct AdamWParameters {
  const Member* members;
  const double* result;  // [loss, sum of losses, squared norm]
  u32 length;  // of each
  u32 columns;  // columns of its rows; rows of `rounded` are `rounded_stride` apart
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
  store_updated(member, p.columns, i, updated(p, member.parameter[i], factor * member.gradient[i], m, v));
  first[i] = m;
  second[i] = v;
}

/// One block for the 256 moments of a scale: grid [scales of a parameter, parameters].
KERNEL(coded_adamw, AdamWParameters, 256) {
  __shared__ float scratch_first[8];
  __shared__ float scratch_second[8];
  const u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  const float factor = factor_of(p.result, p.norm_max);
  if (factor < 0) return;  // the same for all threads
  const Member& member = p.members[blockIdx.y];
  u8* const first_code = static_cast<u8*>(member.first);  // signed
  u8* const second_code = static_cast<u8*>(member.second);
  const bool is_there = i < p.length;
  float m = 0, v = 0;
  if (is_there) {
    m = decoded_first(first_code[i], member.first_scales[blockIdx.x]);
    v = decoded(second_codes, second_code[i]) * member.second_scales[blockIdx.x];
    store_updated(member, p.columns, i, updated(p, member.parameter[i], factor * member.gradient[i], m, v));
  }
  // Both barriers of the reductions are between the reads of the old scales and the writes of the new ones.
  const float first_scale = largest_of_block<256>(fabsf(m), scratch_first);
  const float second_scale = largest_of_block<256>(v, scratch_second);
  if (is_there) {
    first_code[i] = encoded_first(m, first_scale);
    const int second = encoded(second_codes, v / (second_scale > 0 ? second_scale : 1.0f));
    // A value that is not zero never becomes zero: its first moment would then be divided by epsilon only.
    second_code[i] = static_cast<u8>(v > 0 && second < 1 ? 1 : second);
  }
  if (threadIdx.x == 0) {
    member.first_scales[blockIdx.x] = first_scale;
    member.second_scales[blockIdx.x] = second_scale;
  }
}
