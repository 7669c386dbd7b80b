// What the model's products need of its driver.
#pragma once
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace relora::model {

/// After everything that was queued before; the status of a card that is lost.
int submit(std::function<void()>);
bool holds_memory(const void* address, size_t bytes);
/// By something that is no kernel.
void written_memory(const void* address, size_t bytes);

}  // namespace relora::model
