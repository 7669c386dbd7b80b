#include "lora_linear.h"

namespace relora {

namespace {

uint32_t* allocate_words(size_t words) { return static_cast<uint32_t*>(allocate_aligned(words * sizeof(uint32_t))); }

}  // namespace

PackedBase::PackedBase(Context& context, const ProductKernel& chosen, const float* w, size_t in_features, size_t out_features)
    : kernel(&chosen), in(in_features), out(out_features) {
  const size_t forward_count = right_panels_words(chosen, in, out), backward_count = right_panels_words(chosen, out, in);
  bytes = (forward_count + backward_count) * sizeof(uint32_t);
  forward_words.reset(allocate_words(forward_count));
  backward_words.reset(allocate_words(backward_count));
  forward = pack_right_panels(context, chosen, forward_words.get(), {w, out, false}, in, out);
  backward = pack_right_panels(context, chosen, backward_words.get(), {w, out, true}, out, in);
}

/// y[rows, out] = x[rows, in] w + scale (x a) b, and xa[rows, rank] = x a.
void lora_linear_forward(Context& context, float* y, float* xa, const float* x, const PackedBase& base, const float* a,
                         const float* b, float scale, size_t rows, size_t rank) {
  const ProductKernel& kernel = *base.kernel;
  Term terms[2] = {{{x, base.in, false}, base.forward, 1.0f}};
  if (rank > 0) {
    product(context, kernel, {xa, rank, 1.0f, false}, {x, base.in, false}, {a, rank, false}, rows, rank, base.in);
    uint32_t* words = context.shared(Shared::low_rank).words(right_panels_words(kernel, rank, base.out));
    terms[1] = {{xa, rank, false}, pack_right_panels(context, kernel, words, {b, base.out, false}, rank, base.out), scale};
  }
  product_of_panels(context, kernel, y, base.out, false, terms, rank > 0 ? 2 : 1, rows, base.out);
}

/// p = scale dy bᵀ; dx = dy wᵀ + p aᵀ; da = xᵀ p; db = scale (xa)ᵀ dy.
void lora_linear_backward(Context& context, const LoraGradients& gradients, const float* dy, const float* x, const float* xa,
                          const PackedBase& base, const float* a, const float* b, float scale, size_t rows, size_t rank) {
  const ProductKernel& kernel = *base.kernel;
  const size_t in = base.in, out = base.out;
  Term terms[2] = {{{dy, out, false}, base.backward, 1.0f}};
  if (rank > 0) {
    float* p = context.shared(Shared::first).floats(rows * rank);
    product(context, kernel, {p, rank, scale, false}, {dy, out, false}, {b, out, true}, rows, rank, out);
    product(context, kernel, {gradients.da, rank, 1.0f, false}, {x, in, true}, {p, rank, false}, in, rank, rows);
    product(context, kernel, {gradients.db, out, scale, false}, {xa, rank, true}, {dy, out, false}, rank, out, rows);
    uint32_t* words = context.shared(Shared::low_rank).words(right_panels_words(kernel, rank, in));
    terms[1] = {{p, rank, false}, pack_right_panels(context, kernel, words, {a, rank, true}, rank, in), 1.0f};
  }
  product_of_panels(context, kernel, gradients.dx, in, false, terms, rank > 0 ? 2 : 1, rows, in);
}

}  // namespace relora
