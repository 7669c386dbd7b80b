#!/bin/bash
# asMusl.sh NODE ARGUMENTS: runs a Node.js made by makeMuslNode.sh so that the system looks like one with musl, since some libraries read
# /usr/bin/ldd to choose their binary. Uses its own namespace, so that nothing on the machine changes.
set -eu
export given=$PATH
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
folder=$(mktemp -d)
echo '# musl libc' > "$folder/ldd"
export folder
# Debian has no GCC libraries for musl, which every system with a Node.js for musl has: uses those of the wheel.
export libraries=$(dirname "$1")/../../lib
exec unshare --user --map-root-user --mount bash -c '
set -e
mount --bind "$folder/ldd" /usr/bin/ldd
exec env PATH="$given" LD_LIBRARY_PATH="$libraries" "$@"' bash "$@"
