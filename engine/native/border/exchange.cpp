// The border of communication between ranks. Calls wait for other processes, so they run in a thread of the pool and do not block the event
// loop: a waiting process still shows that it is alive, and can be stopped.
#include <memory>
#include <utility>

#include "../exchange/mpi.h"
#include "../exchange/shared_memory.h"
#include "call.h"

namespace relora {

namespace {

constexpr napi_type_tag exchange_tag = {0x2c7f90b1f6d24e83, 0x8a51d0c94be36f17};

struct Handle {
  std::unique_ptr<Exchange> exchange;
  /// Of the pending sum.
  Written written;
  /// One call at a time, in the same order as on the other ranks.
  bool is_busy = false;
};

napi_value wrapped(const Call& call, std::unique_ptr<Handle> handle) {
  const auto finalize = [](napi_env, void* data, void*) { delete static_cast<Handle*>(data); };
  napi_value object;
  napi_create_object(call.env, &object);
  napi_wrap(call.env, object, handle.release(), finalize, nullptr, nullptr);
  napi_type_tag_object(call.env, object, &exchange_tag);
  return object;
}

napi_value open_shared_memory(const Call& call) {
  Arguments& in = call.arguments;
  const size_t file = in.dimension("file", 0);
  const size_t rank = in.dimension("rank", 0);
  const size_t size = in.dimension("size");
  if (rank >= size) in.refuse("rank must be below size " + std::to_string(size) + ", got " + std::to_string(rank));
  auto handle = std::make_unique<Handle>();
  handle->exchange = std::make_unique<SharedMemory>(static_cast<int>(file), static_cast<uint32_t>(rank), static_cast<uint32_t>(size));
  return wrapped(call, std::move(handle));
}

/// {rank, size} and the exchange itself.
napi_value open_mpi(const Call& call) {
  const std::string library = call.arguments.text("library");
  auto handle = std::make_unique<Handle>();
  handle->exchange = relora::open_mpi(library.c_str());
  const Exchange& exchange = *handle->exchange;
  napi_value result;
  napi_create_object(call.env, &result);
  napi_set_named_property(call.env, result, "rank", number(call.env, exchange.rank()));
  napi_set_named_property(call.env, result, "size", number(call.env, exchange.size()));
  napi_set_named_property(call.env, result, "exchange", wrapped(call, std::move(handle)));
  return result;
}

/// A pending call. Its arguments are kept alive until it is done.
struct Work {
  Handle* handle = nullptr;
  napi_async_work work = nullptr;
  napi_deferred deferred = nullptr;
  napi_ref kept[3] = {};
  float* values = nullptr;
  TravelType type = TravelType::float32;
  uint8_t* all = nullptr;
  const uint8_t* own = nullptr;
  size_t count = 0;
  std::string problem;
};

void execute(napi_env, void* data) {
  Work& work = *static_cast<Work*>(data);
  try {
    if (work.values != nullptr) work.handle->exchange->sum(work.values, work.count, work.type, work.handle->written);
    else work.handle->exchange->gather(work.all, work.own, work.count);
  } catch (const std::exception& error) {
    work.problem = error.what();
  }
}

void complete(napi_env env, napi_status, void* data) {
  const std::unique_ptr<Work> work(static_cast<Work*>(data));
  work->handle->is_busy = false;
  napi_value result;
  if (work->problem.empty()) {
    napi_get_undefined(env, &result);
    napi_resolve_deferred(env, work->deferred, result);
  } else {
    napi_value message, code;
    napi_create_string_utf8(env, work->problem.data(), work->problem.size(), &message);
    napi_create_string_utf8(env, "ERR_MEMBER_LOST", NAPI_AUTO_LENGTH, &code);
    napi_create_error(env, code, message, &result);
    napi_reject_deferred(env, work->deferred, result);
  }
  for (const napi_ref kept : work->kept)
    if (kept != nullptr) napi_delete_reference(env, kept);
  napi_delete_async_work(env, work->work);
}

napi_value start(const Call& call, std::unique_ptr<Work> work) {
  if (std::exchange(work->handle->is_busy, true)) call.arguments.refuse("the exchange before this one is not over");
  napi_value promise, name;
  napi_create_promise(call.env, &work->deferred, &promise);
  napi_create_string_utf8(call.env, "relora exchange", NAPI_AUTO_LENGTH, &name);
  napi_create_async_work(call.env, nullptr, name, execute, complete, work.get(), &work->work);
  napi_queue_async_work(call.env, work->work);
  work.release();
  return promise;
}

Handle* handle_of(Arguments& in) { return in.external<Handle>("exchange", exchange_tag, "openSharedMemory"); }

void keep(const Call& call, Work& work, size_t index, napi_value value) {
  napi_create_reference(call.env, value, 1, &work.kept[index]);
}

napi_value exchange_sum(const Call& call) {
  Arguments& in = call.arguments;
  auto work = std::make_unique<Work>();
  const napi_value exchange = in.upcoming();
  work->handle = handle_of(in);
  const napi_value array = in.upcoming();
  const auto values = in.output("values");
  work->values = values.data;
  work->count = values.length;
  const std::string type = in.text("type");
  if (type == "bfloat16") work->type = TravelType::bfloat16;
  else if (type != "float32") in.refuse("type must be 'float32' or 'bfloat16', got '" + type + "'");
  const size_t written = in.dimension("written", 0);
  if (written > work->count) in.refuse("written must be at most " + std::to_string(work->count) + ", got " + std::to_string(written));
  if (!work->handle->is_busy) work->handle->written.begin(written);
  keep(call, *work, 0, exchange);
  keep(call, *work, 1, array);
  return start(call, std::move(work));
}

napi_value exchange_gather(const Call& call) {
  Arguments& in = call.arguments;
  auto work = std::make_unique<Work>();
  const napi_value exchange = in.upcoming();
  work->handle = handle_of(in);
  const napi_value whole = in.upcoming();
  const auto all = in.bytes("all", true);
  const napi_value part = in.upcoming();
  const auto own = in.bytes("own", false);
  in.outputs_stand_alone();
  in.shape(all, {work->handle->exchange->size(), own.length}, "size * own.length");
  work->all = all.data;
  work->own = own.data;
  work->count = own.length;
  keep(call, *work, 0, exchange);
  keep(call, *work, 1, whole);
  keep(call, *work, 2, part);
  return start(call, std::move(work));
}

napi_value exchange_reach(const Call& call) {
  Handle* const handle = handle_of(call.arguments);
  handle->written.reach(call.arguments.dimension("count", 0));
  return undefined();
}

napi_value exchange_abandon(const Call& call) {
  handle_of(call.arguments)->written.abandon();
  return undefined();
}

napi_value exchange_leave(const Call& call) {
  Handle* const handle = handle_of(call.arguments);
  handle->written.abandon();
  handle->exchange->leave();
  return undefined();
}

constexpr Entry entries[] = {
    {"openSharedMemory", 3, open_shared_memory},
    {"openMpi", 1, open_mpi},
    {"exchangeSum", 4, exchange_sum},
    {"exchangeReach", 2, exchange_reach},
    {"exchangeAbandon", 1, exchange_abandon},
    {"exchangeGather", 3, exchange_gather},
    {"exchangeLeave", 1, exchange_leave},
};

}  // namespace

constinit const std::span<const Entry> exchange_entries = entries;

}  // namespace relora
