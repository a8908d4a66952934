#!/bin/sh
# Runs every fuzz target of the module for FUZZTIME (default 5s), one after the other; ONLY, a pattern, takes those that match
# ("internal/wal FuzzBlock"). All are run even if one fails; its input is then below testdata/fuzz, and the exit code is 1.
set -u
GO=${GO:-go}
FUZZTIME=${FUZZTIME:-5s}
failed=0
out=$(mktemp)
trap 'rm -f "$out"' EXIT
for file in $(grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | sort); do
  dir=$(dirname "$file")
  for target in $(sed -nE 's/^func (Fuzz[A-Za-z0-9_]+)\(.*/\1/p' "$file"); do
    if [ -n "${ONLY:-}" ] && ! printf '%s\n' "${dir#./} $target" | grep -qE "$ONLY"; then continue; fi
    echo "== $dir $target"
    "$GO" test "$dir" -run='^$' -fuzz="^$target\$" -fuzztime="$FUZZTIME" -parallel=2 </dev/null >"$out" 2>&1 && { tail -n 2 "$out"; continue; }
    cat "$out"
    # Go's fuzzer says so when a slow input is under way at the end of its time; it found nothing.
    if grep -q 'context deadline exceeded' "$out" && ! grep -qE 'Failing input|panic:|fatal error|DATA RACE' "$out"; then continue; fi
    echo "FAILED: $dir $target"
    failed=1
  done
done
exit $failed
