// Who last wrote and read each byte, and whether a barrier stands between that and what comes now.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace relora::model {

/// Blocks that have run are counted through the life of the model; what the host writes comes before them all.
constexpr uint32_t run_of_host = 1, first_run = 2;

/// When and by whom a byte was touched. Barriers of the block and of the warp are counted.
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

/// Looks at one access and notes it. `launch_begin`: the run of the first block of this launch; earlier ones are over.
Finding touch(ShadowRecord& record, const Touch& now, uint32_t launch_begin, bool is_write, bool is_shared);

}  // namespace relora::model
