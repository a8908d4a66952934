#!/usr/bin/env bash
# jars.sh POM VERSION: fetches the jars that POM asks for in Kafka's VERSION into $CACHE/VERSION, once. Exit code 77: cannot.
set -euo pipefail
to=$CACHE/$2
[ ! -d "$to" ] || exit 0
rm -rf "$to.part"
mvn -q -B -f "$1" -Dkafka.version="$2" dependency:copy-dependencies -DoutputDirectory="$to.part" >&2 ||
  { echo "the jars of Apache Kafka $2 cannot be fetched" >&2; exit 77; }
mv "$to.part" "$to"
