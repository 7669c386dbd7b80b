// The border: each function reads its arguments, checks types, shapes and values, and only then calls a kernel.
// engine/src/backend/nativeAddon.ts describes what they do; kernels assume that what they get is right.
#include <algorithm>
#include <cmath>
#include <new>

#include "arguments.h"
#include "gemm/peak.h"
#include "gemm/product.h"
#include "kernels/kernels.h"
#include "layers/embedding.h"
#include "layers/lora_linear.h"
#include "layers/singular_values.h"

namespace relora {

namespace {

constexpr napi_type_tag packed_base_tag = {0x6b1f0c0de2a94d57, 0x9d3ab27714c0e8f1};
constexpr size_t threads_max = 1024;

/// What one JavaScript environment keeps: freed with it, so worker threads and tests do not share state.
struct Instance {
  std::unique_ptr<Context> context;
};

struct Call {
  napi_env env;
  Arguments& arguments;
  Instance& instance;

  /// Until configured: the best set and all CPUs.
  Context& context() const {
    if (!instance.context) {
      instance.context = std::make_unique<Context>(supported_instruction_sets().front(), usable_cpus());
    }
    return *instance.context;
  }
};

using Function = napi_value (*)(const Call&);

struct Entry {
  const char* name;
  size_t arguments;
  Function function;
};

napi_value undefined() { return nullptr; }

napi_value number(napi_env env, double value) {
  napi_value result;
  napi_create_double(env, value, &result);
  return result;
}

napi_value text(napi_env env, std::string_view value) {
  napi_value result;
  napi_create_string_utf8(env, value.data(), value.size(), &result);
  return result;
}

napi_value describe(const Call& call) {
  napi_value result, sets;
  napi_create_object(call.env, &result);
  napi_create_array(call.env, &sets);
  uint32_t index = 0;
  for (const InstructionSet set : supported_instruction_sets()) {
    napi_set_element(call.env, sets, index++, text(call.env, name_of(set)));
  }
  napi_set_named_property(call.env, result, "instructionSets", sets);
  napi_set_named_property(call.env, result, "threadsMax", number(call.env, usable_cpus()));
  napi_set_named_property(call.env, result, "cpuModel", text(call.env, cpu_model()));
  return result;
}

napi_value configure(const Call& call) {
  Arguments& in = call.arguments;
  const napi_value options = in.object("options");
  const std::string wanted = in.text_option(options, "instructionSet");
  const double threads = in.option(options, "threads");
  if (!(threads >= 1 && threads <= threads_max) || std::trunc(threads) != threads) {
    in.refuse("options.threads must be an integer from 1 to " + std::to_string(threads_max) + ", got " + std::to_string(threads));
  }
  std::string offered;
  for (const InstructionSet set : supported_instruction_sets()) {
    if (name_of(set) == wanted) {
      call.instance.context = std::make_unique<Context>(set, static_cast<unsigned>(threads));
      return undefined();
    }
    offered += (offered.empty() ? "" : ", ") + std::string(name_of(set));
  }
  in.refuse("options.instructionSet '" + wanted + "' is not offered by this CPU, which has " + offered);
}

napi_value matmul(const Call& call) {
  Arguments& in = call.arguments;
  float* c = in.output("c");
  const float *a = in.input("a"), *b = in.input("b");
  const size_t batch = in.dimension("batch"), m = in.dimension("m"), n = in.dimension("n"), k = in.dimension("k");
  const bool transpose_a = in.boolean("transposeA"), transpose_b = in.boolean("transposeB");
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
  // A batch of small products gives each to one thread; large ones are shared by all threads, one after the other.
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
  const float* w = in.input("w");
  const size_t in_features = in.dimension("inFeatures"), out_features = in.dimension("outFeatures");
  const Precision precision = in.precision("precision");
  in.shape(w, {in_features, out_features}, "inFeatures * outFeatures");

  auto handle = std::make_unique<BaseHandle>();
  handle->base = std::make_unique<PackedBase>(call.context(), call.context().product_kernel(precision), w, in_features, out_features);
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

const PackedBase& packed_base(const Call& call) {
  const auto* handle = call.arguments.external<BaseHandle>("base", packed_base_tag);
  if (!handle->base) call.arguments.refuse("base has been released");
  return *handle->base;
}

/// A base read by kernels of another set would be misread: its packing belongs to the set it was made with.
const PackedBase& usable_base(const Call& call) {
  const PackedBase& base = packed_base(call);
  const auto is_ours = [&](Precision precision) { return base.kernel == &call.context().product_kernel(precision); };
  if (!is_ours(Precision::float32) && !is_ours(Precision::bfloat16)) {
    call.arguments.refuse("base was packed for another instruction set than the one configured now");
  }
  return base;
}

napi_value packed_base_bytes(const Call& call) { return number(call.env, static_cast<double>(packed_base(call).bytes)); }

napi_value release_base(const Call& call) {
  auto* handle = call.arguments.external<BaseHandle>("base", packed_base_tag);
  tell_collector(call.env, *handle, -1);
  handle->base.reset();
  return undefined();
}

napi_value lora_linear_forward(const Call& call) {
  Arguments& in = call.arguments;
  float *y = in.output("y"), *xa = in.output("xa");
  const float* x = in.input("x");
  const PackedBase& base = usable_base(call);
  const float *a = in.input("a"), *b = in.input("b");
  const float scale = static_cast<float>(in.number("scale"));
  const size_t rows = in.dimension("rows"), rank = in.dimension("rank", 0);
  in.shape(y, {rows, base.out}, "rows * outFeatures");
  in.shape(xa, {rows, rank}, "rows * rank");
  in.shape(x, {rows, base.in}, "rows * inFeatures");
  in.shape(a, {base.in, rank}, "inFeatures * rank");
  in.shape(b, {rank, base.out}, "rank * outFeatures");
  in.outputs_stand_alone();
  relora::lora_linear_forward(call.context(), y, xa, x, base, a, b, scale, rows, rank);
  return undefined();
}

napi_value lora_linear_backward(const Call& call) {
  Arguments& in = call.arguments;
  float *dx = in.output("dx"), *da = in.output("da"), *db = in.output("db");
  const float *dy = in.input("dy"), *x = in.input("x"), *xa = in.input("xa");
  const PackedBase& base = usable_base(call);
  const float *a = in.input("a"), *b = in.input("b");
  const float scale = static_cast<float>(in.number("scale"));
  const size_t rows = in.dimension("rows"), rank = in.dimension("rank", 0);
  in.shape(dx, {rows, base.in}, "rows * inFeatures");
  in.shape(da, {base.in, rank}, "inFeatures * rank");
  in.shape(db, {rank, base.out}, "rank * outFeatures");
  in.shape(dy, {rows, base.out}, "rows * outFeatures");
  if (rank > 0) in.shape(x, {rows, base.in}, "rows * inFeatures");  // with rank 0 the backward pass does not read x
  in.shape(xa, {rows, rank}, "rows * rank");
  in.shape(a, {base.in, rank}, "inFeatures * rank");
  in.shape(b, {rank, base.out}, "rank * outFeatures");
  in.outputs_stand_alone();
  relora::lora_linear_backward(call.context(), {dx, da, db}, dy, x, xa, base, a, b, scale, rows, rank);
  return undefined();
}

napi_value merge_adapter(const Call& call) {
  Arguments& in = call.arguments;
  float* merged = in.output("merged");
  const float *w = in.input("w"), *a = in.input("a"), *b = in.input("b");
  const float scale = static_cast<float>(in.number("scale"));
  const size_t in_features = in.dimension("inFeatures"), rank = in.dimension("rank"), out = in.dimension("outFeatures");
  in.shape(merged, {in_features, out}, "inFeatures * outFeatures");
  in.shape(w, {in_features, out}, "inFeatures * outFeatures");
  in.shape(a, {in_features, rank}, "inFeatures * rank");
  in.shape(b, {rank, out}, "rank * outFeatures");
  in.outputs_stand_alone();

  const MergeResult merge = call.context().kernels.merge_adapter(call.context(), merged, w, a, b, scale, in_features, rank, out);
  napi_value result, finite;
  napi_create_object(call.env, &result);
  napi_get_boolean(call.env, merge.finite, &finite);
  napi_set_named_property(call.env, result, "finite", finite);
  napi_set_named_property(call.env, result, "deltaNorm", number(call.env, merge.delta_norm));
  return result;
}

napi_value rms_norm_forward(const Call& call) {
  Arguments& in = call.arguments;
  float *y = in.output("y"), *rstd = in.output("rstd");
  const float *x = in.input("x"), *gain = in.input("gain");
  const size_t rows = in.dimension("rows"), dim = in.dimension("dim");
  const float epsilon = static_cast<float>(in.number("epsilon"));
  in.shape(y, {rows, dim}, "rows * dim");
  in.shape(rstd, {rows}, "rows");
  in.shape(x, {rows, dim}, "rows * dim");
  in.shape(gain, {dim}, "dim");
  in.outputs_stand_alone();
  call.context().kernels.rms_norm_forward(call.context(), y, rstd, x, gain, rows, dim, epsilon);
  return undefined();
}

napi_value rms_norm_backward(const Call& call) {
  Arguments& in = call.arguments;
  float *dx = in.output("dx"), *dgain = in.output("dgain");
  const float *dy = in.input("dy"), *x = in.input("x"), *gain = in.input("gain"), *rstd = in.input("rstd");
  const size_t rows = in.dimension("rows"), dim = in.dimension("dim");
  in.shape(dx, {rows, dim}, "rows * dim");
  in.shape(dgain, {dim}, "dim");
  in.shape(dy, {rows, dim}, "rows * dim");
  in.shape(x, {rows, dim}, "rows * dim");
  in.shape(gain, {dim}, "dim");
  in.shape(rstd, {rows}, "rows");
  in.outputs_stand_alone();
  call.context().kernels.rms_norm_backward(call.context(), dx, dgain, dy, x, gain, rstd, rows, dim);
  return undefined();
}

napi_value rotary(const Call& call) {
  Arguments& in = call.arguments;
  float* y = in.output("y");
  const float *x = in.input("x"), *cosines = in.input("cos"), *sines = in.input("sin");
  RotaryShape shape{};
  shape.batch = in.dimension("batch");
  shape.time = in.dimension("time");
  shape.heads = in.dimension("heads");
  shape.head_dim = in.dimension("headDim");
  shape.first_position = in.dimension("firstPosition", 0);
  const bool inverse = in.boolean("inverse");
  if (shape.head_dim % 2 != 0) in.refuse("headDim must be even, got " + std::to_string(shape.head_dim));
  in.shape(y, {shape.batch, shape.time, shape.heads, shape.head_dim}, "batch * time * heads * headDim");
  in.shape(x, {shape.batch, shape.time, shape.heads, shape.head_dim}, "batch * time * heads * headDim");
  in.shape(cosines, {shape.first_position + shape.time, shape.head_dim / 2}, "(firstPosition + time) * headDim / 2", true);
  in.shape(sines, {shape.first_position + shape.time, shape.head_dim / 2}, "(firstPosition + time) * headDim / 2", true);
  in.outputs_stand_alone();
  call.context().kernels.rotary(call.context(), y, x, cosines, sines, shape, inverse);
  return undefined();
}

AttentionShape attention_shape(Arguments& in) {
  AttentionShape shape{};
  shape.batch = in.dimension("batch");
  shape.time = in.dimension("time");
  shape.heads = in.dimension("heads");
  shape.kv_heads = in.dimension("kvHeads");
  shape.head_dim = in.dimension("headDim");
  shape.scale = static_cast<float>(in.number("scale"));
  if (shape.heads % shape.kv_heads != 0) {
    in.refuse("heads must be a multiple of kvHeads, got " + std::to_string(shape.heads) + " and " + std::to_string(shape.kv_heads));
  }
  return shape;
}

void check_attention(const Arguments& in, const AttentionShape& s, std::initializer_list<const float*> of_queries,
                     std::initializer_list<const float*> of_keys, const float* log_sum_exp) {
  for (const float* array : of_queries) in.shape(array, {s.batch, s.time, s.heads, s.head_dim}, "batch * time * heads * headDim");
  for (const float* array : of_keys) in.shape(array, {s.batch, s.time, s.kv_heads, s.head_dim}, "batch * time * kvHeads * headDim");
  in.shape(log_sum_exp, {s.batch, s.heads, s.time}, "batch * heads * time");
  in.outputs_stand_alone();
}

napi_value attention_forward(const Call& call) {
  Arguments& in = call.arguments;
  float *out = in.output("out"), *log_sum_exp = in.output("logSumExp");
  const float *q = in.input("q"), *k = in.input("k"), *v = in.input("v");
  const AttentionShape shape = attention_shape(in);
  const Precision precision = in.precision("precision");
  check_attention(in, shape, {out, q}, {k, v}, log_sum_exp);
  call.context().kernels.attention_forward(call.context(), out, log_sum_exp, q, k, v, shape, precision);
  return undefined();
}

napi_value attention_backward(const Call& call) {
  Arguments& in = call.arguments;
  float *dq = in.output("dq"), *dk = in.output("dk"), *dv = in.output("dv");
  const float *dout = in.input("dout"), *q = in.input("q"), *k = in.input("k"), *v = in.input("v"), *out = in.input("out");
  const float* log_sum_exp = in.input("logSumExp");
  const AttentionShape shape = attention_shape(in);
  const Precision precision = in.precision("precision");
  check_attention(in, shape, {dq, dout, q, out}, {dk, dv, k, v}, log_sum_exp);
  call.context().kernels.attention_backward(call.context(), dq, dk, dv, dout, q, k, v, out, log_sum_exp, shape, precision);
  return undefined();
}

napi_value swiglu_forward(const Call& call) {
  Arguments& in = call.arguments;
  float* h = in.output("h");
  const float *gate = in.input("gate"), *up = in.input("up");
  const size_t length = in.length(h);
  in.shape(gate, {length}, "length of h");
  in.shape(up, {length}, "length of h");
  in.outputs_stand_alone();
  call.context().kernels.swiglu_forward(call.context(), h, gate, up, length);
  return undefined();
}

napi_value swiglu_backward(const Call& call) {
  Arguments& in = call.arguments;
  float *dgate = in.output("dgate"), *dup = in.output("dup");
  const float *dh = in.input("dh"), *gate = in.input("gate"), *up = in.input("up");
  const size_t length = in.length(dgate);
  for (const float* array : {static_cast<const float*>(dup), dh, gate, up}) in.shape(array, {length}, "length of dgate");
  in.outputs_stand_alone();
  call.context().kernels.swiglu_backward(call.context(), dgate, dup, dh, gate, up, length);
  return undefined();
}

napi_value embedding_forward(const Call& call) {
  Arguments& in = call.arguments;
  float* y = in.output("y");
  const float* table = in.input("table");
  const int32_t* ids = in.ids("ids");
  const size_t rows = in.dimension("rows"), vocabulary = in.dimension("vocabulary"), dim = in.dimension("dim");
  in.shape(y, {rows, dim}, "rows * dim");
  in.shape(table, {vocabulary, dim}, "vocabulary * dim");
  in.shape(ids, {rows}, "rows");
  in.values(ids, 0, static_cast<int64_t>(vocabulary));
  in.outputs_stand_alone();
  relora::embedding_forward(call.context(), y, table, ids, rows, dim);
  return undefined();
}

napi_value embedding_backward(const Call& call) {
  Arguments& in = call.arguments;
  float* dtable = in.output("dtable");
  const float* dy = in.input("dy");
  const int32_t* ids = in.ids("ids");
  const size_t rows = in.dimension("rows"), vocabulary = in.dimension("vocabulary"), dim = in.dimension("dim");
  in.shape(dtable, {vocabulary, dim}, "vocabulary * dim");
  in.shape(dy, {rows, dim}, "rows * dim");
  in.shape(ids, {rows}, "rows");
  in.values(ids, 0, static_cast<int64_t>(vocabulary));
  in.outputs_stand_alone();
  relora::embedding_backward(call.context(), dtable, dy, ids, rows, vocabulary, dim);
  return undefined();
}

napi_value head_cross_entropy(const Call& call) {
  Arguments& in = call.arguments;
  float* losses = in.output("losses");
  float *dx = in.output_or_null("dx"), *dhead = in.output_or_null("dhead");
  const float *x = in.input("x"), *head = in.input("head");
  const int32_t* targets = in.ids("targets");
  HeadShape shape{};
  shape.rows = in.dimension("rows");
  shape.dim = in.dimension("dim");
  shape.vocabulary = in.dimension("vocabulary");
  shape.gradient_scale = static_cast<float>(in.number("gradientScale"));
  const Precision precision = in.precision("precision");
  if (dx == nullptr && dhead != nullptr) in.refuse("dhead must be null when dx is null");
  in.shape(losses, {shape.rows}, "rows");
  in.shape(dx, {shape.rows, shape.dim}, "rows * dim");
  in.shape(dhead, {shape.vocabulary, shape.dim}, "vocabulary * dim");
  in.shape(x, {shape.rows, shape.dim}, "rows * dim");
  in.shape(head, {shape.vocabulary, shape.dim}, "vocabulary * dim");
  in.shape(targets, {shape.rows}, "rows");
  in.values(targets, -1, static_cast<int64_t>(shape.vocabulary));
  in.outputs_stand_alone();
  call.context().kernels.head_cross_entropy(call.context(), losses, dx, dhead, x, head, targets, shape, precision);
  return undefined();
}

napi_value sum_squares(const Call& call) {
  const float* x = call.arguments.input("x");
  return number(call.env, call.context().kernels.sum_squares(call.context(), x, call.arguments.length(x)));
}

napi_value adamw_in_place(const Call& call) {
  Arguments& in = call.arguments;
  float *parameter = in.output("parameter"), *first = in.output("firstMoment"), *second = in.output("secondMoment");
  const float* gradient = in.input("gradient");
  const napi_value options = in.object("options");
  const size_t length = in.length(parameter);
  for (const float* array : {static_cast<const float*>(first), static_cast<const float*>(second), gradient}) {
    in.shape(array, {length}, "length of parameter");
  }
  in.outputs_stand_alone();
  const auto option = [&](const char* name) { return in.option(options, name); };
  call.context().kernels.adamw_in_place(
      call.context(), parameter, first, second, gradient, length,
      {option("learningRate"), option("beta1"), option("beta2"), option("epsilon"), option("weightDecay"),
       option("correction1"), option("correction2"), option("gradientScale")});
  return undefined();
}

napi_value add_in_place(const Call& call) {
  Arguments& in = call.arguments;
  float* accumulator = in.output("accumulator");
  const float* x = in.input("x");
  in.shape(x, {in.length(accumulator)}, "length of accumulator");
  in.outputs_stand_alone();
  call.context().kernels.add_in_place(call.context(), accumulator, x, in.length(accumulator));
  return undefined();
}

napi_value singular_values(const Call& call) {
  Arguments& in = call.arguments;
  const float* matrix = in.input("matrix");
  const size_t rows = in.dimension("rows"), columns = in.dimension("columns");
  in.shape(matrix, {rows, columns}, "rows * columns");
  const std::vector<double> values = relora::singular_values(call.context(), matrix, rows, columns);
  napi_value buffer, result;
  void* data;
  napi_create_arraybuffer(call.env, values.size() * sizeof(double), &data, &buffer);
  std::copy(values.begin(), values.end(), static_cast<double*>(data));
  napi_create_typedarray(call.env, napi_float64_array, values.size(), buffer, 0, &result);
  return result;
}

napi_value measure_peak(const Call& call) {
  Arguments& in = call.arguments;
  const Precision precision = in.precision("precision");
  const double milliseconds = in.number("milliseconds");
  if (!(milliseconds > 0 && milliseconds <= 60000)) in.refuse("milliseconds must be in (0, 60000], got " + std::to_string(milliseconds));
  return number(call.env, relora::measure_peak(call.context(), call.context().product_kernel(precision), milliseconds));
}

constexpr Entry entries[] = {
    {"describe", 0, describe},
    {"configure", 1, configure},
    {"matmul", 10, matmul},
    {"packBase", 4, pack_base},
    {"packedBaseBytes", 1, packed_base_bytes},
    {"releaseBase", 1, release_base},
    {"loraLinearForward", 9, lora_linear_forward},
    {"loraLinearBackward", 12, lora_linear_backward},
    {"mergeAdapter", 8, merge_adapter},
    {"rmsNormForward", 7, rms_norm_forward},
    {"rmsNormBackward", 8, rms_norm_backward},
    {"rotary", 10, rotary},
    {"attentionForward", 12, attention_forward},
    {"attentionBackward", 16, attention_backward},
    {"swigluForward", 3, swiglu_forward},
    {"swigluBackward", 5, swiglu_backward},
    {"embeddingForward", 6, embedding_forward},
    {"embeddingBackward", 6, embedding_backward},
    {"headCrossEntropy", 11, head_cross_entropy},
    {"sumSquares", 1, sum_squares},
    {"adamWInPlace", 5, adamw_in_place},
    {"addInPlace", 2, add_in_place},
    {"singularValues", 3, singular_values},
    {"measurePeak", 2, measure_peak},
};

/// Every call passes here: C++ exceptions become JavaScript errors of the matching class.
napi_value enter(napi_env env, napi_callback_info info) {
  void *data, *instance_data;
  napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data);
  napi_get_instance_data(env, &instance_data);
  const Entry& entry = *static_cast<const Entry*>(data);
  Instance& instance = *static_cast<Instance*>(instance_data);
  try {
    Arguments arguments(env, info, entry.name, entry.arguments);
    return entry.function({env, arguments, instance});
  } catch (const BadType& error) {
    napi_throw_type_error(env, "ERR_INVALID_ARG_TYPE", error.what());
  } catch (const BadValue& error) {
    napi_throw_range_error(env, "ERR_INVALID_ARG_VALUE", error.what());
  } catch (const std::bad_alloc&) {
    napi_throw_error(env, "ERR_OUT_OF_MEMORY", (std::string(entry.name) + ": not enough memory").c_str());
  } catch (const std::exception& error) {
    napi_throw_error(env, nullptr, (std::string(entry.name) + ": " + error.what()).c_str());
  }
  return nullptr;
}

}  // namespace

}  // namespace relora

NAPI_MODULE_INIT() {
  using namespace relora;
  // Freed when the environment goes, which joins the pool's threads.
  napi_set_instance_data(
      env, new Instance, [](napi_env, void* data, void*) { delete static_cast<Instance*>(data); }, nullptr);
  for (const Entry& entry : entries) {
    napi_value function;
    napi_create_function(env, entry.name, NAPI_AUTO_LENGTH, enter, const_cast<Entry*>(&entry), &function);
    napi_set_named_property(env, exports, entry.name, function);
  }
  return exports;
}
