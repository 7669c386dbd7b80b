// The kernels that are compiled once per instruction set, as one table for each. Touch only what the CPU
// supports.
#pragma once
#include <span>

#include "../layers/linear_pass.h"

namespace relora {

struct RotaryShape {
  size_t batch, time, heads, head_dim, first_position;
};

struct AttentionShape {
  size_t batch, time, heads, kv_heads, head_dim;
  float scale;
  /// [batch, time]: where, within its sequence, the document of each position begins, before which it attends to nothing; null: at 0.
  const int32_t* documents;

  size_t document(size_t batch_index, size_t t) const {
    return documents == nullptr ? 0 : static_cast<size_t>(documents[batch_index * time + t]);
  }
};

/// The halves of a block. `compact`: state for the backward pass is kept in bfloat16. `apart`: layers are summed apart
/// (layers/apart_sums.h), which supports neither `compact` nor merged graphs.
struct MlpPass {
  size_t rows = 0;
  const float *x = nullptr, *gain = nullptr;  // [rows, hidden], [hidden]
  LinearPass gate = {}, up = {}, down = {};
  float epsilon = 0;
  Precision precision = Precision::float32;
  bool compact = false, apart = false;
};

/// The gain of the norm of each head of one projection, [head_dim]; null for none.
struct HeadNorm {
  const float* gain = nullptr;
  float* dgain = nullptr;  // in the backward pass
};

struct AttentionPass {
  AttentionShape shape = {};
  const float *x = nullptr, *gain = nullptr;         // [batch * time, hidden], [hidden]
  const float *cosines = nullptr, *sines = nullptr;  // [time, head_dim / 2]; null: no rotation
  HeadNorm q_norm = {}, k_norm = {};
  LinearPass q = {}, k = {}, v = {}, o = {};
  float epsilon = 0;
  Precision precision = Precision::float32;
  bool compact = false, apart = false;
};

/// One parameter with the data for its AdamW update. Codes: see moment_codes.h.
struct AdamWBuffers {
  size_t length;
  float* parameter;
  const float* gradient;
  float *first, *second;
};
constexpr size_t moments_per_scale = 256;
struct CodedAdamWBuffers {
  size_t length;
  float* parameter;
  const float* gradient;
  int8_t* first;
  float* first_scales;
  uint8_t* second;
  float* second_scales;
};

struct AdamWOptions {
  double learning_rate, beta1, beta2, epsilon, weight_decay, correction1, correction2, gradient_scale;
};

/// A first moment: float32, or codes with their scales.
struct MomentBuffer {
  float* values;
  int8_t* codes;
  float* scales;
};
/// One matrix with the data for its Muon update; without a gradient it is not trained.
struct MuonBuffers {
  float* parameter;
  const float* gradient;
  MomentBuffer moment;
};
struct MuonOptions {
  double learning_rate, momentum, weight_decay, gradient_scale;
  Precision precision;
};
struct LoraMuonBuffers {
  MuonBuffers a, b;
};
struct LoraMuonShape {
  size_t in, out, rank;
};
/// The projection has as many elements as the smaller side, the moments as the larger one.
struct ApolloBuffers {
  float* parameter;
  const float *gradient, *projection;
  float *first, *second, *norm;
};

struct HeadShape {
  size_t rows, dim, vocabulary;
  float gradient_scale;
  bool in_int8;  // the logits and dx are products of int8
};

struct MergeResult {
  bool finite;
  double delta_norm;
};

// Each function is described where it is defined.
#define RELORA_DECLARE_KERNELS                                                                               \
  MergeResult merge_adapter(Context&, float* merged, const float* w, const float* a, const float* b,         \
                            float scale, size_t in, size_t rank, size_t out);                                \
  void rms_norm_forward(Context&, float* y, float* rstd, const float* x, const float* gain, size_t rows,     \
                        size_t dim, float epsilon);                                                          \
  void rms_norm_backward(Context&, float* dx, float* dgain, const float* dy, const float* x,                 \
                         const float* gain, const float* rstd, const float* residual, size_t rows,           \
                         size_t dim);                                                                        \
  void rotary(Context&, float* y, const float* x, const float* cosines, const float* sines,                  \
              const RotaryShape&, bool inverse);                                                             \
  void attention_forward(Context&, float* out, float* log_sum_exp, const float* q, const float* k,           \
                         const float* v, const AttentionShape&, Precision);                                  \
  void attention_backward(Context&, float* dq, float* dk, float* dv, const float* dout, const float* q,      \
                          const float* k, const float* v, const float* out, const float* log_sum_exp,        \
                          const AttentionShape&, Precision);                                                 \
  void swiglu_forward(Context&, float* h, const float* gate, const float* up, size_t length);                \
  void swiglu_backward(Context&, float* dgate, float* dup, const float* dh, const float* gate,               \
                       const float* up, size_t length);                                                      \
  void head_cross_entropy(Context&, float* losses, float* dx, float* dhead, const float* x,                  \
                          const float* head, const int32_t* targets, const HeadShape&, Precision);           \
  size_t mlp_half_state_bytes(const MlpPass&);                                                               \
  void mlp_half_forward(Context&, float* y, void* state, const MlpPass&);                                    \
  void mlp_half_backward(Context&, float* dx, float* dgain, const float* dy, const void* state,              \
                         const MlpPass&);                                                                    \
  size_t attention_half_state_bytes(const AttentionPass&);                                                   \
  void attention_half_forward(Context&, float* y, void* state, const AttentionPass&);                        \
  void attention_half_backward(Context&, float* dx, float* dgain, const float* dy, const void* state,        \
                               const AttentionPass&);                                                        \
  void quantize_nf4(Context&, uint8_t* codes, float* scales, const float* w, size_t count);                  \
  void dequantize_nf4(Context&, uint16_t* w, const uint8_t* codes, const float* scales, size_t count);       \
  void adamw_in_place(Context&, std::span<const AdamWBuffers>, const AdamWOptions&);                         \
  void coded_adamw_in_place(Context&, std::span<const CodedAdamWBuffers>, const AdamWOptions&);              \
  void muon_in_place(Context&, std::span<const MuonBuffers>, size_t rows, size_t columns,                    \
                     const MuonOptions&);                                                                    \
  void lora_muon_in_place(Context&, std::span<const LoraMuonBuffers>, const LoraMuonShape&, double scale,    \
                          const MuonOptions&);                                                               \
  void apollo_mini_in_place(Context&, std::span<const ApolloBuffers>, size_t rows, size_t columns,           \
                            const AdamWOptions&);                                                            \
  double sum_squares(Context&, std::span<const std::span<const float>>);                                     \
  void add_in_place(Context&, float* accumulator, const float* x, size_t length);

namespace portable {
RELORA_DECLARE_KERNELS
}
#ifdef __x86_64__
namespace avx2 {
RELORA_DECLARE_KERNELS
}
namespace avx512 {
RELORA_DECLARE_KERNELS
}
#elif defined(__aarch64__)
namespace neon {
RELORA_DECLARE_KERNELS
}
#endif

struct Kernels {
  decltype(&portable::merge_adapter) merge_adapter;
  decltype(&portable::rms_norm_forward) rms_norm_forward;
  decltype(&portable::rms_norm_backward) rms_norm_backward;
  decltype(&portable::rotary) rotary;
  decltype(&portable::attention_forward) attention_forward;
  decltype(&portable::attention_backward) attention_backward;
  decltype(&portable::swiglu_forward) swiglu_forward;
  decltype(&portable::swiglu_backward) swiglu_backward;
  decltype(&portable::head_cross_entropy) head_cross_entropy;
  decltype(&portable::mlp_half_state_bytes) mlp_half_state_bytes;
  decltype(&portable::mlp_half_forward) mlp_half_forward;
  decltype(&portable::mlp_half_backward) mlp_half_backward;
  decltype(&portable::attention_half_state_bytes) attention_half_state_bytes;
  decltype(&portable::attention_half_forward) attention_half_forward;
  decltype(&portable::attention_half_backward) attention_half_backward;
  decltype(&portable::quantize_nf4) quantize_nf4;
  decltype(&portable::dequantize_nf4) dequantize_nf4;
  decltype(&portable::adamw_in_place) adamw_in_place;
  decltype(&portable::coded_adamw_in_place) coded_adamw_in_place;
  decltype(&portable::muon_in_place) muon_in_place;
  decltype(&portable::lora_muon_in_place) lora_muon_in_place;
  decltype(&portable::apollo_mini_in_place) apollo_mini_in_place;
  decltype(&portable::sum_squares) sum_squares;
  decltype(&portable::add_in_place) add_in_place;
};

namespace portable {
extern const Kernels kernels;
}
#ifdef __x86_64__
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels kernels;
}
#endif

/// Elementwise kernels and reductions split long arrays into blocks of this many elements, whatever the number of threads. A shorter array
/// is not worth waking a thread.
constexpr size_t element_block = 32768;

/// A block of one of several arrays.
struct ArrayBlock {
  size_t array, begin, count;
};

/// The blocks of arrays of these lengths, in order: one parallel section serves them all.
inline std::vector<ArrayBlock> blocks_of_arrays(size_t arrays, const auto& length_of) {
  std::vector<ArrayBlock> blocks;
  for (size_t array = 0; array < arrays; array++) {
    const size_t length = length_of(array);
    for (size_t begin = 0; begin < length; begin += element_block) {
      blocks.push_back({array, begin, length - begin < element_block ? length - begin : element_block});
    }
  }
  return blocks;
}

}  // namespace relora
