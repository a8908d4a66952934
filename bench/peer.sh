#!/usr/bin/env bash
# Consumer groups of Chronik beside Apache Kafka's: the same client, machine and hour, three nodes each, one cluster at a time, in turns.
#   peer.sh [ROUNDS]    default 2; DURATION of commits (8s); MEMBERS=1 measures 10,000 members' heartbeats too
# Kafka needs Java 17 and Maven; see test/kafka/kafka.sh. Its commits are in memory on all replicas when they are acknowledged (its
# default), Chronik's are fsynced on a majority. Its brokers are warmed by WARMUP (20s) of commits that do not count, Chronik's start new
# for each workload.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); root=$(dirname "$here")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
(cd "$root" && go build -o "$work/bench" ./bench)
limits="--max-connections 12000 --max-connections-per-addr 12000"
run() { # run CLUSTER FLAG…
  local of=$1 duration=${DURATION:-8s}; shift
  for n in 3 300; do
    "$work/bench" "$@" -rounds 3 -members $n rebalance rebalance-848 | sed "s/^/$of: /"
  done
  "$work/bench" "$@" -duration "$duration" commits | sed "s/^/$of: /"
  if [ -n "${MEMBERS:-}" ]; then "$work/bench" "$@" -duration 15s members | sed "s/^/$of: /"; fi
  "$work/bench" "$@" coordinator | sed "s/^/$of: /"
}
if [ "${1:-}" = kafka ]; then # within kafka.sh
  "$work/bench" -brokers "$KAFKA_BROKERS" -pids "$KAFKA_PIDS" -duration "${WARMUP:-20s}" commits >/dev/null
  run Kafka -brokers "$KAFKA_BROKERS" -pids "$KAFKA_PIDS"
  exit
fi
for round in $(seq "${1:-2}"); do
  echo "round $round"
  (cd "$root" && run Chronik -server-flags "$limits")
  KAFKA_HEAP=1g bash "$root/test/kafka/kafka.sh" with bash "$here/peer.sh" kafka
done
