// Muon (Jordan and others 2024; scaled as in arXiv 2502.16982) and LoRA-Muon (arXiv 2606.12921): steps along the sign
// of the momentum. docs/relora.md has the formulas.
#include <algorithm>
#include <cmath>

#include "coded_moments.h"
#include "matrix_sign.h"

namespace relora::RELORA_ISA {

namespace {

/// Root mean square of a Muon update per unit of learning rate: the same as AdamW's.
constexpr double update_size = 0.2;
/// Largest singular value of a step's change to B, however small A is.
constexpr double b_step_max = 0.2;
/// Precision of float32 sums, relative to the mean diagonal of a Gram matrix.
constexpr double gram_resolution = 1e-6;

/// Nesterov's momentum of one array: m = beta m + g, u = g + beta m.
void momentum_of(const Team& team, float* u, const MomentBuffer& moment, const float* gradient, size_t length,
                 const MuonOptions& options) {
  const float beta = static_cast<float>(options.momentum), scale = static_cast<float>(options.gradient_scale);
  const auto step = [beta, scale](float* __restrict u, float* __restrict m, const float* __restrict g, size_t n) {
    for (size_t i = 0; i < n; i++) {
      const float d = scale * g[i];
      m[i] = beta * m[i] + d;
      u[i] = d + beta * m[i];
    }
  };
  team.run((length + element_block - 1) / element_block, [&](size_t task, unsigned) {
    const size_t begin = task * element_block, end = std::min(length, begin + element_block);
    if (moment.values != nullptr) return step(u + begin, moment.values + begin, gradient + begin, end - begin);
    for (size_t at = begin; at < end; at += moments_per_scale) {
      const size_t n = std::min(end - at, moments_per_scale), scale_of = at / moments_per_scale;
      alignas(64) float m[moments_per_scale];
      decode_first(m, moment.codes + at, n, moment.scales[scale_of]);
      step(u + at, m, gradient + at, n);
      moment.scales[scale_of] = encode_first(moment.codes + at, m, n);
    }
  });
}

/// w = (1 - decay) w - step d
void step_along(const Team& team, float* w, const float* d, size_t length, double step, double decay) {
  const float by = static_cast<float>(step), kept = static_cast<float>(1 - decay);
  team.run((length + element_block - 1) / element_block, [&](size_t task, unsigned) {
    const size_t begin = task * element_block, end = std::min(length, begin + element_block);
    for (size_t i = begin; i < end; i++) w[i] = kept * w[i] - by * d[i];
  });
}

double update_scale(const MuonOptions& options, size_t in, size_t out) {
  return options.learning_rate * update_size * std::sqrt(static_cast<double>(std::max(in, out)));
}

void muon_step(const Team& team, const ProductKernel& kernel, SignMemory& memory, const MuonBuffers& of,
               size_t rows, size_t columns, const MuonOptions& options) {
  const size_t m = std::min(rows, columns), n = std::max(rows, columns);
  const bool is_turned = rows > columns;
  momentum_of(team, is_turned ? memory.next : memory.x, of.moment, of.gradient, m * n, options);
  if (is_turned) transpose(team, memory.x, memory.next, rows, columns);
  matrix_sign(team, kernel, memory, m, n);
  if (is_turned) transpose(team, memory.next, memory.x, m, n);
  step_along(team, of.parameter, is_turned ? memory.next : memory.x, m * n, update_scale(options, rows, columns),
             options.learning_rate * options.weight_decay);
}

/// inverse[r, r] = L⁻¹ of S + damping I = L Lᵀ, S the Gram matrix in float32.
void inverse_factor(float* inverse, double* l, double* columns, const float* gram, size_t r, double damping) {
  double trace = 0;
  for (size_t i = 0; i < r; i++) trace += gram[i * r + i];
  const double added = std::max(damping, gram_resolution * trace / static_cast<double>(r));
  for (size_t i = 0; i < r; i++) {
    for (size_t j = 0; j <= i; j++) {
      double sum = gram[i * r + j] + (i == j ? added : 0);
      for (size_t k = 0; k < j; k++) sum -= l[i * r + k] * l[j * r + k];
      l[i * r + j] = i == j ? std::sqrt(sum) : sum / l[j * r + j];
    }
  }
  // Column by column of L⁻¹, each kept in a row of `columns`.
  for (size_t column = 0; column < r; column++) {
    double* const x = columns + column * r;
    std::fill_n(x, column, 0.0);
    for (size_t i = column; i < r; i++) {
      double sum = i == column ? 1 : 0;
      for (size_t k = column; k < i; k++) sum -= l[i * r + k] * x[k];
      x[i] = sum / l[i * r + i];
    }
    for (size_t i = 0; i < r; i++) inverse[i * r + column] = static_cast<float>(x[i]);
  }
}

/// Temporaries of one worker that updates an adapter a[in, r], b[r, out].
struct AdapterMemory {
  float *u_a, *u_b, *gram, *inverse_of_a, *inverse_of_b;
  double *l, *columns;
  SignMemory sign_of_a, sign_of_b;  // of [r, in] and [r, out]; `words` serve every product
};

void lora_muon_step(const Team& team, const ProductKernel& kernel, const ProductKernel& exact, AdapterMemory& memory,
                    const LoraMuonBuffers& of, const LoraMuonShape& shape, double scale,
                    const MuonOptions& options) {
  const auto [in, out, r] = shape;
  uint32_t* const words = memory.sign_of_a.words;
  const bool trains_a = of.a.gradient != nullptr;
  if (trains_a) momentum_of(team, memory.u_a, of.a.moment, of.a.gradient, in * r, options);
  momentum_of(team, memory.u_b, of.b.moment, of.b.gradient, r * out, options);
  const double budget = update_scale(options, in, out) / std::abs(scale) / (trains_a ? 2 : 1);
  // A rate of 0 changes nothing, and would leave B = 0 without damping.
  if (budget == 0) return;
  const auto damping_for = [budget](double step_max) { return std::pow(budget / step_max, 2); };
  // Both computed from the old factors: dA = sign(U_A L_B⁻ᵀ) L_B⁻¹, dB = L_A⁻ᵀ sign(L_A⁻¹ U_B).
  team.gram(exact, words, memory.gram, of.a.parameter, r, true, r, in);
  inverse_factor(memory.inverse_of_a, memory.l, memory.columns, memory.gram, r, damping_for(b_step_max));
  if (trains_a) {
    team.gram(exact, words, memory.gram, of.b.parameter, out, false, r, out);
    // However small B is, as after a merge, A takes at most half a step of Muon: by longer ones it would lose its directions.
    inverse_factor(memory.inverse_of_b, memory.l, memory.columns, memory.gram, r,
                   damping_for(update_scale(options, in, r) / 2));
    SignMemory& sign = memory.sign_of_a;
    team.product(exact, words, {sign.x, in, 1.0f, false}, {memory.inverse_of_b, r, false}, {memory.u_a, r, true}, r, in, r);
    matrix_sign(team, kernel, sign, r, in);
    team.product(exact, words, {memory.u_a, r, 1.0f, false}, {sign.x, in, true}, {memory.inverse_of_b, r, false}, in, r, r);
  }
  SignMemory& sign = memory.sign_of_b;
  team.product(exact, words, {sign.x, out, 1.0f, false}, {memory.inverse_of_a, r, false}, {memory.u_b, out, false}, r, out, r);
  matrix_sign(team, kernel, sign, r, out);
  team.product(exact, words, {memory.u_b, out, 1.0f, false}, {memory.inverse_of_a, r, true}, {sign.x, out, false}, r, out, r);

  if (trains_a) step_along(team, of.a.parameter, memory.u_a, in * r, budget, 0);
  // Decay is applied to one factor only, so that it applies to the product once.
  step_along(team, of.b.parameter, memory.u_b, r * out, budget, options.learning_rate * options.weight_decay);
}

size_t double_floats(size_t count) { return 2 * count; }

AdapterMemory adapter_memory(Context& context, const ProductKernel& kernel, const ProductKernel& exact,
                             const LoraMuonShape& shape) {
  const auto [in, out, r] = shape;
  const auto take = [&](size_t floats) { return context.arena.take<float>(floats); };
  AdapterMemory memory;
  memory.u_a = take(in * r);
  memory.u_b = take(r * out);
  memory.gram = take(r * r);
  memory.inverse_of_a = take(r * r);
  memory.inverse_of_b = take(r * r);
  memory.l = reinterpret_cast<double*>(take(double_floats(r * r)));
  memory.columns = reinterpret_cast<double*>(take(double_floats(r * r)));
  memory.sign_of_a = {take(r * in), take(r * in), take(r * r), take(r * r), nullptr};
  memory.sign_of_b = {take(r * out), take(r * out), memory.sign_of_a.square, memory.sign_of_a.fourth, nullptr};
  size_t words = 0;
  for (const ProductKernel* each : {&kernel, &exact}) {
    words = std::max({words, SignMemory::words_for(r, in, *each), SignMemory::words_for(r, out, *each)});
  }
  memory.sign_of_a.words = memory.sign_of_b.words = reinterpret_cast<uint32_t*>(take(words));
  return memory;
}

}  // namespace

void muon_in_place(Context& context, std::span<const MuonBuffers> buffers, size_t rows, size_t columns,
                   const MuonOptions& options) {
  const ProductKernel& kernel = context.product_kernel(options.precision);
  const size_t m = std::min(rows, columns), n = std::max(rows, columns);
  context.arena.reset();
  const auto take = [&](size_t floats) { return context.arena.take<float>(floats); };
  if (m * m * n > alone_operations_max) {
    SignMemory memory = SignMemory::of(m, n, kernel, take);
    for (const MuonBuffers& of : buffers) muon_step(Team(context), kernel, memory, of, rows, columns, options);
    return;
  }
  std::vector<SignMemory> memories;
  for (unsigned worker = 0; worker < context.pool.threads(); worker++) {
    memories.push_back(SignMemory::of(m, n, kernel, take));
  }
  context.pool.run(buffers.size(), [&](size_t i, unsigned worker) {
    muon_step(Team(context, worker), kernel, memories[worker], buffers[i], rows, columns, options);
  });
}

void lora_muon_in_place(Context& context, std::span<const LoraMuonBuffers> buffers, const LoraMuonShape& shape,
                        double scale, const MuonOptions& options) {
  const ProductKernel& kernel = context.product_kernel(options.precision);
  const ProductKernel& exact = context.product_kernel(Precision::float32);
  context.arena.reset();
  std::vector<AdapterMemory> memories;
  for (unsigned worker = 0; worker < context.pool.threads(); worker++) {
    memories.push_back(adapter_memory(context, kernel, exact, shape));
  }
  // Factors are thin: each adapter is updated by one thread.
  context.pool.run(buffers.size(), [&](size_t i, unsigned worker) {
    lora_muon_step(Team(context, worker), kernel, exact, memories[worker], buffers[i], shape, scale, options);
  });
}

}  // namespace relora::RELORA_ISA
