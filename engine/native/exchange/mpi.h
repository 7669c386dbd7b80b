// Processes started by `mpirun`, on one host or several, communicate through that MPI.
#pragma once
#include <memory>

#include "exchange.h"

namespace relora {

/// Loads the library of that name, joins the others, and gets this member's rank from it. Throws if it cannot be loaded.
std::unique_ptr<Exchange> open_mpi(const char* library);

}  // namespace relora
