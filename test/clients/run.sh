#!/usr/bin/env bash
# Real clients against a real cluster: the Go toolchain's own source lines go in with kcat (librdkafka) and with franz-go, once
# for each codec, while leaders are killed with kill -9; they must come back from other nodes, every line once and in order, and
# lie on every node's disk in the codec that the client chose.
#
#   LINES   how many lines (default 2000000; 100000 takes about a minute in all)
#   KILLS   leaders killed in each run (default 4; 2 up to 200000 lines)
#   CODECS  default "none,gzip,snappy,lz4,zstd"
#   CLIENTS default "kcat,franz-go"
#   GO      the go command (default go)
set -euo pipefail
cd "$(dirname "$0")/../.."
GO=${GO:-go}

skip() {
  if [ "${CI:-}" = true ]; then
    echo "test/clients: $1; in CI that is a failure" >&2
    exit 1
  fi
  echo "test/clients: skipped: $1" >&2
  exit 0
}

command -v "$GO" >/dev/null || skip "no Go toolchain"
CLIENTS=${CLIENTS:-kcat,franz-go}
case ",$CLIENTS," in
*,kcat,*)
  if ! command -v kcat >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends kcat; } >&2 || true
  fi
  command -v kcat >/dev/null || skip "kcat is not installed (Debian and Ubuntu: apt-get install kcat)"
  ;;
esac

LINES=${LINES:-2000000}
if [ "$LINES" -gt 200000 ]; then KILLS=${KILLS:-4}; else KILLS=${KILLS:-2}; fi
work=$(mktemp -d "${TMPDIR:-/tmp}/chronik-clients.XXXXXX")
CGO_ENABLED=0 "$GO" build -o "$work/" ./cmd/chronik ./test/clients
code=0
"$work/clients" -chronik "$work/chronik" -dir "$work" -goroot "$("$GO" env GOROOT)" \
  -lines "$LINES" -kills "$KILLS" -codecs "${CODECS:-none,gzip,snappy,lz4,zstd}" -clients "$CLIENTS" || code=$?
if [ "$code" = 0 ]; then
  rm -rf "$work"
else
  echo "test/clients: failed; data and logs are kept in $work" >&2
fi
exit "$code"
