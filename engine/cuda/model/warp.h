// Operations of all lanes of a warp.
#pragma once
#include "runtime.h"

namespace relora::model {

/// Called when all lanes have arrived: `arguments` has those of each lane.
void shuffle(void* const* arguments);
void ballot(void* const* arguments);
void load_matrix(void* const* arguments);
void multiply_bf16(void* const* arguments);
void multiply_e4m3(void* const* arguments);

}  // namespace relora::model
