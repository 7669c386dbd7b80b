// Handles of packed bases, as JavaScript holds them.
#pragma once
#include "../layers/packed_base.h"
#include "call.h"

namespace relora {

/// The base of the next argument. Refused when it was released, or packed for kernels of another set, which would
/// misread it.
PackedBase& usable_base(const Call& call);

}  // namespace relora
