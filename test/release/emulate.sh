#!/bin/bash
# Runs its arguments so that programs for arm64 are executed by qemu, as RELORA_TEST_ARM_CPU (default: a Neoverse N1). Uses its own user
# namespace (Linux >= 6.7) with its own binfmt_misc, so that Node.js for arm64 can start further programs and nothing on the machine
# changes. Needs qemu-user and a cross compiler's libraries.
set -eu
export given=$PATH
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
here=$(cd "$(dirname "$0")" && pwd)
runner=$(mktemp -d)/qemu
gcc -O1 -DCPU="\"${RELORA_TEST_ARM_CPU:-neoverse-n1}\"" -o "$runner" "$here/qemuRunner.c"
export runner
exec unshare --user --map-root-user --mount bash -c '
set -e
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
magic="\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\xb7\\x00"
mask="\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff"
printf %s ":arm64:M::$magic:$mask:$runner:P" > /proc/sys/fs/binfmt_misc/register
exec env PATH="$given" "$@"' bash "$@"
