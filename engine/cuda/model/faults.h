// Errors found by the model: kept as text until a test asks for them.
#pragma once
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace relora::model {

class Faults {
 public:
  /// Ignores a text that repeats the one before, and everything after the first hundred.
  void report(const std::string& text) {
    const std::lock_guard lock(mutex_);
    if (texts_.size() < most && (texts_.empty() || texts_.back() != text)) texts_.push_back(text);
  }
  std::vector<std::string> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(texts_, {});
  }

 private:
  static constexpr size_t most = 100;
  std::mutex mutex_;
  std::vector<std::string> texts_;
};

extern Faults faults;

}  // namespace relora::model
