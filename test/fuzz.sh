#!/bin/sh
# Runs every fuzz target of the module for FUZZTIME (default 5s), JOBS (default 2) at a time, each with one worker; ONLY, a pattern,
# takes those that match ("internal/wal FuzzBlock"). All are run even if one fails. What a failed target said comes in one piece,
# and the end lists the failures, each with the input that caused it, which is then below testdata/fuzz. The exit code is 1.
set -u
GO=${GO:-go}
FUZZTIME=${FUZZTIME:-5s}
JOBS=${JOBS:-2}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
mkdir "$tmp/failed"

# Each package's tests are built once, with the fuzzer's instruments.
n=0
for dir in $(grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | xargs -n 1 dirname | sort -u); do
  targets=$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]+)\(.*/\1/p' "$dir"/*_test.go | sort | while read -r target; do
    if printf '%s\n' "${dir#./} $target" | grep -qE "${ONLY:-}"; then echo "$target"; fi
  done)
  [ -n "$targets" ] || continue
  n=$((n + 1))
  "$GO" test -c -fuzz=. -o "$tmp/$n.test" "$dir" || exit 1
  corpus="$("$GO" env GOCACHE)/fuzz/$("$GO" list "$dir")" # where go test keeps what it finds
  for target in $targets; do echo "$dir $target $tmp/$n.test $corpus"; done >>"$tmp/targets"
done
[ -s "$tmp/targets" ] || { echo "no fuzz target matches '${ONLY:-}'"; exit 1; }

# fuzz DIR TARGET BINARY CORPUS OUT: 0 if nothing was found.
fuzz() {
  # The binary's paths are relative to its package, as with go test. FuzzX must not take FuzzXY along.
  (cd "$1" && exec "$3" -test.run='^$' -test.fuzz="^$2\$" -test.fuzztime="$FUZZTIME" -test.fuzzcachedir="$4" -test.parallel=1) </dev/null >"$5" 2>&1 && return
  # Go's fuzzer says so when a slow input is under way at the end of its time; it found nothing.
  grep -q 'context deadline exceeded' "$5" && ! grep -qE 'Failing input|panic:|fatal error|DATA RACE' "$5"
}

# run takes every JOBS-th target from the I-th on.
run() {
  awk -v i="$1" -v jobs="$JOBS" '(NR - 1) % jobs == i' "$tmp/targets" | while read -r dir target binary corpus; do
    out="$tmp/out.$1"
    fuzz "$dir" "$target" "$binary" "$corpus" "$out"
    failed=$?
    until mkdir "$tmp/printing" 2>/dev/null; do sleep 0.1; done
    if [ "$failed" = 0 ]; then
      echo "ok      ${dir#./} $target  $(grep -E '^fuzz: elapsed' "$out" | tail -n 1 | cut -c 7-)"
    else
      echo "FAILED  ${dir#./} $target"
      cat "$out"
    fi
    rmdir "$tmp/printing"
    [ "$failed" = 0 ] && continue
    input=$(sed -nE 's/.*Failing input written to (.*)/\1/p' "$out" | tail -n 1)
    { echo "FAILED  ${dir#./} $target${input:+: $dir/$input}"; [ -z "$input" ] || cat "$dir/$input"; } >"$tmp/failed/$target"
  done
}

i=0
while [ "$i" -lt "$JOBS" ]; do
  run "$i" &
  i=$((i + 1))
done
wait
[ -z "$(ls "$tmp/failed")" ] && exit 0
echo
cat "$tmp/failed"/*
exit 1
