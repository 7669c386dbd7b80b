// Products of int8 with the fastest instructions for bytes. Each sum over one block of k is exact: it stays below 2^24, so converting it to
// float does not round. Only the length of a block differs.
#include "kernels.h"
#include "pack_int8.h"
#include "tile.h"

namespace relora::RELORA_ISA {

namespace {

template <class Value, Integer form, size_t words>
struct Int8 {
  using Sum = Value;
  static constexpr size_t tile_rows = integer_tile_rows;
  static constexpr size_t k_per_step = 4, left_words = words, header_rows = 2;
  static constexpr size_t block_k = block_words / left_words * k_per_step;
  static constexpr auto prepare_left = &prepare_left_integers;
  static constexpr auto pack_left = &pack_left_integers<form>;
  template <size_t vectors>
  static constexpr auto pack_right = &pack_right_integers<form, block_k, PanelOfVectors<vectors>>;
};

#if defined(__AVX512VNNI__)

constexpr size_t vectors = 4;

/// vpdpbusd: four products of an unsigned and a signed byte, added to a sum of 32 bits.
struct MultiplyQuads : Int8<Words, Integer::biased_bytes, 1> {
  template <size_t rows, size_t vectors>
  static inline RELORA_INLINE void step(Words (&sums)[rows * vectors], const uint32_t* left,
                                        size_t row_stride, size_t, const uint32_t* right) {
    Words b[vectors];
    each<vectors>([&](auto j) RELORA_INLINE { b[j] = load(right + j * lanes); });
    each_row<rows>(left, row_stride, [&](auto i, const uint32_t* words) RELORA_INLINE {
      const __m512i a = _mm512_set1_epi32(static_cast<int>(*words));
      each<vectors>([&](auto j) RELORA_INLINE {
        Words& sum = sums[i * vectors + j];
        sum = reinterpret_cast<Words>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), a,
                                                          reinterpret_cast<__m512i>(b[j])));
      });
    });
  }
};

#elif defined(__AVX2__)

constexpr size_t vectors = 2;

/// vpmaddwd: bytes widened to 16 bits, products of two added exactly. vpmaddubsw would saturate.
struct MultiplyQuads : Int8<Words, Integer::halves, 2> {
  template <size_t rows, size_t vectors>
  static inline RELORA_INLINE void step(Words (&sums)[rows * vectors], const uint32_t* left,
                                        size_t row_stride, size_t k_stride, const uint32_t* right) {
    each<2>([&](auto odd) RELORA_INLINE {
      __m256i b[vectors];
      each<vectors>([&](auto j) RELORA_INLINE {
        const Words quads = load(right + j * lanes);
        b[j] = reinterpret_cast<__m256i>(odd == 0 ? even_bytes(quads) : odd_bytes(quads));
      });
      each<rows>([&](auto i) RELORA_INLINE {
        const __m256i a = _mm256_set1_epi32(static_cast<int>(left[i * row_stride + odd * k_stride]));
        each<vectors>([&](auto j) RELORA_INLINE {
          sums[i * vectors + j] += reinterpret_cast<Words>(_mm256_madd_epi16(a, b[j]));
          settle(sums[i * vectors + j]);
        });
      });
      // Loaded again for the odd bytes, as in MultiplyWidened.
      asm("" : "+r"(right));
    });
  }
};

#elif defined(RELORA_NEON) && defined(__ARM_FEATURE_DOTPROD)

constexpr size_t vectors = 4;

/// SDOT: four products of signed bytes, added to a sum of 32 bits.
struct MultiplyQuads : Int8<Words, Integer::bytes, 1> {
  template <size_t rows, size_t vectors>
  static inline RELORA_INLINE void step(Words (&sums)[rows * vectors], const uint32_t* left,
                                        size_t row_stride, size_t, const uint32_t* right) {
    Words b[vectors];
    each<vectors>([&](auto j) RELORA_INLINE { b[j] = load(right + j * lanes); });
    each<rows>([&](auto i) RELORA_INLINE {
      const int8x8_t a = vreinterpret_s8_f32(left_value(left + i * row_stride));
      each<vectors>([&](auto j) RELORA_INLINE {
        Words& sum = sums[i * vectors + j];
        sum = reinterpret_cast<Words>(vdotq_lane_s32(reinterpret_cast<int32x4_t>(sum),
                                                     reinterpret_cast<int8x16_t>(b[j]), a, 0));
      });
    });
  }
};

#else

#if defined(RELORA_NEON)
constexpr size_t vectors = 3;  // with 4, bytes that are being widened push sums out of registers
#else
constexpr size_t vectors = 2;
#endif

/// Integers as float32: sums below 2^24 are exact there too, and every CPU multiplies floats.
struct MultiplyQuads : Int8<Vec, Integer::floats, 4> {
  template <size_t rows, size_t vectors>
  static inline RELORA_INLINE void step(Vec (&sums)[rows * vectors], const uint32_t* left, size_t row_stride,
                                        size_t k_stride, const uint32_t* right) {
    each<4>([&](auto k) RELORA_INLINE {
      Vec b[vectors];
      each<vectors>([&](auto j) RELORA_INLINE {
        b[j] = __builtin_convertvector(byte_of(load(right + j * lanes), k), Vec);
      });
      each<rows>([&](auto i) RELORA_INLINE {
        const LeftValue a = left_value(left + i * row_stride + k * k_stride);
        each<vectors>([&](auto j) RELORA_INLINE {
          sums[i * vectors + j] = multiply_add(a, b[j], sums[i * vectors + j]);
          settle(sums[i * vectors + j]);
        });
      });
      asm("" : "+r"(right));
    });
  }
};

#endif

}  // namespace

constinit const ProductKernel int8_kernel = product_kernel<MultiplyQuads, vectors>(MultiplyQuads::block_k);

}  // namespace relora::RELORA_ISA
