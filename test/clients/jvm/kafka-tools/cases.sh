# The cases of run. Every command of a case must succeed.

cluster() {
  tool ClusterTool cluster-id
  has '^Cluster ID: .+'
  eventually '^3 +127\.0\.0\.1' tool ClusterTool list-endpoints
  tool BrokerApiVersionsCommand
  has 'Produce\(0\): 0 to 13' 'Fetch\(1\): 4 to 18'
}

topics() {
  local t=$PREFIX.topics
  tool TopicCommand --create --topic "$t" --partitions 3 --replication-factor 3 --config retention.ms=3600000
  has "Created topic $t"
  eventually 'PartitionCount: 3.ReplicationFactor: 3.Configs: .*retention.ms=3600000' tool TopicCommand --describe --topic "$t"
  # A partition whose leader was killed just now has none for a moment.
  local led='Partition: 2.Leader: [123].Replicas: [123],[123],[123].Isr: [123]'
  has "$led" >/dev/null || eventually "$led" tool TopicCommand --describe --topic "$t"
  tool TopicCommand --create --if-not-exists --topic "$t" --partitions 3
  if tool TopicCommand --create --topic "$t" --partitions 3 >/dev/null; then echo "a topic that exists was created"; return 1; fi
  has "TopicExistsException: .*$t"
  tool TopicCommand --list
  has "^$t\$"
  tool TopicCommand --alter --topic "$t" --partitions 5
  eventually 'PartitionCount: 5' tool TopicCommand --describe --topic "$t"
  if tool TopicCommand --alter --topic "$t" --partitions 2 >/dev/null; then echo "partitions were taken away"; return 1; fi
  has 'InvalidPartitionsException: .*5 partitions'
  eventually '^$' unavailable "$t"
  tool TopicCommand --create --topic "$t.placed" --replica-assignment 2:3:1,1:2:3
  eventually 'Partition: 0.*Replicas: 2,3,1' tool TopicCommand --describe --topic "$t.placed"
  has 'Partition: 1.*Replicas: 1,2,3'
  tool TopicCommand --delete --topic "$t"
  eventually '^gone$' gone "$t"
}
unavailable() { tool TopicCommand --describe --topic "$1" --unavailable-partitions && { [ -s "$out" ] || echo >"$out"; }; }
gone() { tool TopicCommand --list && if ! grep -qx "$1" "$out"; then echo gone >"$out"; fi; }

configurations() {
  local t=$PREFIX.configs
  tool TopicCommand --create --topic "$t" --partitions 1 --replication-factor 3
  configs --alter --entity-type topics --entity-name "$t" --add-config retention.ms=7200000,max.message.bytes=2000000
  has "Completed updating config for topic $t"
  eventually 'retention.ms=7200000 sensitive=false synonyms=\{DYNAMIC_TOPIC_CONFIG:retention.ms=7200000' configs --describe --entity-type topics --entity-name "$t"
  has 'max.message.bytes=2000000'
  configs --alter --entity-type topics --entity-name "$t" --delete-config retention.ms
  eventually 'retention.ms=604800000 sensitive=false synonyms=\{' configs --describe --all --entity-type topics --entity-name "$t"
  has 'max.message.bytes=2000000' 'min.insync.replicas='
  if configs --alter --entity-type topics --entity-name "$t" --add-config retention.ms=soon >/dev/null; then echo "retention.ms=soon was taken"; return 1; fi
  has 'Invalid value .?soon.? for configuration retention.ms'
  if configs --alter --entity-type topics --entity-name "$t" --add-config no.such=1 >/dev/null; then echo "no.such=1 was taken"; return 1; fi
  has 'InvalidConfigurationException: .*no.such'
  eventually 'node.id=2 ' configs --describe --all --entity-type brokers --entity-name 2
  configs --alter --entity-type brokers --entity-default --add-config log.scrub.interval.ms=3600001
  eventually 'log.scrub.interval.ms=3600001' configs --describe --entity-type brokers --entity-default
  eventually 'log.scrub.interval.ms=3600001 .*DYNAMIC_DEFAULT_BROKER_CONFIG' configs --describe --all --entity-type brokers --entity-name 1
  configs --alter --entity-type brokers --entity-default --delete-config log.scrub.interval.ms
  eventually 'log.scrub.interval.ms=3600000 ' configs --describe --all --entity-type brokers --entity-name 1
}

