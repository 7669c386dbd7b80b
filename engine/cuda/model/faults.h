// What the model finds wrong: kept as text until a test asks for it.
#pragma once
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace relora::model {

class Faults {
 public:
  /// The same fault at another address, or a hundred others, say nothing new.
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
