#include "kernels.h"

namespace relora::RELORA_ISA {

constinit const Kernels kernels = {
    merge_adapter,        rms_norm_forward,
    rms_norm_backward,    rotary,
    attention_forward,    attention_backward,
    swiglu_forward,       swiglu_backward,
    head_cross_entropy,   mlp_half_state_bytes,
    mlp_half_forward,     mlp_half_backward,
    attention_half_state_bytes, attention_half_forward,
    attention_half_backward, quantize_nf4, dequantize_nf4, adamw_in_place,
    coded_adamw_in_place,
    muon_in_place,        lora_muon_in_place,
    apollo_mini_in_place, sum_squares,
    add_in_place,
};

}  // namespace relora::RELORA_ISA
