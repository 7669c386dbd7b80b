#include "lora_linear.h"

#include "../kernels/kernels.h"

namespace relora {

namespace {

uint32_t* allocate_words(size_t words) {
  return static_cast<uint32_t*>(allocate_aligned(words * sizeof(uint32_t)));
}

}  // namespace

PackedBase::PackedBase(Context& context, Precision precision, const float* w, size_t in_features,
                       size_t out_features)
    : set(context.set),
      kernel(&context.product_kernel(precision)),
      adapter_kernel(precision == Precision::int8 ? &context.product_kernel(Precision::bfloat16) : kernel),
      in(in_features),
      out(out_features) {
  if (precision == Precision::nf4) {
    nf4 = std::make_unique<Nf4Weights>(in * out);
    bytes = nf4->bytes();
    pack(context, w);
    return;
  }
  const size_t forward_count = right_panels_words(*kernel, in, out);
  const size_t backward_count = right_panels_words(*kernel, out, in);
  bytes = (forward_count + backward_count) * sizeof(uint32_t);
  forward_words.reset(allocate_words(forward_count));
  backward_words.reset(allocate_words(backward_count));
  pack(context, w);
}

void PackedBase::pack(Context& context, const float* w) {
  if (nf4) return context.kernels.quantise_nf4(context, nf4->codes.get(), nf4->scales.get(), w, in * out);
  forward = pack_right_panels(context, *kernel, forward_words.get(), {w, out, false}, in, out);
  backward = pack_right_panels(context, *kernel, backward_words.get(), {w, out, true}, out, in);
}

RightPanels PackedBase::forward_panels(Context& context, const ProductKernel& unpacked_kernel) const {
  return nf4 ? unpack(context, unpacked_kernel, false) : forward;
}

RightPanels PackedBase::backward_panels(Context& context, const ProductKernel& unpacked_kernel) const {
  return nf4 ? unpack(context, unpacked_kernel, true) : backward;
}

RightPanels PackedBase::unpack(Context& context, const ProductKernel& unpacked_kernel, bool transposed) const {
  uint16_t* const w = context.arena.take<uint16_t>(in * out);
  context.kernels.dequantise_nf4(context, w, nf4->codes.get(), nf4->scales.get(), in * out);
  const size_t k = transposed ? out : in, n = transposed ? in : out;
  uint32_t* const words = context.arena.take<uint32_t>(right_panels_words(unpacked_kernel, k, n));
  return pack_right_panels(context, unpacked_kernel, words, {w, out, transposed}, k, n);
}

/// y[rows, out] = x[rows, in] w + scale (x a) b, and xa[rows, rank] = x a: x is read once, xa used while it
/// is in the cache.
void lora_linear_forward(Context& context, float* y, float* xa, const float* x, const PackedBase& base,
                         const float* a, const float* b, float scale, size_t rows, size_t rank) {
  const ProductKernel& kernel = *base.adapter_kernel;
  const Operand inputs{x, base.in, false};
  const Target outputs{y, base.out, 1.0f, false};
  context.arena.reset();
  const RightPanels w_panels = base.forward_panels(context, kernel);
  if (rank == 0) return product_of_panels(context, outputs, inputs, w_panels, rows);

  const size_t a_words = right_panels_words(kernel, base.in, rank);
  const size_t b_words = right_panels_words(kernel, rank, base.out);
  uint32_t* words = context.shared(Shared::right_panels).words(a_words + b_words);
  const RightPanels a_panels = pack_right_panels(context, kernel, words, {a, rank, false}, base.in, rank);
  const RightPanels b_panels = pack_right_panels(context, kernel, words + a_words, {b, base.out, false}, rank,
                                                 base.out);
  const Output of_inputs[] = {{{xa, rank, 1.0f, false}, a_panels}, {outputs, w_panels}};
  const Output of_xa[] = {{{y, base.out, scale, true}, b_panels}};
  product_chain(context, {{inputs, of_inputs, 2}, {{xa, rank, false}, of_xa, 1}}, rows);
}

/// p = scale dy bᵀ; dx = dy wᵀ + p aᵀ; da = xᵀ p unless a is frozen; db = scale (xa)ᵀ dy.
void lora_linear_backward(Context& context, const LoraGradients& gradients, const float* dy, const float* x,
                          const float* xa, const PackedBase& base, const float* a, const float* b,
                          float scale, size_t rows, size_t rank) {
  const ProductKernel& kernel = *base.adapter_kernel;
  const size_t in = base.in, out = base.out;
  const Operand upstream{dy, out, false};
  const Target inputs{gradients.dx, in, 1.0f, false};
  context.arena.reset();
  const RightPanels w_panels = base.backward_panels(context, kernel);
  if (rank == 0) return product_of_panels(context, inputs, upstream, w_panels, rows);

  float* p = context.shared(Shared::first).floats(rows * rank);
  const size_t b_words = right_panels_words(kernel, out, rank);
  const size_t a_words = right_panels_words(kernel, rank, in);
  uint32_t* words = context.shared(Shared::right_panels).words(b_words + a_words);
  const RightPanels b_panels = pack_right_panels(context, kernel, words, {b, out, true}, out, rank);
  const RightPanels a_panels = pack_right_panels(context, kernel, words + b_words, {a, rank, true}, rank, in);
  const Output of_upstream[] = {{{p, rank, scale, false}, b_panels}, {inputs, w_panels}};
  const Output of_p[] = {{{gradients.dx, in, 1.0f, true}, a_panels}};
  product_chain(context, {{upstream, of_upstream, 2}, {{p, rank, false}, of_p, 1}}, rows);

  if (gradients.da != nullptr) {
    product(context, kernel, {gradients.da, rank, 1.0f, false}, {x, in, true}, {p, rank, false}, in, rank,
            rows);
  }
  product(context, kernel, {gradients.db, out, scale, false}, {xa, rank, true}, upstream, rank, out, rows);
}

}  // namespace relora