# lines FROM TO: key, value and headers as the console tools' settings below have them.
numbered() { seq "$1" "$2" | sed 's/.*/number:&,what:console\tkey-&\tvalue & compressible compressible compressible compressible/'; }
send() { # TOPIC CODEC, from standard input
  tool ConsoleProducer --topic "$1" --compression-codec "$2" --reader-property parse.key=true --reader-property parse.headers=true \
    --command-property linger.ms=50 --command-property enable.idempotence=true
}
receive() { # TOPIC N ARG…
  tool consumer.ConsoleConsumer --topic "$1" --max-messages "$2" --timeout-ms 60000 --formatter-property print.key=true \
    --formatter-property print.headers=true "${@:3}"
  has "^Processed a total of $2 messages"
  sed -i '/^Processed a total of/d; /^The consumer rebalance protocol (KIP-848)/d' "$out"
}

produce() {
  local t=$PREFIX.$1
  tool TopicCommand --create --topic "$t" --partitions 1 --replication-factor 3
  numbered 1 1000 | send "$t" "$1"
  receive "$t" 1000 --from-beginning
  numbered 1 1000 | (diff - "$out" || true) | head -n 5 >"$WORK/diff"
  [ ! -s "$WORK/diff" ] || { cat "$WORK/diff"; return 1; }
}

console() {
  local t=$PREFIX.lz4
  receive "$t" 1 --partition 0 --offset 500
  has '^number:501,what:console.key-501.value 501 '
  tool consumer.ConsoleConsumer --topic "$t" --partition 0 --offset 999 --max-messages 1 --timeout-ms 60000 --formatter-property print.timestamp=true \
    --formatter-property print.offset=true --formatter-property print.partition=true
  has '^CreateTime:[0-9]{13}.Partition:0.Offset:999.value 1000 '
  # A topic that is not there is made, and a regular expression finds it.
  echo alone | tool ConsoleProducer --topic "$PREFIX.made"
  tool consumer.ConsoleConsumer --include "$PREFIX\\.ma[d]e" --from-beginning --max-messages 1 --timeout-ms 60000
  has '^alone$'
  head -c 900000 /dev/zero | tr '\0' x >"$WORK/large"
  (cat "$WORK/large"; echo) | tool ConsoleProducer --topic "$PREFIX.made"
  head -c 1200000 /dev/zero | tr '\0' y >"$WORK/larger"
  (cat "$WORK/larger"; echo) | tool ConsoleProducer --topic "$PREFIX.made" --command-property max.request.size=4000000 --command-property buffer.memory=8000000 --max-partition-memory-bytes 2000000
  has 'RecordTooLargeException'
  tool consumer.ConsoleConsumer --topic "$PREFIX.made" --from-beginning --max-messages 2 --timeout-ms 60000
  equal "$(awk 'length($0) > 100 && /^x+$/ {print length($0)}' "$out")" 900000 "the length of the large line"
}

get_offsets() {
  local t=$PREFIX.offsets now
  tool TopicCommand --create --topic "$t" --partitions 3 --replication-factor 3
  seq 1 300 | tool ConsoleProducer --topic "$t" --command-property partitioner.class=org.apache.kafka.clients.producer.RoundRobinPartitioner
  tool GetOffsetShell --topic "$t"
  equal "$(awk -F: '{n += $3} END {print NR, n}' "$out")" "3 300" "partitions and records at the end"
  tool GetOffsetShell --topic-partitions "$t:0-2" --time -2
  equal "$(paste -sd' ' "$out")" "$t:0:0 $t:1:0" "the beginnings of two partitions"
  tool GetOffsetShell --topic "$t" --time -3 # of the largest timestamp
  equal "$(wc -l <"$out")" 3 "partitions with a largest timestamp"
  lacks ':$'
  now=$(($(date +%s%3N) + 3600000))
  tool GetOffsetShell --topic "$t" --time "$now" # nothing is as late
  lacks ':[0-9]+:[0-9]+$'
  tool GetOffsetShell --topic "$t" --time $((now - 7200000))
  equal "$(paste -sd' ' "$out")" "$t:0:0 $t:1:0 $t:2:0" "the first records since an hour ago"
}

