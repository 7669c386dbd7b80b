// Who last wrote and read each byte, and whether a barrier separates that from the current access.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace relora::model {

/// Blocks are numbered through the life of the model; writes by the host come before all of them.
constexpr uint32_t run_of_host = 1, first_run = 2;

/// When and by whom a byte was accessed. Barriers of the block and of the warp are counted.
struct Touch {
  uint32_t run = 0;  // 0: never
  uint32_t block_barriers = 0, warp_barriers = 0;
  uint16_t thread = 0;
  bool many_lanes = false, many_warps = false, many_blocks = false;
};

struct ShadowRecord {
  Touch write, read;
};

enum class Finding { none, uninitialized, race };

/// Checks one access and records it. `launch_begin`: the run of the first block of this launch; earlier ones have completed.
Finding touch(ShadowRecord& record, const Touch& now, uint32_t launch_begin, bool is_write, bool is_shared);

}  // namespace relora::model
