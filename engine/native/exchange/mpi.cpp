#include "mpi.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace relora {

namespace {

/// Size of a piece of a sum: received data stays in the processor's cache, and byte counts fit MPI's int.
constexpr size_t piece_floats = size_t{1} << 18;
/// Bytes gathered at a time from each member.
constexpr size_t piece_bytes = size_t{1} << 20;

template <class Function>
Function symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (found == nullptr) throw std::runtime_error(std::string("this MPI has no ") + name);
  return reinterpret_cast<Function>(found);
}

/// The two families represent handles by different types, and have no common binary interface.
struct OpenMpi {
  using Handle = void*;
  Handle world, byte;
  explicit OpenMpi(void* library)
      : world(symbol<void*>(library, "ompi_mpi_comm_world")), byte(symbol<void*>(library, "ompi_mpi_byte")) {}
};
struct Mpich {
  using Handle = int;
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
    exchange_ = symbol<Alltoallv>(library, "MPI_Alltoallv");
    collect_ = symbol<Allgatherv>(library, "MPI_Allgatherv");
    gather_ = symbol<Allgather>(library, "MPI_Allgather");
    finalize_ = symbol<int (*)()>(library, "MPI_Finalize");
    lengths_.resize(size_);
    places_.resize(size_);
    own_lengths_.resize(size_);
    own_places_.resize(size_);
  }

  void sum(float* values, size_t count, TravelType type) override {
    for (size_t done = 0; done < count; done += piece_floats) {
      const size_t length = std::min(piece_floats, count - done);
      if (type == TravelType::float32) {
        sum_piece(values + done, length);
      } else {
        packed_.resize(length);
        pack(packed_.data(), values + done, length);
        sum_piece(packed_.data(), length);
        unpack(values + done, packed_.data(), length);
      }
    }
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
  using Alltoallv = int (*)(const void*, const int*, const int*, Handle, void*, const int*, const int*, Handle, Handle);
  using Allgatherv = int (*)(const void*, int, Handle, void*, const int*, const int*, Handle, Handle);
  using Allgather = int (*)(const void*, int, Handle, void*, int, Handle, Handle);

  static void check(int error, const char* call) {
    if (error != 0) throw MemberLost(std::string(call) + " failed with " + std::to_string(error));
  }

  /// Each member receives its part from all, adds it rank by rank, and sends the sum to all: the same traffic as in a ring.
  template <class Packed>
  void sum_piece(Packed* values, size_t count) {
    constexpr int value_bytes = sizeof(Packed);
    for (uint32_t rank = 0; rank < size_; rank++) {
      const auto [first, end] = part_of<Packed>(rank, size_, count);
      lengths_[rank] = static_cast<int>(end - first) * value_bytes;
      places_[rank] = static_cast<int>(first) * value_bytes;
    }
    const size_t length = static_cast<size_t>(lengths_[rank_] / value_bytes);
    received_.resize(size_ * length * sizeof(Packed));
    Packed* received = reinterpret_cast<Packed*>(received_.data());
    for (uint32_t rank = 0; rank < size_; rank++) {
      own_lengths_[rank] = lengths_[rank_];
      own_places_[rank] = static_cast<int>(rank) * lengths_[rank_];
    }
    check(exchange_(values, lengths_.data(), places_.data(), family_.byte, received, own_lengths_.data(), own_places_.data(),
                    family_.byte, family_.world),
          "MPI_Alltoallv");
    add_parts(received, length, size_, [&](uint32_t rank) { return received + rank * length; });
    check(collect_(received, lengths_[rank_], family_.byte, values, lengths_.data(), places_.data(), family_.byte, family_.world),
          "MPI_Allgatherv");
  }

  Family family_;
  Alltoallv exchange_;
  Allgatherv collect_;
  Allgather gather_;
  int (*finalize_)();
  std::vector<uint8_t> received_;
  std::vector<uint16_t> packed_;
  /// In bytes: of each member's part, and of what this member receives from each.
  std::vector<int> lengths_, places_, own_lengths_, own_places_;
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
