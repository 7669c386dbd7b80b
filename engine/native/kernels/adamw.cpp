// AdamW (Loshchilov & Hutter 2019): one pass over parameters, moments and gradients, with moments in float32
// or coded.
#include <cmath>
#include <cstdlib>

#include "coded_moments.h"
#include "kernels.h"

namespace relora::RELORA_ISA {

namespace {

/// m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; p -= rate (decay p + (m / c1) / (sqrt(v / c2)
/// + epsilon)). A plain loop: the compiler vectorizes it, square root and division included.
class Update {
 public:
  explicit Update(const AdamWOptions& options)
      : rate(static_cast<float>(options.learning_rate)),
        decay(static_cast<float>(options.weight_decay)),
        beta1(static_cast<float>(options.beta1)),
        rest1(static_cast<float>(1 - options.beta1)),
        beta2(static_cast<float>(options.beta2)),
        rest2(static_cast<float>(1 - options.beta2)),
        inverse1(static_cast<float>(1 / options.correction1)),
        inverse2(static_cast<float>(1 / options.correction2)),
        epsilon(static_cast<float>(options.epsilon)),
        scale(static_cast<float>(options.gradient_scale)) {}

  void operator()(float* __restrict p, float* __restrict m, float* __restrict v, const float* __restrict g,
                  size_t count) const {
    const Update self = *this;  // a copy that stores to p cannot change
    for (size_t i = 0; i < count; i++) {
      const float d = self.scale * g[i];
      m[i] = self.beta1 * m[i] + self.rest1 * d;
      v[i] = self.beta2 * v[i] + self.rest2 * (d * d);
      p[i] -= self.rate *
          (self.decay * p[i] + m[i] * self.inverse1 / (std::sqrt(v[i] * self.inverse2) + self.epsilon));
    }
  }

 private:
  float rate, decay, beta1, rest1, beta2, rest2, inverse1, inverse2, epsilon, scale;
};

}  // namespace

void adamw_in_place(Context& context, std::span<const AdamWBuffers> buffers, const AdamWOptions& options) {
  const Update update(options);
  const auto blocks = blocks_of_arrays(buffers.size(), [&](size_t i) { return buffers[i].length; });
  context.pool.run(blocks.size(), [&](size_t task, unsigned) {
    const auto [array, begin, count] = blocks[task];
    const AdamWBuffers& of = buffers[array];
    update(of.parameter + begin, of.first + begin, of.second + begin, of.gradient + begin, count);
  });
}

/// The same with moments that are decoded, updated in float32 and encoded again, a scale's worth at a time.
void coded_adamw_in_place(Context& context, std::span<const CodedAdamWBuffers> buffers,
                          const AdamWOptions& options) {
  static_assert(element_block % moments_per_scale == 0);
  const Update update(options);
  const auto blocks = blocks_of_arrays(buffers.size(), [&](size_t i) { return buffers[i].length; });
  context.pool.run(blocks.size(), [&](size_t task, unsigned) {
    const auto [array, begin, count] = blocks[task];
    const CodedAdamWBuffers& of = buffers[array];
    for (size_t at = begin; at < begin + count; at += moments_per_scale) {
      const size_t n = begin + count - at < moments_per_scale ? begin + count - at : moments_per_scale;
      const size_t scale = at / moments_per_scale;
      alignas(64) float first[moments_per_scale], second[moments_per_scale];
      decode_first(first, of.first + at, n, of.first_scales[scale]);
      decode_second(second, of.second + at, n, of.second_scales[scale]);
      update(of.parameter + at, first, second, of.gradient + at, n);
      of.first_scales[scale] = encode_first(of.first + at, first, n);
      of.second_scales[scale] = encode_second(of.second + at, second, n);
    }
  });
}

}  // namespace relora::RELORA_ISA
