#!/bin/bash
# asMusl.sh NODE ARGUMENTS: runs a Node.js of makeMuslNode.sh where the system looks like one with musl to libraries that ask: some read /usr/bin/ldd to choose their binary. In a
# namespace of its own, so that nothing on the machine changes.
set -eu
export given=$PATH
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
folder=$(mktemp -d)
echo '# musl libc' > "$folder/ldd"
export folder
# Debian has no libraries of GCC for musl, which every system with a Node.js for musl has: those of the wheel.
export libraries=$(dirname "$1")/../../lib
exec unshare --user --map-root-user --mount bash -c '
set -e
mount --bind "$folder/ldd" /usr/bin/ldd
exec env PATH="$given" LD_LIBRARY_PATH="$libraries" "$@"' bash "$@"
