// APOLLO-Mini (arXiv 2412.05270): a step along the gradient, with the length that Adam gives its projection ("shadow") on one direction.
// Defined by engine/src/device/tfjs/matrixOptimizers.ts.
#include "moments.h"

struct ShadowMember {
  float* parameter;
  const float* gradient;
  const float* projection;  // [the smaller side]
  float* first;  // [the larger side]
  float* second;
  float* norm;  // [1]
  bf16* rounded;
  u64 rounded_stride;
};

struct CastShadowParameters {
  const ShadowMember* members;
  const double* result;
  float* shadow;  // [members, the larger side]
  int rows;
  int columns;
  float norm_max;
};
/// The gradient projected. If there are more rows than columns a warp does one row; otherwise a thread does one column. Grid [blocks,
/// members].
KERNEL(cast_shadow, CastShadowParameters, 256) {
  const float factor = factor_of(p.result, p.norm_max);
  if (factor < 0) return;
  const ShadowMember& member = p.members[blockIdx.y];
  float* const shadow = p.shadow + static_cast<u64>(blockIdx.y) * max(p.rows, p.columns);
  if (p.rows > p.columns) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= p.rows) return;
    const float* const gradient = member.gradient + static_cast<u64>(row) * p.columns;
    float sum = 0;
    for (int j = threadIdx.x % 32; j < p.columns; j += 32) sum += member.projection[j] * (factor * gradient[j]);
    sum = sum_of_warp(sum);
    if (threadIdx.x % 32 == 0) shadow[row] = sum;
    return;
  }
  const int column = blockIdx.x * 256 + threadIdx.x;
  if (column >= p.columns) return;
  float sum = 0;
  for (int row = 0; row < p.rows; row++)
    sum += factor * member.projection[row] * member.gradient[static_cast<u64>(row) * p.columns + column];
  shadow[column] = sum;
}

struct GradientSquaresParameters {
  const ShadowMember* members;
  double* partial;  // [members, parts]
  u32 length;
};
/// Grid [parts, members].
KERNEL(gradient_squares, GradientSquaresParameters, 256) {
  __shared__ double sums[256];
  const float* const gradient = p.members[blockIdx.y].gradient;
  const u64 begin = static_cast<u64>(blockIdx.x) * 8192;
  double sum = 0;
  for (u64 i = begin + threadIdx.x; i < begin + 8192 && i < p.length; i += 256) {
    const double value = gradient[i];
    sum += value * value;
  }
  sum = sum_of_threads(sum, sums);
  if (threadIdx.x == 0) p.partial[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

struct ApolloFactorParameters {
  const ShadowMember* members;
  const double* result;
  const float* shadow;
  const double* partial;
  float* factors;  // [members]
  int length;  // of the shadow
  int parts;
  float beta1;
  float rest1;  // 1 - beta1
  float beta2;
  float rest2;
  float inverse1;  // 1 / correction1
  float inverse2;
  float epsilon;
  float norm_max;
};
/// Ratio of the gradient's length to that of its shadow, sqrt(128) as the authors assume; and the largest growth of a step.
constexpr double shadow_scale = 11.313708498984761, growth_max = 1.01;
/// Updates the moments of the shadow, and computes the gradient's factor: one block per matrix.
KERNEL(apollo_factor, ApolloFactorParameters, 256) {
  __shared__ double sums[256];
  const float clip = factor_of(p.result, p.norm_max);
  if (clip < 0) return;  // the same for all threads
  const ShadowMember& member = p.members[blockIdx.x];
  const float* const shadow = p.shadow + static_cast<u64>(blockIdx.x) * p.length;
  double adapted = 0, plain = 0, squares = 0;
  for (int i = threadIdx.x; i < p.length; i += 256) {
    const double d = shadow[i];
    const double m = p.beta1 * static_cast<double>(member.first[i]) + p.rest1 * d;
    const double v = p.beta2 * static_cast<double>(member.second[i]) + p.rest2 * d * d;
    member.first[i] = static_cast<float>(m);
    member.second[i] = static_cast<float>(v);
    const double step = m * p.inverse1 / (sqrt(v * p.inverse2) + p.epsilon);
    adapted += step * step;
    plain += d * d;
  }
  for (int i = threadIdx.x; i < p.parts; i += 256) squares += p.partial[static_cast<u64>(blockIdx.x) * p.parts + i];
  adapted = sum_of_threads(adapted, sums);
  __syncthreads();
  plain = sum_of_threads(plain, sums);
  __syncthreads();
  squares = sum_of_threads(squares, sums);
  if (threadIdx.x > 0) return;
  double factor = plain > 0 ? shadow_scale * sqrt(adapted / plain) : 0.0;
  const double norm = factor * clip * sqrt(squares), last = member.norm[0];
  const double limit = last > 0 && norm > growth_max * last ? growth_max * last / norm : 1.0;
  member.norm[0] = static_cast<float>(norm * limit);
  p.factors[blockIdx.x] = static_cast<float>(factor * limit * clip);
}

struct ApolloStepParameters {
  const ShadowMember* members;
  const double* result;
  const float* factors;
  u32 length;
  u32 columns;
  float learning_rate;
  float kept;
  float norm_max;
};
/// w = kept w - rate factor g. Grid [blocks of a matrix, matrices].
KERNEL(apollo_step, ApolloStepParameters, 256) {
  const u64 i = static_cast<u64>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= p.length || factor_of(p.result, p.norm_max) < 0) return;
  const ShadowMember& member = p.members[blockIdx.y];
  const float by = p.learning_rate * p.factors[blockIdx.y];
  const float value = p.kept * member.parameter[i] - by * member.gradient[i];
  store_updated(Member{member.parameter, nullptr, nullptr, nullptr, nullptr, nullptr, member.rounded, member.rounded_stride}, p.columns,
                i, value);
}
