// Handles of packed bases, as JavaScript holds them.
#pragma once
#include "../layers/packed_base.h"
#include "call.h"

namespace relora {

/// The base given by the next argument. Refused if it was released, or packed for another instruction set, whose kernels would misread it.
PackedBase& usable_base(const Call& call);

}  // namespace relora