delete_records() {
  local t=$PREFIX.offsets
  echo "{\"version\":1,\"partitions\":[{\"topic\":\"$t\",\"partition\":1,\"offset\":17},{\"topic\":\"$t\",\"partition\":2,\"offset\":-1}]}" >"$WORK/delete.json"
  tool DeleteRecordsCommand --offset-json-file "$WORK/delete.json"
  has "partition: $t-1.low_watermark: 17"
  tool GetOffsetShell --topic "$t"
  local end
  end=$(sed -n "s/^$t:2://p" "$out")
  tool GetOffsetShell --topic "$t" --time -2
  equal "$(paste -sd' ' "$out")" "$t:0:0 $t:1:17 $t:2:$end" "the beginnings after records were deleted"
}

# lag GROUP: the sum of what a description of the group's offsets says.
lag() { tool consumer.group.ConsumerGroupCommand --describe --group "$1" && awk '/^[^ ]+ +'"$PREFIX"'/ {n++; c += $4; l += $6} END {print "partitions", n, "at", c, "lag", l}' "$out" >"$out.lag" && cat "$out.lag" >>"$out"; }
reset() { tool consumer.group.ConsumerGroupCommand --group "$g" --reset-offsets "$@"; }

consumer_groups() {
  local t=$PREFIX.groups g=$PREFIX.group
  tool TopicCommand --create --topic "$t" --partitions 3 --replication-factor 3
  seq 1 300 | tool ConsoleProducer --topic "$t" --command-property partitioner.class=org.apache.kafka.clients.producer.RoundRobinPartitioner
  # A member that stays, to look at.
  "${jvm[@]}" org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "$BOOTSTRAP" --topic "$t" --group "$g" --from-beginning \
    --command-property auto.commit.interval.ms=200 >"$WORK/member" 2>&1 &
  pid=$!
  trap 'kill "$pid" 2>/dev/null || true' EXIT
  eventually 'partitions 3 at 300 lag 0' lag "$g"
  tool consumer.group.ConsumerGroupCommand --describe --group "$g" --members --verbose
  has "^$g +console-consumer-.* 3 +" "$t:0,1,2"
  tool consumer.group.ConsumerGroupCommand --describe --group "$g" --state
  has "^$g +127.0.0.1:[0-9]+ +\\([123]\\) +range +Stable .*1 *\$"
  reset --topic "$t" --to-earliest --execute || true # whatever the tool's exit code is
  has "Assignments can only be reset if the group '$g' is inactive"
  if tool consumer.group.ConsumerGroupCommand --delete --group "$g" >/dev/null; then has 'GroupNotEmptyException'; fi
  kill "$pid"
  wait "$pid" 2>/dev/null || true
  equal "$(grep -cE '^[0-9]+$' "$WORK/member")" 300 "records that the member has read"
  eventually ' Empty ' tool consumer.group.ConsumerGroupCommand --describe --group "$g" --state
  eventually "^$g\$" tool consumer.group.ConsumerGroupCommand --list
  tool consumer.group.ConsumerGroupCommand --list --state Empty
  has "^$g +Empty"
  tool GroupsCommand --list
  has "^$g +Classic"

  reset --topic "$t" --to-earliest --dry-run
  lag "$g"; has 'at 300 lag 0'
  reset --topic "$t" --to-earliest --execute
  lag "$g"; has 'at 0 lag 300'
  reset --topic "$t:0" --to-offset 10 --execute
  lag "$g"; has 'at 10 lag 290'
  reset --topic "$t" --shift-by 5 --execute
  lag "$g"; has 'at 25 lag 275'
  reset --topic "$t" --to-datetime 2020-01-01T00:00:00.000 --execute
  lag "$g"; has 'at 0 lag 300'
  reset --topic "$t" --to-latest --execute
  lag "$g"; has 'at 300 lag 0'
  reset --topic "$t" --by-duration PT1H --execute
  lag "$g"; has 'at 0 lag 300'
  reset --topic "$t" --to-offset 20 --dry-run --export
  grep "^\"*$t" "$out" >"$WORK/offsets.csv"
  reset --from-file "$WORK/offsets.csv" --execute
  lag "$g"; has 'at 60 lag 240'
  tool consumer.ConsoleConsumer --topic "$t" --group "$g" --max-messages 240 --timeout-ms 60000
  has 'Processed a total of 240 messages'
  eventually 'at 300 lag 0' lag "$g"

  tool consumer.group.ConsumerGroupCommand --delete-offsets --group "$g" --topic "$t:1"
  has "$t +1 +Successful"
  eventually 'partitions 2' lag "$g"
  tool consumer.group.ConsumerGroupCommand --delete --group "$g"
  has "Deletion of requested consumer groups \\('$g'\\) was successful"
  tool consumer.group.ConsumerGroupCommand --list
  lacks "^$g\$"
}

