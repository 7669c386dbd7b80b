// cuBLASLt's functions for the model of a card: plain products in the order of k, sums in float32. The caller's promises (alignment,
// exclusive memory) are checked when the product runs.
#include <cmath>
#include <cstring>

#include "../host/cuda_api.h"
#include "blas_queue.h"
#include "faults.h"

using namespace relora::cuda;
using relora::model::faults;

namespace relora::cuda {
struct BlasTag {};
struct ProductDescriptorTag {
  int32_t how_a = not_transposed, how_b = not_transposed, mode_a = 0, mode_b = 0;
  const float *scale_a = nullptr, *scale_b = nullptr;
};
struct LayoutTag {
  int type;
  uint64_t rows, columns;
  int64_t leading, stride = 0;
  int32_t batch = 1;
};
struct PreferenceTag {
  size_t workspace_bytes = 0;
  uint32_t alignments[4] = {256, 256, 256, 256}, schemes = 7;
};
}  // namespace relora::cuda

namespace {

size_t bytes_of(int type) { return type == type_float32 ? 4 : type == type_bfloat16 ? 2 : 1; }

float bfloat16_at(const char* at) {
  uint16_t half;
  std::memcpy(&half, at, 2);
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

float e4m3_at(const char* at) {
  const auto bits = static_cast<unsigned char>(*at);
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if ((bits & 0x7f) == 0x7f) return NAN;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return bits >> 7 != 0 ? -size : size;
}

float load(int type, const char* at) {
  if (type == type_bfloat16) return bfloat16_at(at);
  if (type == type_e4m3) return e4m3_at(at);
  float value;
  std::memcpy(&value, at, 4);
  return value;
}

void store(int type, char* at, float value) {
  if (type == type_float32) {
    std::memcpy(at, &value, 4);
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t half = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fff : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  std::memcpy(at, &half, 2);
}

/// Whether all of a matrix, in all members of its batch, lies in one allocation.
bool check_extent(const char* name, const void* at, const LayoutTag& of) {
  const uint64_t elements = static_cast<uint64_t>(of.batch - 1) * static_cast<uint64_t>(of.stride) +
                            (of.columns - 1) * static_cast<uint64_t>(of.leading) + of.rows;
  if (relora::model::holds_memory(at, elements * bytes_of(of.type))) return true;
  faults.report(std::string("a product reads or writes ") + name + " out of bounds");
  return false;
}

struct Operands {
  ProductDescriptorTag descriptor;
  LayoutTag a, b, c, d;
  const char *at_a, *at_b, *at_c;
  char* at_d;
  float alpha, beta;
};

void multiply(const Operands& of) {
  const bool is_a_transposed = of.descriptor.how_a == transposed, is_b_transposed = of.descriptor.how_b == transposed;
  const uint64_t m = of.d.rows, n = of.d.columns, k = is_a_transposed ? of.a.rows : of.a.columns;
  std::vector<float> left(m * k), right(k * n);
  for (int32_t member = 0; member < of.d.batch; member++) {
    const auto element = [member](const char* base, const LayoutTag& layout, uint64_t row, uint64_t column) {
      const uint64_t at = static_cast<uint64_t>(member) * static_cast<uint64_t>(layout.stride) + column * static_cast<uint64_t>(layout.leading) + row;
      return base + at * bytes_of(layout.type);
    };
    for (uint64_t i = 0; i < m; i++) {
      for (uint64_t p = 0; p < k; p++) left[i * k + p] = load(of.a.type, is_a_transposed ? element(of.at_a, of.a, p, i) : element(of.at_a, of.a, i, p));
    }
    for (uint64_t j = 0; j < n; j++) {
      for (uint64_t p = 0; p < k; p++) right[j * k + p] = load(of.b.type, is_b_transposed ? element(of.at_b, of.b, j, p) : element(of.at_b, of.b, p, j));
    }
    for (uint64_t j = 0; j < n; j++) {
      for (uint64_t i = 0; i < m; i++) {
        float sum = 0;
        for (uint64_t p = 0; p < k; p++) sum += left[i * k + p] * right[j * k + p];
        if (of.descriptor.scale_a != nullptr) sum *= of.descriptor.scale_a[i] * of.descriptor.scale_b[j];
        float value = of.alpha * sum;
        if (of.beta != 0) value += of.beta * load(of.c.type, element(of.at_c, of.c, i, j));
        store(of.d.type, const_cast<char*>(element(of.at_d, of.d, i, j)), value);
      }
    }
    if (of.d.leading < static_cast<int64_t>(of.d.rows)) std::abort();
  }
  for (int32_t member = 0; member < of.d.batch; member++) {
    for (uint64_t j = 0; j < n; j++) {
      const uint64_t at = static_cast<uint64_t>(member) * static_cast<uint64_t>(of.d.stride) + j * static_cast<uint64_t>(of.d.leading);
      relora::model::written_memory(of.at_d + at * bytes_of(of.d.type), m * bytes_of(of.d.type));
    }
  }
}

/// What the library supports: for other products, planning fails.
bool is_supported(const ProductDescriptorTag& how, const LayoutTag& a, const LayoutTag& b, const LayoutTag& c, const LayoutTag& d) {
  const uint64_t m = d.rows, n = d.columns, k = how.how_a == transposed ? a.rows : a.columns;
  const bool fits = (how.how_a == transposed ? a.columns : a.rows) == m && (how.how_b == transposed ? b.columns : b.rows) == k &&
                    (how.how_b == transposed ? b.rows : b.columns) == n && c.rows == m && c.columns == n;
  const bool batches = a.batch == d.batch && b.batch == d.batch && c.batch == d.batch;
  const bool is_e4m3 = a.type == type_e4m3;
  // 8-bit matrices are multiplied only along their rows, in units of 16 bytes.
  const bool order = !is_e4m3 || (how.how_a == transposed && how.how_b == not_transposed && a.leading % 16 == 0 && b.leading % 16 == 0);
  const bool scales = is_e4m3 || (how.mode_a == 0 && how.mode_b == 0);
  return fits && batches && order && scales && a.type == b.type && c.type == d.type && d.type != type_e4m3 && m > 0 && n > 0 && k > 0;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) Status

extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() { return 130000; }
EXPORT cublasLtCreate(BlasHandle* handle) {
  *handle = new BlasTag;
  return success;
}
EXPORT cublasLtDestroy(BlasHandle handle) {
  delete handle;
  return success;
}
EXPORT cublasLtMatmulDescCreate(ProductDescriptor* descriptor, int compute, int scale) {
  if (compute != compute_float32 || scale != type_float32) return blas_invalid_value;
  *descriptor = new ProductDescriptorTag;
  return success;
}
EXPORT cublasLtMatmulDescDestroy(ProductDescriptor descriptor) {
  delete descriptor;
  return success;
}
EXPORT cublasLtMatmulDescSetAttribute(ProductDescriptor descriptor, int attribute, const void* value, size_t bytes) {
  void* to = nullptr;
  size_t wanted = 4;
  switch (attribute) {
    case transposition_a: to = &descriptor->how_a; break;
    case transposition_b: to = &descriptor->how_b; break;
    case scale_mode_a: to = &descriptor->mode_a; break;
    case scale_mode_b: to = &descriptor->mode_b; break;
    case scale_pointer_a: to = &descriptor->scale_a; wanted = 8; break;
    case scale_pointer_b: to = &descriptor->scale_b; wanted = 8; break;
    default: return blas_invalid_value;
  }
  if (bytes != wanted) return blas_invalid_value;
  std::memcpy(to, value, bytes);
  return success;
}
EXPORT cublasLtMatrixLayoutCreate(LayoutHandle* layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  if (leading < static_cast<int64_t>(rows)) return blas_invalid_value;
  *layout = new LayoutTag{type, rows, columns, leading};
  return success;
}
EXPORT cublasLtMatrixLayoutDestroy(LayoutHandle layout) {
  delete layout;
  return success;
}
EXPORT cublasLtMatrixLayoutSetAttribute(LayoutHandle layout, int attribute, const void* value, size_t bytes) {
  if (attribute == layout_batch_count && bytes == 4) std::memcpy(&layout->batch, value, 4);
  else if (attribute == layout_batch_stride && bytes == 8) std::memcpy(&layout->stride, value, 8);
  else return blas_invalid_value;
  return success;
}
EXPORT cublasLtMatmulPreferenceCreate(PreferenceHandle* preference) {
  *preference = new PreferenceTag;
  return success;
}
EXPORT cublasLtMatmulPreferenceDestroy(PreferenceHandle preference) {
  delete preference;
  return success;
}
EXPORT cublasLtMatmulPreferenceSetAttribute(PreferenceHandle preference, int attribute, const void* value, size_t bytes) {
  if (attribute == preference_workspace_bytes && bytes == 8) std::memcpy(&preference->workspace_bytes, value, 8);
  else if (attribute == preference_reduction_schemes && bytes == 4) std::memcpy(&preference->schemes, value, 4);
  else if (attribute >= preference_alignment_a && attribute <= preference_alignment_d && bytes == 4)
    std::memcpy(&preference->alignments[attribute - preference_alignment_a], value, 4);
  else return blas_invalid_value;
  return success;
}
/// The algorithm includes the promised alignments.
EXPORT cublasLtMatmulAlgoGetHeuristic(BlasHandle, ProductDescriptor descriptor, LayoutHandle a, LayoutHandle b, LayoutHandle c,
                                      LayoutHandle d, PreferenceHandle preference, int wanted, HeuristicResult* results, int* found) {
  *found = 0;
  if (wanted < 1) return blas_invalid_value;
  if (!is_supported(*descriptor, *a, *b, *c, *d)) return blas_not_supported;
  results[0] = {};
  for (int i = 0; i < 4; i++) results[0].algorithm.data[i] = preference->alignments[i];
  *found = 1;
  return success;
}
EXPORT cublasLtMatmul(BlasHandle, ProductDescriptor descriptor, const void* alpha, const void* a, LayoutHandle a_layout, const void* b,
                      LayoutHandle b_layout, const void* beta, const void* c, LayoutHandle c_layout, void* d, LayoutHandle d_layout,
                      const ProductAlgorithm* algorithm, void*, size_t, StreamHandle) {
  const void* const addresses[] = {a, b, c, d};
  for (int i = 0; i < 4; i++) {
    if (reinterpret_cast<uintptr_t>(addresses[i]) % algorithm->data[i] == 0) continue;
    faults.report("a product was promised another alignment than it got");
    return blas_invalid_value;
  }
  Operands of{*descriptor, *a_layout, *b_layout, *c_layout, *d_layout, static_cast<const char*>(a), static_cast<const char*>(b),
              static_cast<const char*>(c), static_cast<char*>(d), *static_cast<const float*>(alpha), *static_cast<const float*>(beta)};
  const bool is_inside = check_extent("its left matrix", a, of.a) && check_extent("its right matrix", b, of.b) &&
                         (of.beta == 0 || check_extent("what is added", c, of.c)) && check_extent("its result", d, of.d);
  if (!is_inside) return blas_invalid_value;
  return relora::model::submit([of] { multiply(of); });
}
