import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/** The three topics in which distributed workers keep their state: made by Connect as it wants them, compacted, and right after that. */
final class Internal {
    static final Map<String, String> SETTINGS = Map.of("segment.ms", "500", "min.cleanable.dirty.ratio", "0.01", "retention.ms", "-1");

    private final Connect c;
    private final Distributed d;

    Internal(Connect c, Distributed d) {
        this.c = c;
        this.d = d;
    }

    String run() throws Exception {
        Program.check(d.worker != null, "the case distributed has left no worker");
        made("config", 1);
        made("offset", 25);
        made("status", 5);
        // The last record of a key is what counts: of the source the position at the end of its file.
        ObjectMapper json = new ObjectMapper();
        compacted("offset", last -> {
            for (var e : last.entrySet()) {
                JsonNode key = json.readTree(e.getKey());
                if (key.path(0).asText().equals("source") && key.path(1).path("filename").asText().equals(d.lines.source.toString())) {
                    long position = json.readTree(e.getValue()).path("position").asLong();
                    return position == Files.size(d.lines.source) ? null : "the source is at " + position + " of " + Files.size(d.lines.source);
                }
            }
            return "no offset of the source: " + last.keySet();
        });
        compacted("status", last -> {
            for (String key : new String[] {"status-connector-source", "status-task-source-0", "status-connector-" + d.sinkName, "status-task-" + d.sinkName + "-0"}) {
                String state = last.get(key);
                if (state == null || !json.readTree(state).path("state").asText().equals("RUNNING") || !json.readTree(state).path("worker_id").asText().equals(d.worker.address)) {
                    return key + ": " + state;
                }
            }
            return null;
        });
        return "";
    }

    private void made(String name, int partitions) throws Exception {
        String topic = d.internal(name);
        var r = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        c.await(topic + " as it should be", () -> {
            var t = c.admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            boolean replicated = t.partitions().stream().allMatch(p -> p.replicas().size() == 3);
            if (t.partitions().size() != partitions || !replicated) {
                return t.toString();
            }
            var configs = c.admin.describeConfigs(List.of(r)).all().get().get(r);
            Map<String, String> want = new HashMap<>(SETTINGS);
            want.put("cleanup.policy", "compact");
            for (var e : want.entrySet()) {
                var got = configs.get(e.getKey());
                if (got == null || !got.value().equals(e.getValue()) || got.isDefault()) {
                    return e.getKey() + ": " + got;
                }
            }
            return null;
        });
    }

    private interface Judge {
        String missing(Map<String, String> last) throws Exception;
    }

    /** Reads a topic from the beginning until fewer records are there than were written. The last of each key are judged each time. */
    private void compacted(String name, Judge judge) throws Exception {
        String topic = d.internal(name);
        Properties p = c.properties();
        p.put("auto.offset.reset", "earliest");
        p.put("enable.auto.commit", "false");
        try (var consumer = new KafkaConsumer<>(p, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> tps = consumer.partitionsFor(topic).stream().map(i -> new TopicPartition(topic, i.partition())).toList();
            consumer.assign(tps);
            c.await(topic + " compacted", () -> {
                long written = 0;
                Map<TopicPartition, Long> ends = consumer.endOffsets(tps);
                for (long end : ends.values()) {
                    written += end;
                }
                Map<String, String> last = new HashMap<>();
                int there = 0;
                consumer.seekToBeginning(tps);
                while (c.inTime() && ends.entrySet().stream().anyMatch(e -> consumer.position(e.getKey()) < e.getValue())) {
                    for (var r : consumer.poll(Duration.ofMillis(100))) {
                        there++;
                        last.put(text(r.key()), text(r.value()));
                    }
                }
                String why = judge.missing(last);
                return why != null ? why : there < written ? null : "all of the " + written + " records are still there";
            });
        }
    }

    private static String text(byte[] b) {
        return b == null ? null : new String(b, StandardCharsets.UTF_8);
    }
}
