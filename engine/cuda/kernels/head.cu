// Loss of the language model's head and the gradient of its logits, for a chunk of rows at a time: the whole logits are never stored.
// Softmax, its sum and the loss are float32; the gradient is rounded to the type of products.
#include "device.h"

struct CrossEntropyParameters {
  activation* gradient;  // [rows, vocabulary], `gradient_stride` apart; null: only the loss
  float* losses;  // [rows] in nats
  const float* logits;  // [rows, vocabulary], `stride` apart
  const int* targets;  // [rows]; a target of -1 does not count
  int vocabulary;
  int stride;
  int gradient_stride;
  float scale;  // of the gradient
};

__device__ __forceinline__ float exponential(float x) { return power_of_two(x * 1.4426950408889634f); }

/// The largest of some logits, and the sum of e^(logit - largest); two such pairs can be combined.
struct Softmax {
  float largest;
  float sum;
};
__device__ __forceinline__ Softmax together(Softmax one, Softmax other) {
  const float largest = fmaxf(one.largest, other.largest);
  // Empty so far: e^(-inf - -inf) would be NaN.
  const float left = one.largest == -infinity ? 0.0f : one.sum * exponential(one.largest - largest);
  const float right = other.largest == -infinity ? 0.0f : other.sum * exponential(other.largest - largest);
  return {largest, left + right};
}

/// One block for each row, which reads its logits twice: for the sum, and for the gradient.
KERNEL(cross_entropy, CrossEntropyParameters, 512) {
  __shared__ float scratch_largest[16];
  __shared__ float scratch_sum[16];
  const float* const logits = p.logits + static_cast<u64>(blockIdx.x) * p.stride;
  activation* const gradient = p.gradient + static_cast<u64>(blockIdx.x) * p.gradient_stride;
  const int target = p.targets[blockIdx.x];
  if (target < 0) {  // the same for all threads
    for (int i = threadIdx.x; p.gradient != nullptr && i < p.vocabulary; i += 512) gradient[i] = rounded_to<activation>(0.0f);
    if (threadIdx.x == 0) p.losses[blockIdx.x] = 0;
    return;
  }
  Softmax own = {-infinity, 0};
  for (int i = 8 * threadIdx.x; i < p.vocabulary; i += 8 * 512) {
    float v[8];
    const int count = p.vocabulary - i;
    load_eight(v, logits + i, count);
    float largest = own.largest;
#pragma unroll
    for (int j = 0; j < 8; j++) largest = j < count ? fmaxf(largest, v[j]) : largest;
    float sum = own.largest == -infinity ? 0.0f : own.sum * exponential(own.largest - largest);
#pragma unroll
    for (int j = 0; j < 8; j++) sum += j < count ? exponential(v[j] - largest) : 0.0f;
    own = {largest, sum};
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const Softmax other = {__shfl_xor_sync(0xffffffffu, own.largest, distance), __shfl_xor_sync(0xffffffffu, own.sum, distance)};
    // Both lanes put the lower one first, so that they get the same bits.
    own = (threadIdx.x & distance) == 0 ? together(own, other) : together(other, own);
  }
  if (threadIdx.x % 32 == 0) {
    scratch_largest[threadIdx.x / 32] = own.largest;
    scratch_sum[threadIdx.x / 32] = own.sum;
  }
  __syncthreads();
  own = {scratch_largest[0], scratch_sum[0]};
#pragma unroll
  for (int warp = 1; warp < 16; warp++) own = together(own, {scratch_largest[warp], scratch_sum[warp]});
  if (threadIdx.x == 0) p.losses[blockIdx.x] = logf(own.sum) - (logits[target] - own.largest);
  if (p.gradient == nullptr) return;
  const float factor = p.scale / own.sum;
  for (int i = 8 * threadIdx.x; i < p.vocabulary; i += 8 * 512) {
    float v[8];
    const int count = p.vocabulary - i;
    load_eight(v, logits + i, count);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float e = exponential(v[j] - own.largest);
      // p - 1 of the target: the subtraction must not use rounded numbers.
      v[j] = (i + j == target ? e - own.sum : e) * factor;
    }
    store_eight(gradient + i, v, count);
  }
}

struct AddLossesParameters {
  double* result;  // [loss, sum of losses, squared norm], the first two added to
  float* kept;  // [count] copies of the losses; null for none
  const float* losses;
  int count;
  int kept_count;
  float scale;
};
/// In one block, in an order that depends only on the count. What is added to the loss is rounded to float32 first.
KERNEL(add_losses, AddLossesParameters, 256) {
  __shared__ double sums[256];
  double sum = 0;
  for (int i = threadIdx.x; i < p.count; i += 256) {
    sum += static_cast<double>(p.losses[i]);
    if (i < p.kept_count) p.kept[i] = p.losses[i];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (u32 half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    p.result[0] += static_cast<double>(static_cast<float>(static_cast<double>(p.scale) * sums[0]));
    p.result[1] += sums[0];
  }
}
