#!/bin/sh
# Runs every fuzz target of the module for FUZZTIME (default 5s), one after the other.
set -eu
GO=${GO:-go}
FUZZTIME=${FUZZTIME:-5s}
grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | while read -r file; do
  dir=$(dirname "$file")
  sed -nE 's/^func (Fuzz[A-Za-z0-9_]+)\(.*/\1/p' "$file" | while read -r target; do
    echo "== $dir $target"
    "$GO" test "$dir" -run='^$' -fuzz="^$target\$" -fuzztime="$FUZZTIME" -parallel=2 </dev/null
  done
done
