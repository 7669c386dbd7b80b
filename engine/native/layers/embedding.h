// Rows of a table by token id.
#pragma once
#include "../context.h"

namespace relora {

/// y[rows, dim] = table[ids]; ids[rows] are valid.
void embedding_forward(Context& context, float* y, const float* table, const int32_t* ids, size_t rows,
                       size_t dim);
/// dtable[vocabulary, dim] is zeroed, then dy[rows, dim] is added at ids in row order.
void embedding_backward(Context& context, float* dtable, const float* dy, const int32_t* ids, size_t rows,
                        size_t vocabulary, size_t dim);

}  // namespace relora
