#include "kernels.h"

namespace relora::RELORA_ISA {

constinit const Kernels kernels = {
    merge_adapter,  rms_norm_forward, rms_norm_backward,  rotary,         attention_forward,
        attention_backward, swiglu_forward, swiglu_backward,  head_cross_entropy, adamw_in_place,
        coded_adamw_in_place, sum_squares,     add_in_place, };

}  // namespace relora::RELORA_ISA
