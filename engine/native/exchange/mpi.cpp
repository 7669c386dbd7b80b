#include "mpi.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

namespace relora {

namespace {

/// Size of a piece of a sum: received data stays in the processor's cache, and byte counts fit MPI's int.
constexpr size_t piece_floats = size_t{1} << 18;
/// Bytes gathered at a time from each member.
constexpr size_t piece_bytes = size_t{1} << 20;
/// Pause between two looks for news while other threads compute: short enough to keep a fast network busy, and costs little processor time.
constexpr auto pause = std::chrono::microseconds(100);

template <class Function>
Function symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (found == nullptr) throw std::runtime_error(std::string("this MPI has no ") + name);
  return reinterpret_cast<Function>(found);
}

/// The two families represent handles by different types, and have no common binary interface. `no_status` is MPI_STATUS_IGNORE.
struct OpenMpi {
  using Handle = void*;
  static constexpr uintptr_t no_status = 0;
  Handle world, byte;
  explicit OpenMpi(void* library)
      : world(symbol<void*>(library, "ompi_mpi_comm_world")), byte(symbol<void*>(library, "ompi_mpi_byte")) {}
};
struct Mpich {
  using Handle = int;
  static constexpr uintptr_t no_status = 1;
  Handle world = 0x44000000, byte = 0x4c00010d;
  explicit Mpich(void*) {}
};

template <class Family>
class Mpi : public Exchange {
 public:
  explicit Mpi(void* library) : Exchange(0, 1), family_(library) {
    using Handle = typename Family::Handle;
    constexpr int serialized = 2;  // calls come from the threads of a pool, one at a time
    int provided = 0, rank = 0, size = 1;
    check(symbol<int (*)(int*, char***, int, int*)>(library, "MPI_Init_thread")(nullptr, nullptr, serialized, &provided),
          "MPI_Init_thread");
    if (provided < serialized) throw std::runtime_error("this MPI takes calls from one thread alone");
    check(symbol<int (*)(Handle, int*)>(library, "MPI_Comm_rank")(family_.world, &rank), "MPI_Comm_rank");
    check(symbol<int (*)(Handle, int*)>(library, "MPI_Comm_size")(family_.world, &size), "MPI_Comm_size");
    rank_ = static_cast<uint32_t>(rank);
    size_ = static_cast<uint32_t>(size);
    exchange_ = symbol<Alltoallv>(library, "MPI_Ialltoallv");
    collect_ = symbol<Allgatherv>(library, "MPI_Iallgatherv");
    gather_ = symbol<Allgather>(library, "MPI_Allgather");
    test_ = symbol<Test>(library, "MPI_Test");
    wait_ = symbol<Wait>(library, "MPI_Wait");
    finalize_ = symbol<int (*)()>(library, "MPI_Finalize");
    for (Piece& piece : pieces_) {
      for (std::vector<int>* each : {&piece.lengths, &piece.places, &piece.own_lengths, &piece.own_places}) each->resize(size_);
    }
  }

  void sum(float* values, size_t count, TravelType type, const Written& written) override {
    if (type == TravelType::float32) sum_packed<float>(values, count, written);
    else sum_packed<uint16_t>(values, count, written);
  }

  void gather(uint8_t* all, const uint8_t* own, size_t bytes) override {
    std::vector<uint8_t> piece(size_ * std::min(bytes, piece_bytes));
    for (size_t done = 0; done < bytes; done += piece_bytes) {
      const size_t length = std::min(piece_bytes, bytes - done);
      const int count = static_cast<int>(length);
      check(gather_(own + done, count, family_.byte, piece.data(), count, family_.byte, family_.world), "MPI_Allgather");
      for (uint32_t rank = 0; rank < size_; rank++) memcpy(all + rank * bytes + done, piece.data() + rank * length, length);
    }
  }

  /// Waits for the others, so it is called at the end of a run: if a process exits without it, `mpirun` ends all others.
  void leave() override { check(finalize_(), "MPI_Finalize"); }

 private:
  using Handle = typename Family::Handle;
  using Request = Handle;
  using Alltoallv = int (*)(const void*, const int*, const int*, Handle, void*, const int*, const int*, Handle, Handle, Request*);
  using Allgatherv = int (*)(const void*, int, Handle, void*, const int*, const int*, Handle, Handle, Request*);
  using Allgather = int (*)(const void*, int, Handle, void*, int, Handle, Handle);
  using Test = int (*)(Request*, int*, void*);
  using Wait = int (*)(Request*, void*);

  /// A piece of a sum on its way. MPI reads and writes all of it until its request is done.
  struct Piece {
    std::vector<uint8_t> received;
    std::vector<uint16_t> packed;
    /// In bytes: of each member's part, and of what this member receives from each.
    std::vector<int> lengths, places, own_lengths, own_places;
    float* values = nullptr;
    size_t count = 0;
    Request request{};
    bool is_pending = false;
  };

