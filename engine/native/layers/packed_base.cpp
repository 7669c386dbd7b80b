#include "packed_base.h"

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
  if (nf4) return context.kernels.quantize_nf4(context, nf4->codes.get(), nf4->scales.get(), w, in * out);
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
  context.kernels.dequantize_nf4(context, w, nf4->codes.get(), nf4->scales.get(), in * out);
  const size_t k = transposed ? out : in, n = transposed ? in : out;
  uint32_t* const words = context.arena.take<uint32_t>(right_panels_words(unpacked_kernel, k, n));
  return pack_right_panels(context, unpacked_kernel, words, {w, out, transposed}, k, n);
}

}  // namespace relora
