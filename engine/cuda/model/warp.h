// What the lanes of a warp do together.
#pragma once
#include "runtime.h"

namespace relora::model {

/// All lanes have come: `arguments` holds what each brought.
void shuffle(void* const* arguments);
void ballot(void* const* arguments);
void load_matrix(void* const* arguments);
void multiply_bf16(void* const* arguments);
void multiply_e4m3(void* const* arguments);

}  // namespace relora::model
