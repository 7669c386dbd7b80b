// Products of bfloat16 pairs by the hardware: vdpbf16ps multiplies two k's per lane and step and adds both to
// a float32 sum.
#include "kernels.h"
#include "tile.h"

namespace relora::RELORA_ISA {

namespace {

struct MultiplyPairs {
  using Sum = Vec;
  static constexpr size_t tile_rows = RELORA_ISA::tile_rows<Format::pairs>;
  static constexpr size_t k_per_step = 2, left_words = 1, header_rows = 0;
  static constexpr auto prepare_left = nullptr;
  static constexpr auto pack_left = &pack_left_as<Format::pairs>;
  template <size_t vectors>
  static constexpr auto pack_right = &pack_right_as<Format::pairs, PanelOfVectors<vectors>>;

  template <size_t rows, size_t vectors>
  static inline RELORA_INLINE void step(Vec (&sums)[rows * vectors], const uint32_t* left, size_t row_stride,
                                        size_t, const uint32_t* right) {
    Words b[vectors];
    each<vectors>([&](auto j) RELORA_INLINE { b[j] = load(right + j * lanes); });
    each_row<rows>(left, row_stride, [&](auto i, const uint32_t* words) RELORA_INLINE {
      const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(*words)));
      each<vectors>([&](auto j) RELORA_INLINE {
        sums[i * vectors + j] = _mm512_dpbf16_ps(sums[i * vectors + j], a, reinterpret_cast<__m512bh>(b[j]));
      });
    });
  }
};

}  // namespace

constinit const ProductKernel bfloat16_kernel = product_kernel<MultiplyPairs, 4>(2 * block_words);

}  // namespace relora::RELORA_ISA
