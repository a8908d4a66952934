#!/bin/sh
# The simulator's promise across processors: the same seeds give the same traces and counts on amd64 and arm64. Builds for both, runs the one that
# is not this machine's under QEMU's user mode (Debian: qemu-user-static), and compares all that is printed. SEEDS="1 2 3" chooses.
#
# -prepare only installs and builds.
set -eu
cd "$(dirname "$0")/../.."
GO=${GO:-go}
case $(uname -m) in
x86_64) own=amd64 other=arm64 qemu=qemu-aarch64 ;;
aarch64) own=arm64 other=amd64 qemu=qemu-x86_64 ;;
*) echo "skipped: amd64 and arm64 are compared, and this machine is neither"; exit 0 ;;
esac
emulator() { command -v $qemu-static || command -v $qemu; }
if ! emulator >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get install -y -q qemu-user-static >/dev/null 2>&1 || { apt-get update -q && apt-get install -y -q qemu-user-static; } >/dev/null 2>&1 || true
fi
emulator >/dev/null || { echo "skipped: $qemu is not installed (Debian: apt-get install qemu-user-static)"; exit 0; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for arch in $own $other; do
  CGO_ENABLED=0 GOARCH=$arch $GO build -o "$dir/$arch" ./cmd/chronik
done
[ "${1:-}" != -prepare ] || exit 0
for seed in ${SEEDS:-1 2 3 4 5 6 7 8 9 10}; do
  "$dir/$own" sim --seed "$seed" >"$dir/here"
  "$(emulator)" "$dir/$other" sim --seed "$seed" >"$dir/there"
  if ! cmp -s "$dir/here" "$dir/there"; then
    echo "seed $seed differs between $own and $other:"
    diff "$dir/here" "$dir/there" || true
    exit 1
  fi
  head -1 "$dir/here"
done
echo "the same on $own and $other"
