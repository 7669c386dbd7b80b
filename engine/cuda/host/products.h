// Products by cuBLASLt: each kind of product is planned once, with one algorithm, and run by its number.
#pragma once
#include <vector>

#include "libraries.h"

namespace relora::cuda {

/// D = alpha op(A) op(B) + beta C, column by column; `stride_*` elements between the members of a batch.
struct ProductShape {
  uint32_t m, n, k, batch;
  uint32_t is_a_transposed, is_b_transposed;
  int type_ab, type_cd;
  uint64_t lead_a, lead_b, lead_c, lead_d;
  uint64_t stride_a, stride_b, stride_c, stride_d;
  /// Bytes that every address is a multiple of.
  uint32_t alignment_a, alignment_b, alignment_c, alignment_d;
  /// Whether each row of op(A) and each column of op(B) has a float that multiplies it.
  uint32_t is_scaled, reserved;
};

/// The parameters of one product in a list of launches.
struct ProductArguments {
  uint32_t plan;
  float alpha, beta;
  uint32_t reserved;
  DeviceAddress a, b, c, d, scale_a, scale_b;
};

class Products {
 public:
  /// `workspace`: device memory of `workspace_bytes`, used only by these products.
  Products(const Blas&, DeviceAddress workspace, size_t workspace_bytes);
  ~Products();
  Products(const Products&) = delete;

  /// The number of a plan; negative where the library has no algorithm for it.
  int plan(const ProductShape&);
  size_t count() const { return plans_.size(); }
  void run(const ProductArguments&, StreamHandle) const;
  /// The library's choice, as bytes that identify it within one version.
  const ProductAlgorithm& algorithm(uint32_t plan) const { return plans_.at(plan).algorithm; }

 private:
  struct Plan {
    ProductDescriptor descriptor = nullptr;
    LayoutHandle a = nullptr, b = nullptr, c = nullptr, d = nullptr;
    ProductAlgorithm algorithm;
    bool is_scaled;
  };
  LayoutHandle layout(int type, uint64_t rows, uint64_t columns, uint64_t leading, uint32_t batch, uint64_t stride) const;
  void destroy(const Plan&) const;

  const Blas blas_;
  BlasHandle handle_ = nullptr;
  const DeviceAddress workspace_;
  const size_t workspace_bytes_;
  std::vector<Plan> plans_;
};

}  // namespace relora::cuda
