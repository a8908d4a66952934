#!/usr/bin/env bash
# Records Kafka's answers anew, then compares Chronik's with them, in every version. Needs Java 17 and Maven.
set -euo pipefail
cd "$(dirname "$0")/../.."
bash test/kafka/kafka.sh with bash -c 'go run ./test/conformance/record -at "${KAFKA_BROKERS%%,*}"'
CHRONIK_CONFORMANCE=all go test ./test/conformance -count=1 -timeout 15m
