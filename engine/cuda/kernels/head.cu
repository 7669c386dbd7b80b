// Loss of the language model's head and the gradient of its logits, a chunk of rows at a time: whole logits are never held. Softmax, its
// sum and the loss are float32; the gradient is rounded to what products read.
#include "device.h"

struct CrossEntropyParameters {
  activation* gradient;  // [rows, vocabulary], `stride` apart; null for the loss alone
  float* losses;  // [rows] in nats
  const float* logits;  // [rows, vocabulary], `stride` apart
  const int* targets;  // [rows]; -1 adds nothing
  int vocabulary;
  int stride;
  float scale;  // of the gradient
};
/// One block for each row.
KERNEL(cross_entropy, CrossEntropyParameters, 256) {
  __shared__ float scratch_largest[8];
  __shared__ float scratch_sum[8];
  const u64 at = static_cast<u64>(blockIdx.x) * p.stride;
  const float* const logits = p.logits + at;
  const int target = p.targets[blockIdx.x];
  if (target < 0) {  // all threads alike
    for (int i = threadIdx.x; p.gradient != nullptr && i < p.vocabulary; i += 256) {
      p.gradient[at + i] = rounded_to<activation>(0.0f);
    }
    if (threadIdx.x == 0) p.losses[blockIdx.x] = 0;
    return;
  }
  float largest = -infinity;
  for (int i = threadIdx.x; i < p.vocabulary; i += 256) largest = fmaxf(largest, logits[i]);
  largest = largest_of_block<256>(largest, scratch_largest);
  float sum = 0;
  for (int i = threadIdx.x; i < p.vocabulary; i += 256) sum += expf(logits[i] - largest);
  sum = sum_of_block<256>(sum, scratch_sum);
  if (threadIdx.x == 0) p.losses[blockIdx.x] = logf(sum) - (logits[target] - largest);
  if (p.gradient == nullptr) return;
  const float factor = p.scale / sum;
  for (int i = threadIdx.x; i < p.vocabulary; i += 256) {
    const float e = expf(logits[i] - largest);
    // p - 1 of the target, whose difference must not be one of rounded numbers.
    p.gradient[at + i] = rounded_to<activation>((i == target ? e - sum : e) * factor);
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
/// In one block, in an order that the count alone decides. What is added to the loss is rounded to float32 first.
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
