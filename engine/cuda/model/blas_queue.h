// What the model's products need of its driver.
#pragma once
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace relora::model {

/// Runs after everything queued before; returns an error if the card is lost.
int submit(std::function<void()>);
bool holds_memory(const void* address, size_t bytes);
/// Marks memory as written by something other than a kernel.
void written_memory(const void* address, size_t bytes);

}  // namespace relora::model
