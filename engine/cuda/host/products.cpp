#include "products.h"

namespace relora::cuda {

Products::Products(const Blas& blas, DeviceAddress workspace, size_t workspace_bytes)
    : blas_(blas), workspace_(workspace), workspace_bytes_(workspace_bytes) {
  blas_.check(blas_.cublasLtCreate(&handle_), "starting cuBLASLt");
}

Products::~Products() {
  for (const Plan& plan : plans_) destroy(plan);
  if (handle_ != nullptr) blas_.cublasLtDestroy(handle_);
}

void Products::destroy(const Plan& plan) const {
  for (LayoutHandle layout : {plan.a, plan.b, plan.c, plan.d}) {
    if (layout != nullptr) blas_.cublasLtMatrixLayoutDestroy(layout);
  }
  if (plan.descriptor != nullptr) blas_.cublasLtMatmulDescDestroy(plan.descriptor);
}

LayoutHandle Products::layout(int type, uint64_t rows, uint64_t columns, uint64_t leading, uint32_t batch,
                              uint64_t stride) const {
  LayoutHandle made = nullptr;
  blas_.check(blas_.cublasLtMatrixLayoutCreate(&made, type, rows, columns, static_cast<int64_t>(leading)), "describing a matrix");
  if (batch > 1) {
    const auto count = static_cast<int32_t>(batch);
    const auto between = static_cast<int64_t>(stride);
    blas_.check(blas_.cublasLtMatrixLayoutSetAttribute(made, layout_batch_count, &count, sizeof count), "describing a batch");
    blas_.check(blas_.cublasLtMatrixLayoutSetAttribute(made, layout_batch_stride, &between, sizeof between), "describing a batch");
  }
  return made;
}

int Products::plan(const ProductShape& of) {
  Plan made{};
  made.is_scaled = of.is_scaled != 0;
  PreferenceHandle preference = nullptr;
  HeuristicResult result{};
  int found = 0;
  Status status = success;
  try {
    blas_.check(blas_.cublasLtMatmulDescCreate(&made.descriptor, compute_float32, type_float32), "describing a product");
    const auto set = [&](int attribute, const auto& value) {
      blas_.check(blas_.cublasLtMatmulDescSetAttribute(made.descriptor, attribute, &value, sizeof value), "describing a product");
    };
    const int32_t how_a = of.is_a_transposed != 0 ? transposed : not_transposed;
    const int32_t how_b = of.is_b_transposed != 0 ? transposed : not_transposed;
    set(transposition_a, how_a);
    set(transposition_b, how_b);
    if (made.is_scaled) {
      const int32_t mode = scale_outer_vector;
      set(scale_mode_a, mode);
      set(scale_mode_b, mode);
      // Not accessed during planning, but it must not be null.
      const void* const somewhere = reinterpret_cast<const void*>(workspace_);
      set(scale_pointer_a, somewhere);
      set(scale_pointer_b, somewhere);
    }
    made.a = layout(of.type_ab, how_a == transposed ? of.k : of.m, how_a == transposed ? of.m : of.k, of.lead_a, of.batch, of.stride_a);
    made.b = layout(of.type_ab, how_b == transposed ? of.n : of.k, how_b == transposed ? of.k : of.n, of.lead_b, of.batch, of.stride_b);
    made.c = layout(of.type_cd, of.m, of.n, of.lead_c, of.batch, of.stride_c);
    made.d = layout(of.type_cd, of.m, of.n, of.lead_d, of.batch, of.stride_d);
    blas_.check(blas_.cublasLtMatmulPreferenceCreate(&preference), "planning a product");
    const auto prefer = [&](int attribute, const auto& value) {
      blas_.check(blas_.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value), "planning a product");
    };
    prefer(preference_workspace_bytes, workspace_bytes_);
    prefer(preference_reduction_schemes, reduction_in_compute_type);
    prefer(preference_alignment_a, of.alignment_a);
    prefer(preference_alignment_b, of.alignment_b);
    prefer(preference_alignment_c, of.alignment_c);
    prefer(preference_alignment_d, of.alignment_d);
    status = blas_.cublasLtMatmulAlgoGetHeuristic(handle_, made.descriptor, made.a, made.b, made.c, made.d, preference, 1, &result, &found);
  } catch (const CudaError&) {
    if (preference != nullptr) blas_.cublasLtMatmulPreferenceDestroy(preference);
    destroy(made);
    // This version does not know the attribute for scales by row, so it has no such product.
    if (made.is_scaled) return -1;
    throw;
  }
  blas_.cublasLtMatmulPreferenceDestroy(preference);
  if (status != success || found == 0 || result.state != success || result.workspace_bytes > workspace_bytes_) {
    destroy(made);
    return -1;
  }
  made.algorithm = result.algorithm;
  plans_.push_back(made);
  return static_cast<int>(plans_.size() - 1);
}

void Products::run(const ProductArguments& of, StreamHandle stream) const {
  const Plan& plan = plans_[of.plan];
  const auto pointer = [](DeviceAddress address) { return reinterpret_cast<void*>(address); };
  if (plan.is_scaled) {
    const void *scale_a = pointer(of.scale_a), *scale_b = pointer(of.scale_b);
    blas_.check(blas_.cublasLtMatmulDescSetAttribute(plan.descriptor, scale_pointer_a, &scale_a, sizeof scale_a), "scaling a product");
    blas_.check(blas_.cublasLtMatmulDescSetAttribute(plan.descriptor, scale_pointer_b, &scale_b, sizeof scale_b), "scaling a product");
  }
  blas_.check(blas_.cublasLtMatmul(handle_, plan.descriptor, &of.alpha, pointer(of.a), plan.a, pointer(of.b), plan.b, &of.beta,
                                   pointer(of.c), plan.c, pointer(of.d), plan.d, &plan.algorithm, pointer(workspace_),
                                   workspace_bytes_, stream),
              "multiplying");
}

}  // namespace relora::cuda
