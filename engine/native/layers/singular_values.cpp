#include "singular_values.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace relora {

namespace {

/// gram[n, n] = the products of the smaller side's vectors with each other, in float64, lower triangle and
/// its mirror.
void gram_matrix(Context& context, double* gram, const float* matrix, size_t rows, size_t columns) {
  const bool by_rows = rows <= columns;
  const size_t n = by_rows ? rows : columns, length = by_rows ? columns : rows;
  // Row-major copies in float64: both operands of each dot product are then contiguous.
  double* vectors = context.shared(Shared::first).doubles(n * length);
  constexpr size_t block = 16;
  const size_t blocks = (n + block - 1) / block;
  context.pool.run(blocks, [&](size_t task, unsigned) {
    for (size_t i = task * block; i < std::min(n, (task + 1) * block); i++) {
      for (size_t j = 0; j < length; j++) {
        vectors[i * length + j] = by_rows ? matrix[i * columns + j] : matrix[j * columns + i];
      }
    }
  });
  context.pool.run(blocks, [&](size_t task, unsigned) {
    const size_t begin = task * block, end = std::min(n, begin + block);
    for (size_t j = 0; j < end; j++) {
      const double* other = vectors + j * length;
      for (size_t i = std::max(begin, j); i < end; i++) {
        const double* own = vectors + i * length;
        double sums[8] = {};
        size_t l = 0;
        for (; l + 8 <= length; l += 8) {
          for (size_t way = 0; way < 8; way++) sums[way] += own[l + way] * other[l + way];
        }
        for (; l < length; l++) sums[0] += own[l] * other[l];
        double sum = 0;
        for (const double part : sums) sum += part;
        gram[i * n + j] = gram[j * n + i] = sum;
      }
    }
  });
}

/// Householder reflections (Golub & Van Loan, 8.3.1): symmetric a[n, n] becomes tridiagonal; a is
/// overwritten.
void tridiagonalize(Context& context, double* a, size_t n, std::vector<double>& diagonal,
                    std::vector<double>& beside) {
  std::vector<double> v(n), p(n);
  for (size_t k = 0; k + 2 < n; k++) {
    // The reflection that clears column k below its first subdiagonal element.
    double tail = 0;
    for (size_t i = k + 2; i < n; i++) tail += a[i * n + k] * a[i * n + k];
    const double head = a[(k + 1) * n + k];
    const double norm = std::sqrt(head * head + tail);
    diagonal[k] = a[k * n + k];
    if (tail == 0) {
      beside[k] = head;
      continue;
    }
    beside[k] = head > 0 ? -norm : norm;
    v[k + 1] = head - beside[k];
    for (size_t i = k + 2; i < n; i++) v[i] = a[i * n + k];
    const double factor = 2 / (v[k + 1] * v[k + 1] + tail);

    // a -= v wᵀ + w vᵀ, w = p - (factor / 2) (pᵀ v) v, p = factor a v; rows are independent.
    constexpr size_t block = 32;
    const size_t blocks = (n - k - 1 + block - 1) / block;
    const auto rows = [&](size_t task, const auto& body) {
      for (size_t i = k + 1 + task * block; i < std::min(n, k + 1 + (task + 1) * block); i++) {
        body(i, a + i * n);
      }
    };
    context.pool.run(blocks, [&](size_t task, unsigned) {
      rows(task, [&](size_t i, const double* row) {
        double sums[8] = {};
        size_t j = k + 1;
        for (; j + 8 <= n; j += 8) {
          for (size_t way = 0; way < 8; way++) sums[way] += row[j + way] * v[j + way];
        }
        for (; j < n; j++) sums[0] += row[j] * v[j];
        double sum = 0;
        for (const double part : sums) sum += part;
        p[i] = factor * sum;
      });
    });
    double projection = 0;
    for (size_t i = k + 1; i < n; i++) projection += p[i] * v[i];
    for (size_t i = k + 1; i < n; i++) p[i] -= factor / 2 * projection * v[i];
    context.pool.run(blocks, [&](size_t task, unsigned) {
      rows(task, [&](size_t i, double* row) {
        const double vi = v[i], wi = p[i];
        for (size_t j = k + 1; j < n; j++) row[j] -= vi * p[j] + wi * v[j];
      });
    });
  }
  if (n >= 2) {
    diagonal[n - 2] = a[(n - 2) * n + n - 2];
    beside[n - 2] = a[(n - 1) * n + n - 2];
  }
  diagonal[n - 1] = a[n * n - 1];
}

/// Implicit QL with Wilkinson shifts (Golub & Van Loan, 8.3.3, mirrored): the diagonal becomes the eigenvalues. False if a value does not
/// converge, which only infinities and NaN cause.
bool diagonalize(std::vector<double>& diagonal, std::vector<double>& beside) {
  const size_t n = diagonal.size();
  // Elements below the rounding of the largest one count as zero: next to a null space, as in a change of low rank, elements compared only
  // with their neighbors are noise that never converges.
  double largest = 0;
  for (size_t i = 0; i < n; i++) largest = std::max({largest, std::fabs(diagonal[i]), std::fabs(beside[i])});
  for (size_t first = 0; first < n; first++) {
    for (int sweep = 0;; sweep++) {
      size_t last = first;  // the block [first, last] is unreduced
      while (last + 1 < n) {
        const double size = std::fabs(diagonal[last]) + std::fabs(diagonal[last + 1]);
        const double negligible = std::numeric_limits<double>::epsilon() * std::max(size, largest);
        if (std::fabs(beside[last]) <= negligible) break;
        last++;
      }
      if (last == first) break;
      if (sweep == 60) return false;
      const double ratio = (diagonal[first + 1] - diagonal[first]) / (2 * beside[first]);
      const double shift =
          diagonal[first] - beside[first] / (ratio + std::copysign(std::hypot(ratio, 1.0), ratio));
      double bulge = diagonal[last] - shift, sine = 1, cosine = 1, lost = 0;
      bool split = false;
      for (size_t i = last; i-- > first;) {
        const double f = sine * beside[i], b = cosine * beside[i];
        const double r = std::hypot(f, bulge);
        beside[i + 1] = r;
        if (r == 0) {  // the block split on the way: start again with the smaller one
          diagonal[i + 1] -= lost;
          beside[last] = 0;
          split = true;
          break;
        }
        sine = f / r;
        cosine = bulge / r;
        const double g = diagonal[i + 1] - lost;
        const double turned = (diagonal[i] - g) * sine + 2 * cosine * b;
        lost = sine * turned;
        diagonal[i + 1] = g + lost;
        bulge = cosine * turned - b;
      }
      if (split) continue;
      diagonal[first] -= lost;
      beside[first] = bulge;
      beside[last] = 0;
    }
  }
  return true;
}

}  // namespace

std::vector<double> singular_values(Context& context, const float* matrix, size_t rows, size_t columns) {
  const size_t n = std::min(rows, columns);
  double* gram = context.shared(Shared::second).doubles(n * n);
  gram_matrix(context, gram, matrix, rows, columns);
  std::vector<double> values(n), beside(n);
  tridiagonalize(context, gram, n, values, beside);
  if (!diagonalize(values, beside)) {
    std::fill(values.begin(), values.end(), std::numeric_limits<double>::quiet_NaN());
  }
  // Rounding may leave a zero eigenvalue slightly negative; NaN stays NaN.
  for (double& value : values) value = value < 0 ? 0 : std::sqrt(value);
  std::sort(values.begin(), values.end(), [](double a, double b) { return a > b; });
  return values;
}

}  // namespace relora
