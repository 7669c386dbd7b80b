#include "shadow.h"

namespace relora::model {

namespace {

constexpr unsigned lanes = 32;

/// For touches of the same block: whether `before` has certainly completed when `now` happens.
bool is_ordered(const Touch& before, const Touch& now) {
  if (before.block_barriers != now.block_barriers) return true;
  if (before.many_warps || before.thread / lanes != now.thread / lanes) return false;
  if (before.warp_barriers != now.warp_barriers) return true;
  return !before.many_lanes && before.thread == now.thread;
}

bool races(const Touch& before, const Touch& now, uint32_t launch_begin) {
  if (before.run < launch_begin) return false;
  return before.many_blocks || before.run != now.run || !is_ordered(before, now);
}

/// Reads are merged into one record, which identifies the reader as exactly as a later write needs to know.
void note_read(Touch& read, const Touch& now, uint32_t launch_begin) {
  if (read.run < launch_begin) {
    read = now;
  } else if (read.many_blocks || read.run != now.run) {
    read = now;
    read.many_blocks = true;
  } else if (read.block_barriers != now.block_barriers) {
    read = now;
  } else {
    const bool other_warp = read.many_warps || read.thread / lanes != now.thread / lanes;
    const bool other_lane = read.warp_barriers == now.warp_barriers && (read.many_lanes || read.thread != now.thread);
    read = now;
    read.many_warps = other_warp;
    read.many_lanes = other_lane;
  }
}

}  // namespace

Finding touch(ShadowRecord& record, const Touch& now, uint32_t launch_begin, bool is_write, bool is_shared) {
  if (is_shared && record.write.run != now.run) record.write = {};
  if (is_shared && record.read.run != now.run) record.read = {};
  if (!is_write) {
    if (record.write.run == 0) return Finding::uninitialized;
    const bool race = races(record.write, now, launch_begin);
    note_read(record.read, now, launch_begin);
    return race ? Finding::race : Finding::none;
  }
  const bool race = races(record.write, now, launch_begin) || races(record.read, now, launch_begin);
  record.write = now;
  return race ? Finding::race : Finding::none;
}

}  // namespace relora::model