# partition_of GROUP: of __consumer_offsets, by Java's hash of the name.
partition_of() {
  local h=0 i
  for ((i = 0; i < ${#1}; i++)); do h=$(((h * 31 + $(printf %d "'${1:i:1}")) & 0xffffffff)); done
  echo $(((h & 0x7fffffff) % 50))
}

# The records of groups are Kafka's own, so its formatters read them.
offsets_topic() {
  local f=org.apache.kafka.tools.consumer p
  p=$(partition_of "$PREFIX.group")
  formatted "$p" $f.OffsetsMessageFormatter
  has "\"group\":\"$PREFIX.group\",\"topic\":\"$PREFIX.groups\",\"partition\":0"
  formatted "$p" $f.GroupMetadataMessageFormatter
  has "\"group\":\"$PREFIX.group\".*\"protocolType\":\"consumer\""
}
formatted() { tool consumer.ConsoleConsumer --topic __consumer_offsets --partition "$1" --offset earliest --timeout-ms 15000 --formatter "$2" || has TimeoutException; }

log_dirs() {
  eventually "\"partition\":\"$PREFIX.groups-2\",\"size\":[1-9]" tool LogDirsCommand --describe --topic-list "$PREFIX.groups"
  eventually '"broker":1.*"broker":2.*"broker":3|"broker":' tool LogDirsCommand --describe --broker-list 1,2,3 --topic-list "$PREFIX.groups"
  equal "$(grep -o '"broker":' "$out" | wc -l)" 3 "brokers"
}

placed() { tool TopicCommand --describe --topic "$1"; }
moving() { # ONE MORE: a file that has the topic's partitions placed there
  echo "{\"version\":1,\"partitions\":[{\"topic\":\"$t\",\"partition\":0,\"replicas\":[$1]},{\"topic\":\"$t\",\"partition\":1,\"replicas\":[$2]}]}" >"$WORK/move.json"
}

reassign() {
  local t=$PREFIX.reassigned r=reassign.ReassignPartitionsCommand
  tool TopicCommand --create --topic "$t" --replica-assignment 1:2,2:3
  seq 1 5000 | tool ConsoleProducer --topic "$t"
  echo "{\"version\":1,\"topics\":[{\"topic\":\"$t\"}]}" >"$WORK/topics.json"
  eventually 'Proposed partition reassignment configuration' tool $r --generate --broker-list 1,2,3 --topics-to-move-json-file "$WORK/topics.json"
  has "\"topic\":\"$t\",\"partition\":1,\"replicas\":\\[2,3\\]"
  moving 3,1 1,2,3
  eventually 'Successfully started partition reassignment' tool $r --execute --reassignment-json-file "$WORK/move.json" --additional --throttle 50000000
  eventually "Reassignment of partition $t-1 is completed" tool $r --verify --reassignment-json-file "$WORK/move.json"
  eventually 'Partition: 0.*Replicas: 3,1' placed "$t"
  has 'Partition: 1.*Replicas: 1,2,3'
  eventually "Reassignment of partition $t-0 is completed" tool $r --verify --reassignment-json-file "$WORK/move.json"

  tool $r --list
  lacks "$t-"
  if tool $r --cancel --reassignment-json-file "$WORK/move.json" >/dev/null; then has 'None of the specified partition reassignments are active'; fi
  tool GetOffsetShell --topic "$t"
  equal "$(awk -F: '{n += $3} END {print n}' "$out")" 5000 "records after the move"
}

elect() {
  local t=$PREFIX.topics.placed e
  eventually 'Successfully completed leader election|Valid replica already elected' tool LeaderElectionCommand --election-type preferred --topic "$t" --partition 0
  eventually 'Partition: 0.Leader: 2' placed "$t"
  tool LeaderElectionCommand --election-type preferred --topic "$t" --partition 0
  has 'Valid replica already elected for partitions'
  if tool LeaderElectionCommand --election-type unclean --topic "$t" --partition 0 >/dev/null; then has 'Valid replica already elected'; fi
}

quorum() {
  eventually '^LeaderId: +[123]' tool MetadataQuorumCommand describe --status
  has '^ClusterId: ' '^LeaderEpoch: +[1-9]' '^HighWatermark: +[1-9]' '^CurrentVoters: +\[.*1.*2.*3'
  tool MetadataQuorumCommand describe --replication
  has '^NodeId' '^[123].+Leader' '^[123].+Follower'
  equal "$(grep -cE '^[123]' "$out")" 3 "replicas of the metadata"
}

transactions() { # Chronik has none; the tool also describes idempotent producers
  tool TransactionsCommand describe-producers --topic "$PREFIX.lz4" --partition 0
  has '^ProducerId' '^[0-9]+.+999'
}

perf() {
  local t=$PREFIX.perf
  tool TopicCommand --create --topic "$t" --partitions 6 --replication-factor 3
  tool ProducerPerformance --topic "$t" --num-records "$LINES" --record-size 100 --throughput -1 --command-property acks=all compression.type=lz4
  has "^$LINES records sent"
  tool ConsumerPerformance --topic "$t" --num-records "$LINES" --timeout 60000 --hide-header
  has "^[0-9-]+ [0-9:]+, .*, $LINES, "
  tool GetOffsetShell --topic "$t"
  equal "$(awk -F: '{n += $3} END {print n}' "$out")" "$LINES" "records"
}

verifiable() {
  local t=$PREFIX.verifiable
  tool TopicCommand --create --topic "$t" --partitions 3 --replication-factor 3
  printf 'retries=2147483647\nenable.idempotence=true\n' >"$WORK/retries" # by itself the tool does not send again
  "${jvm[@]}" org.apache.kafka.tools.VerifiableConsumer --bootstrap-server "$BOOTSTRAP" --topic "$t" --group-id "$t" --max-messages "$LINES" --verbose >"$WORK/consumed" 2>&1 &
  consumer=$!
  "${jvm[@]}" org.apache.kafka.tools.VerifiableProducer --bootstrap-server "$BOOTSTRAP" --topic "$t" --max-messages "$LINES" --throughput "$((LINES / 5))" \
    --command-config "$WORK/retries" >"$WORK/produced" 2>&1 &
  producer=$!
  trap 'kill "$producer" "$consumer" 2>/dev/null || true' EXIT
  awaited "$WORK/produced" producer_send_success $((LINES / 3))
  kill_leader "topic=$t&partition=0"
  awaited "$WORK/produced" producer_send_success $((LINES * 2 / 3))
  kill_leader "group=$t"
  wait "$producer" || { tail -n 5 "$WORK/produced"; return 1; }
  tail -n 1 "$WORK/produced" >"$out"
  has "\"sent\":$LINES,\"acked\":$LINES"
  wait "$consumer" || { tail -n 5 "$WORK/consumed"; return 1; }
  grep -h '"record_data"' "$WORK/consumed" | sed 's/.*"value":"\([0-9]*\)".*/\1/' | sort -n >"$WORK/values"
  equal "$(uniq "$WORK/values" | wc -l)" "$LINES" "different records consumed"
}
awaited() { # FILE PATTERN N
  local end=$((SECONDS + 120))
  until [ "$(grep -c "$2" "$1")" -ge "$3" ]; do
    [ $SECONDS -lt $end ] || { echo "only $(grep -c "$2" "$1") of $3 $2 in $1"; return 1; }
    sleep 0.1
  done
}
