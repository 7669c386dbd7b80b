// The border of products and LoRA layers: checks types, shapes and values, on which kernels rely.
#include "../gemm/product.h"
#include "../kernels/kernels.h"
#include "packed_base.h"

namespace relora {

namespace {

constexpr napi_type_tag packed_base_tag = {0x6b1f0c0de2a94d57, 0x9d3ab27714c0e8f1};

using Fields = Arguments::Fields;

struct MatmulShape {
  size_t batch, m, n, k;
  bool transpose_a, transpose_b;
};
MatmulShape read_matmul_shape(Arguments& in) {
  const Fields fields(in, "shape");
  MatmulShape shape;
  shape.batch = in.dimension("batch");
  shape.m = in.dimension("m");
  shape.n = in.dimension("n");
  shape.k = in.dimension("k");
  shape.transpose_a = in.boolean("transposeA");
  shape.transpose_b = in.boolean("transposeB");
  return shape;
}

napi_value matmul(const Call& call) {
  Arguments& in = call.arguments;
  const auto c = in.output("c");
  const auto a = in.input("a"), b = in.input("b");
  const auto [batch, m, n, k, transpose_a, transpose_b] = read_matmul_shape(in);
  const Precision precision = in.precision("precision");
  in.shape(c, {batch, m, n}, "batch * m * n");
  in.shape(a, {batch, m, k}, "batch * m * k");
  in.shape(b, {batch, k, n}, "batch * k * n");
  in.outputs_stand_alone();

  const ProductKernel& kernel = call.context().product_kernel(precision);
  const auto entry = [&](size_t i, const auto& multiply) {
    const Operand left{a + i * m * k, transpose_a ? m : k, transpose_a};
    const Operand right{b + i * k * n, transpose_b ? k : n, transpose_b};
    multiply(Target{c + i * m * n, n, 1.0f, false}, left, right);
  };
  // In a batch of small products each is computed by one thread; large ones are computed one after another by all threads.
  constexpr size_t small = size_t{1} << 24;
  if (batch > 1 && m * n * k <= small) {
    call.context().pool.run(batch, [&](size_t i, unsigned worker) {
      entry(i, [&](const Target& target, const Operand& left, const Operand& right) {
        product_here(call.context(), worker, kernel, target, left, right, m, n, k);
      });
    });
  } else {
    for (size_t i = 0; i < batch; i++) {
      entry(i, [&](const Target& target, const Operand& left, const Operand& right) {
        product(call.context(), kernel, target, left, right, m, n, k);
      });
    }
  }
  return undefined();
}

/// A released base stays a valid handle that holds nothing.
struct BaseHandle {
  std::unique_ptr<PackedBase> base;
};

void tell_collector(napi_env env, const BaseHandle& handle, int64_t sign) {
  int64_t total;
  if (handle.base) napi_adjust_external_memory(env, sign * static_cast<int64_t>(handle.base->bytes), &total);
}

napi_value pack_base(const Call& call) {
  Arguments& in = call.arguments;
  const auto w = in.input("w");
  const size_t in_features = in.dimension("inFeatures"), out_features = in.dimension("outFeatures");
  const Precision precision = in.base_precision("precision");
  in.shape(w, {in_features, out_features}, "inFeatures * outFeatures");

  auto handle = std::make_unique<BaseHandle>();
  handle->base = std::make_unique<PackedBase>(call.context(), precision, w, in_features, out_features);
  napi_value object;
  napi_create_object(call.env, &object);
  napi_type_tag_object(call.env, object, &packed_base_tag);
  const auto finalize = [](napi_env env, void* data, void*) {
    std::unique_ptr<BaseHandle> dead(static_cast<BaseHandle*>(data));
    tell_collector(env, *dead, -1);
  };
  tell_collector(call.env, *handle, 1);
  napi_wrap(call.env, object, handle.release(), finalize, nullptr, nullptr);
  return object;
}

PackedBase& packed_base(const Call& call) {
  auto* handle = call.arguments.external<BaseHandle>("base", packed_base_tag);
  if (!handle->base) call.arguments.refuse("base has been released");
  return *handle->base;
}

}  // namespace

PackedBase& usable_base(const Call& call) {
  PackedBase& base = packed_base(call);
  if (base.set != call.context().set) {
    call.arguments.refuse("base was packed for another instruction set than the one configured now");
  }
  return base;
}

namespace {

napi_value packed_base_bytes(const Call& call) {
  return number(call.env, static_cast<double>(packed_base(call).bytes));
}

napi_value repack_base(const Call& call) {
  Arguments& in = call.arguments;
  PackedBase& base = usable_base(call);
  const auto w = in.input("w");
  in.shape(w, {base.in, base.out}, "inFeatures * outFeatures");
  base.pack(call.context(), w);
  return undefined();
}

napi_value pack_merged(const Call& call) {
  Arguments& in = call.arguments;
  PackedBase& base = usable_base(call);
  const auto w = in.input("w"), a = in.input("a"), b = in.input("b");
  const float scale = static_cast<float>(in.number("scale"));
  const size_t rank = in.dimension("rank");
  in.shape(w, {base.in, base.out}, "inFeatures * outFeatures");
  in.shape(a, {base.in, rank}, "inFeatures * rank");
  in.shape(b, {rank, base.out}, "rank * outFeatures");
  Context& context = call.context();
  context.arena.reset();
  float* const merged = context.arena.take<float>(base.in * base.out);
  context.kernels.merge_adapter(context, merged, w, a, b, scale, base.in, rank, base.out);
  base.pack(context, merged);
  return undefined();
}

napi_value release_base(const Call& call) {
  auto* handle = call.arguments.external<BaseHandle>("base", packed_base_tag);
  tell_collector(call.env, *handle, -1);
  handle->base.reset();
  return undefined();
}

/// A frozen base, with or without an adapter.
LinearPass frozen_layer(const Call& call) {
  Arguments& in = call.arguments;
  const Fields fields(in, "layer");
  LinearPass l;
  l.base = &usable_base(call);
  l.in = l.base->in;
  l.out = l.base->out;
  if (in.is_null("adapter")) return l;
  const Fields of_adapter(in, "adapter");
  l.rank = in.dimension("rank");
  const auto a = in.input("a"), b = in.input("b");
  l.scale = static_cast<float>(in.number("scale"));
  in.shape(a, {l.in, l.rank}, "inFeatures * rank");
  in.shape(b, {l.rank, l.out}, "rank * outFeatures");
  l.a = a;
  l.b = b;
  return l;
}

napi_value linear_forward(const Call& call) {
  Arguments& in = call.arguments;
  const auto y = in.output("y"), xa = in.output_or_null("xa");
  const auto x = in.input("x");
  const LinearPass l = frozen_layer(call);
  const size_t rows = in.dimension("rows");
  if ((xa == nullptr) != (l.rank == 0)) in.refuse("xa must be there with an adapter alone");
  in.shape(y, {rows, l.out}, "rows * outFeatures");
  in.shape(xa, {rows, l.rank}, "rows * rank");
  in.shape(x, {rows, l.in}, "rows * inFeatures");
  in.outputs_stand_alone();
  linear_layer_forward(call.context(), l, y, xa, x, rows);
  return undefined();
}

napi_value linear_backward(const Call& call) {
  Arguments& in = call.arguments;
  const auto dx = in.output("dx"), da = in.output_or_null("da"), db = in.output_or_null("db");
  const auto dy = in.input("dy"), x = in.input_or_null("x"), xa = in.input_or_null("xa");
  LinearPass l = frozen_layer(call);
  const size_t rows = in.dimension("rows");
  const bool has_adapter = l.rank > 0;
  if ((xa == nullptr) == has_adapter || (db == nullptr) == has_adapter)
    in.refuse("xa and db must be there with an adapter alone");
  if (da != nullptr && !has_adapter) in.refuse("da must be null without an adapter");
  if (x == nullptr && has_adapter) in.refuse("x must be there with an adapter");
  in.shape(dx, {rows, l.in}, "rows * inFeatures");
  in.shape(da, {l.in, l.rank}, "inFeatures * rank");
  in.shape(db, {l.rank, l.out}, "rank * outFeatures");
  in.shape(dy, {rows, l.out}, "rows * outFeatures");
  in.shape(x, {rows, l.in}, "rows * inFeatures");
  in.shape(xa, {rows, l.rank}, "rows * rank");
  in.outputs_stand_alone();
  l.da = da;
  l.db = db;
  linear_layer_backward(call.context(), l, dx, dy, x, xa, rows);
  return undefined();
}

napi_value merge_adapter(const Call& call) {
  Arguments& in = call.arguments;
  const auto merged = in.output("merged");
  const auto w = in.input("w"), a = in.input("a"), b = in.input("b");
  const float scale = static_cast<float>(in.number("scale"));
  const size_t in_features = in.dimension("inFeatures");
  const size_t rank = in.dimension("rank");
  const size_t out = in.dimension("outFeatures");
  in.shape(merged, {in_features, out}, "inFeatures * outFeatures");
  in.shape(w, {in_features, out}, "inFeatures * outFeatures");
  in.shape(a, {in_features, rank}, "inFeatures * rank");
  in.shape(b, {rank, out}, "rank * outFeatures");
  in.outputs_stand_alone();

  const MergeResult merge = call.context().kernels.merge_adapter(call.context(), merged, w, a, b, scale,
                                                                 in_features, rank, out);
  napi_value result, finite;
  napi_create_object(call.env, &result);
  napi_get_boolean(call.env, merge.finite, &finite);
  napi_set_named_property(call.env, result, "finite", finite);
  napi_set_named_property(call.env, result, "deltaNorm", number(call.env, merge.delta_norm));
  return result;
}

constexpr Entry entries[] = {
    {"matmul", 5, matmul},
    {"packBase", 4, pack_base},
    {"repackBase", 2, repack_base},
    {"packMerged", 6, pack_merged},
    {"packedBaseBytes", 1, packed_base_bytes},
    {"releaseBase", 1, release_base},
    {"linearForward", 5, linear_forward},
    {"linearBackward", 8, linear_backward},
    {"mergeAdapter", 8, merge_adapter},
};

}  // namespace

constinit const std::span<const Entry> product_entries = entries;

}  // namespace relora
