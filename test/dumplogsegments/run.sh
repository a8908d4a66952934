#!/usr/bin/env bash
# Shows that Apache Kafka's own DumpLogSegments reads our segments without complaint: batches of every codec are written by
# gen, then every .log, .index, .timeindex and .snapshot is dumped with --deep-iteration, and the records are counted.
# Needs Java 17 and Maven (the jars come from the Maven registry, once); without them it says so and succeeds.
#   KAFKA_VERSION: of the tool (default 4.3.1)   DUMP_DIR: where jars are kept (default: under the user's cache)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=${KAFKA_VERSION:-4.3.1}
cache=${DUMP_DIR:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/chronik-dumplogsegments}
for tool in java mvn; do
  command -v "$tool" >/dev/null || { echo "dump-segments: SKIPPED, $tool is not installed"; exit 0; }
done
jars=$cache/$version
if [ ! -d "$jars" ]; then
  mkdir -p "$cache"
  rm -rf "$jars.part"
  mvn -q -B -f "$here/pom.xml" -Dkafka.version="$version" dependency:copy-dependencies -DoutputDirectory="$jars.part"
  mv "$jars.part" "$jars"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dir=$work/topic-0
read -r batches records < <(cd "$here/../.." && go run ./test/dumplogsegments/gen -dir "$dir")

fail() { echo "dump-segments: FAILED: $*" >&2; exit 1; }
join() { local IFS=,; echo "$*"; }
dump() {
  java -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$jars/*" org.apache.kafka.tools.DumpLogSegments --files "$1" "${@:2}" \
    >"$work/out" 2>"$work/err" || { cat "$work/err" >&2; fail "the tool failed on $1"; }
  # 4.3.1 expects the first record of every file at offset 0 ("lastOffset = -1; if (record.offset() != lastOffset + 1)"), so it says
  # of each later segment, Kafka's own too, that "-1 is followed by" its base. That one line is taken out, and nothing else.
  for base in $first_offsets; do sed -i "/^  -1 is followed by $base\$/d" "$work/err"; done
  grep -q ' is followed by ' "$work/err" || sed -i '/^Non-consecutive offsets in /d' "$work/err"
  [ ! -s "$work/err" ] || { cat "$work/err" >&2; fail "the tool complains about $1"; }
  if grep -iE 'mismatch|not found|out of order|corrupt|invalid|exception|error|unable|isvalid: false' "$work/out"; then fail "see above: $1"; fi
}
first_offsets=$(for f in "$dir"/*.log; do f=${f##*/}; n=$((10#${f%.log})); [ "$n" = 0 ] || echo "$n"; done)

dump "$(join "$dir"/*.log)" --deep-iteration --print-data-log
got_batches=$(grep -c '^baseOffset:' "$work/out")
got_records=$(grep -c '^| offset:' "$work/out")
[ "$got_batches" = "$batches" ] || fail "$got_batches batches read, $batches written"
[ "$got_records" = "$records" ] || fail "$got_records records read, $records written"
for codec in none gzip snappy lz4 zstd; do grep -q "compresscodec: $codec " "$work/out" || fail "no batch of codec $codec was read"; done
dump "$(join "$dir"/*.index)" --deep-iteration
entries=$(grep -c '^offset:' "$work/out") || fail "no index entries"
dump "$(join "$dir"/*.index)" --index-sanity-check
[ "$(grep -c 'passed sanity check' "$work/out")" = "$(ls "$dir"/*.index | wc -l)" ] || fail "an index did not pass the sanity check"
dump "$(join "$dir"/*.timeindex)" --deep-iteration
times=$(grep -c '^timestamp:' "$work/out") || fail "no time index entries"
dump "$(join "$dir"/*.snapshot)"
producers=$(grep -c '^producerId:' "$work/out") || fail "no producers"
[ "$producers" = 2 ] || fail "$producers producers read, 2 written"
# A test that cannot fail shows nothing: the same checks on planted faults.
planted() { # EXTENSION BYTE ARG…: the first byte of the field at BYTE in the first file, made another
  local bad=$work/bad file
  rm -rf "$bad"; cp -r "$dir" "$bad"
  file=$(ls "$bad"/*"$1" | head -n 1)
  printf '\x7e' | dd of="$file" bs=1 seek="$2" conv=notrunc status=none
  if (dump "$file" "${@:3}") >/dev/null 2>&1; then fail "a fault planted in a $1 file went unnoticed"; fi
}
planted .log 120 --deep-iteration --print-data-log
planted .index 7 --deep-iteration
planted .timeindex 7 --deep-iteration
planted .snapshot 20

echo "dump-segments: ok: Kafka $version read $got_batches batches, $got_records records, $entries index and $times time index entries, $producers producers in $(ls "$dir"/*.log | wc -l) segments"
