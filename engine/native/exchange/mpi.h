// Processes that `mpirun` started, on one host or several, reach each other by the MPI that started them.
#pragma once
#include <memory>

#include "exchange.h"

namespace relora {

/// Loads the library of that name, joins the others, and learns from it which member this is. Throws where it cannot be loaded.
std::unique_ptr<Exchange> open_mpi(const char* library);

}  // namespace relora
