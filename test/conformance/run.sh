#!/usr/bin/env bash
# Records Kafka's answers anew, then compares Chronik's with them, in every version. Needs Java 17 and Maven.
# Those of an outage are recorded with a broker that is asked to stop, and must be the same with one that is killed.
set -euo pipefail
cd "$(dirname "$0")/../.."
bash test/kafka/kafka.sh with bash -c 'go run ./test/conformance/record -at "${KAFKA_BROKERS%%,*}"'
for how in TERM "KILL -check"; do
  HOW=$how bash test/kafka/kafka.sh with bash -c 'go run ./test/conformance/record -at "${KAFKA_BROKERS%%,*}" -pids "$KAFKA_PIDS" -outage $HOW'
done
CHRONIK_CONFORMANCE=all go test ./test/conformance -count=1 -timeout 15m
