#include "peak.h"

#include <algorithm>
#include <chrono>

namespace relora {

double measure_peak(Context& context, const ProductKernel& kernel, double milliseconds) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  constexpr size_t iterations = 1 << 14;  // about half a millisecond: long against starting the threads
  const Clock::time_point begin = Clock::now();
  double best = 0;
  std::vector<double> operations(context.pool.threads());
  do {
    const Clock::time_point start = Clock::now();
    context.pool.run(operations.size(), [&](size_t task, unsigned) {
      operations[task] = kernel.exercise(iterations);
    });
    double sum = 0;
    for (const double done : operations) sum += done;
    best = std::max(best, sum / seconds_since(start) * 1e-9);
  } while (seconds_since(begin) * 1e3 < milliseconds);
  return best;
}

}  // namespace relora