  static void check(int error, const char* call) {
    if (error != 0) throw MemberLost(std::string(call) + " failed with " + std::to_string(error));
  }

  /// While the sums of one piece are sent, the values of the next one are: all members make the calls in this order, whenever their values
  /// are written.
  template <class Packed>
  void sum_packed(float* values, size_t count, const Written& written) {
    Piece* before = nullptr;
    for (size_t done = 0; done < count; done += piece_floats) {
      Piece& piece = pieces_[done / piece_floats % 2];
      piece.values = values + done;
      piece.count = std::min(piece_floats, count - done);
      const size_t end = done + piece.count;
      while (before != nullptr && before->is_pending && !written.has(end)) look(*before);
      written.await(end);
      send_parts<Packed>(piece);
      if (before != nullptr) finish<Packed>(*before, count, written);
      wait(piece, count, written);
      send_sums<Packed>(piece);
      before = &piece;
    }
    if (before != nullptr) finish<Packed>(*before, count, written);
  }

  template <class Packed>
  static Packed* packed(Piece& piece) {
    if constexpr (std::is_same_v<Packed, float>) return piece.values;
    else return piece.packed.data();
  }

  /// Each member receives its part from all.
  template <class Packed>
  void send_parts(Piece& piece) {
    constexpr int value_bytes = sizeof(Packed);
    if constexpr (!std::is_same_v<Packed, float>) {
      piece.packed.resize(piece.count);
      pack(piece.packed.data(), piece.values, piece.count);
    }
    for (uint32_t rank = 0; rank < size_; rank++) {
      const auto [first, end] = part_of<Packed>(rank, size_, piece.count);
      piece.lengths[rank] = static_cast<int>(end - first) * value_bytes;
      piece.places[rank] = static_cast<int>(first) * value_bytes;
    }
    const int own = piece.lengths[rank_];
    piece.received.resize(size_ * static_cast<size_t>(own));
    for (uint32_t rank = 0; rank < size_; rank++) {
      piece.own_lengths[rank] = own;
      piece.own_places[rank] = static_cast<int>(rank) * own;
    }
    check(exchange_(packed<Packed>(piece), piece.lengths.data(), piece.places.data(), family_.byte, piece.received.data(),
                    piece.own_lengths.data(), piece.own_places.data(), family_.byte, family_.world, &piece.request),
          "MPI_Ialltoallv");
    piece.is_pending = true;
  }

  /// It adds its part rank by rank, and sends the sum to all: together the same traffic as in a ring.
  template <class Packed>
  void send_sums(Piece& piece) {
    const int own = piece.lengths[rank_];
    const size_t length = static_cast<size_t>(own) / sizeof(Packed);
    Packed* received = reinterpret_cast<Packed*>(piece.received.data());
    add_parts(received, length, size_, [&](uint32_t rank) { return received + rank * length; });
    check(collect_(received, own, family_.byte, packed<Packed>(piece), piece.lengths.data(), piece.places.data(), family_.byte,
                   family_.world, &piece.request),
          "MPI_Iallgatherv");
    piece.is_pending = true;
  }

  template <class Packed>
  void finish(Piece& piece, size_t count, const Written& written) {
    wait(piece, count, written);
    if constexpr (!std::is_same_v<Packed, float>) unpack(piece.values, piece.packed.data(), piece.count);
  }

  /// MPI's own wait polls without a pause, so it is left until all values of the sum are written, when no thread computes any longer.
  void wait(Piece& piece, size_t count, const Written& written) {
    while (piece.is_pending && !written.has(count)) look(piece);
    if (!piece.is_pending) return;
    check(wait_(&piece.request, no_status), "MPI_Wait");
    piece.is_pending = false;
  }

  /// Messages proceed only during calls of MPI.
  void look(Piece& piece) {
    int is_done = 0;
    check(test_(&piece.request, &is_done, no_status), "MPI_Test");
    piece.is_pending = is_done == 0;
    if (piece.is_pending) std::this_thread::sleep_for(pause);
  }

  Family family_;
  void* no_status = reinterpret_cast<void*>(Family::no_status);
  Alltoallv exchange_;
  Allgatherv collect_;
  Allgather gather_;
  Test test_;
  Wait wait_;
  int (*finalize_)();
  Piece pieces_[2];
};

}  // namespace

std::unique_ptr<Exchange> open_mpi(const char* name) {
  // Its plug-ins look for its symbols among those of the process.
  void* library = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  if (dlsym(library, "ompi_mpi_comm_world") != nullptr) return std::make_unique<Mpi<OpenMpi>>(library);
  return std::make_unique<Mpi<Mpich>>(library);
}

}  // namespace relora
