import java.time.Duration;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.stream.IntStream;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/** The topics that Streams makes for itself: with the settings that it asks for, and these work. */
final class Internal {
    private final Streams s;

    Internal(Streams s) {
        this.s = s;
    }

    static String repartition(Streams s) {
        return s.app + "-words-repartition";
    }

    static String changelog(Streams s, String store) {
        return s.app + "-" + store + "-changelog";
    }

    String run() throws Exception {
        made(repartition(s), Map.of("cleanup.policy", "delete", "segment.bytes", "52428800", "retention.ms", "-1", "message.timestamp.type", "CreateTime"));
        made(changelog(s, WordCount.COUNTS), Map.of("cleanup.policy", "compact", "message.timestamp.type", "CreateTime"));
        // The window and its grace, and a day that Streams adds.
        made(changelog(s, WordCount.HOURLY), Map.of("cleanup.policy", "compact,delete", "retention.ms", "93600000", "message.timestamp.type", "CreateTime"));
        // What has been read of the repartition topic is deleted (DeleteRecords), up to what is committed.
        s.await("the repartition topic's deletion", () -> {
            Map<TopicPartition, Long> first = s.text.offsets(repartition(s), OffsetSpec.earliest());
            Map<TopicPartition, Long> ends = s.text.offsets(repartition(s), OffsetSpec.latest());
            return first.equals(ends) ? null : first + " of " + ends;
        });
        compacted(changelog(s, WordCount.COUNTS));
        compacted(changelog(s, WordCount.HOURLY));
        return "";
    }

    private void made(String topic, Map<String, String> settings) throws Exception {
        var r = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        s.await(topic + " as it should be", () -> {
            var t = s.admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            boolean replicated = t.partitions().stream().allMatch(p -> p.replicas().size() == 3);
            if (t.partitions().size() != Text.PARTITIONS || !replicated) {
                return t.toString();
            }
            var configs = s.admin.describeConfigs(List.of(r)).all().get().get(r);
            Map<String, String> want = new HashMap<>(Streams.SETTINGS);
            want.putAll(settings);
            for (var e : want.entrySet()) {
                var got = configs.get(e.getKey());
                if (got == null || !got.value().equals(e.getValue()) || got.isDefault()) {
                    return e.getKey() + ": " + got;
                }
            }
            return null;
        });
    }

    /** Waits until a changelog has lost what is outdated: far fewer records than were written, and of every key one. */
    private void compacted(String topic) throws Exception {
        int words = s.text.words(s.lines).size();
        Properties p = s.properties();
        p.put("enable.auto.commit", "false");
        try (var consumer = new KafkaConsumer<>(p, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> tps = IntStream.range(0, Text.PARTITIONS).mapToObj(i -> new TopicPartition(topic, i)).toList();
            consumer.assign(tps);
            s.await(topic + " compacted", () -> {
                Map<TopicPartition, Long> ends = consumer.endOffsets(tps);
                Set<java.nio.ByteBuffer> keys = new HashSet<>();
                int there = 0;
                consumer.seekToBeginning(tps);
                while (s.inTime() && ends.entrySet().stream().anyMatch(e -> consumer.position(e.getKey()) < e.getValue())) {
                    for (var r : consumer.poll(Duration.ofMillis(100))) {
                        there++;
                        keys.add(java.nio.ByteBuffer.wrap(r.key()));
                    }
                }
                long written = s.text.written(topic);
                Program.check(keys.size() >= words, "%s has %d keys, there are %d words", topic, keys.size(), words);
                return there <= written / 2 ? null : there + " records of " + written + " are there";
            });
        }
    }
}
