#!/usr/bin/env bash
# build-and-run.sh CLIENT [install]: builds the client's program at its installation and runs it afterwards.
set -euo pipefail
cd "$(dirname "$0")"
if [ "${2:-}" = install ]; then
  go mod download || { echo "the Go modules cannot be downloaded" >&2; exit 77; }
  go vet "./$1" ./matrix
  exec go build -o "$CACHE/$1" "./$1"
fi
exec "$CACHE/$1"
