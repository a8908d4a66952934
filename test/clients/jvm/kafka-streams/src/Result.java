import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.stream.IntStream;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.LongDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * The counts, in the instances' stores and in the topic of results, compared with what was sent. Every update of a count adds one and
 * is one record of its changelog, whose producer is idempotent: a count may exceed the truth by as much as there are more records
 * there than words, and equals it if there are as many. That there are more is in order only where an instance was killed, or lost its
 * tasks to another: it does again what it had not committed.
 */
final class Result {
    private final Streams s;

    Result(Streams s) {
        this.s = s;
    }

    /** Judges the counts of n lines, which are all that were sent. twice: words may have been counted twice. */
    void judge(int n, boolean twice, Child... alive) throws Exception {
        Map<String, Long> truth = s.text.words(n);
        long words = truth.values().stream().mapToLong(Long::longValue).sum();
        long passed = s.text.written(Internal.repartition(s));
        Program.check(passed == words || twice && passed > words, "%d words are in the repartition topic, %d were sent", passed, words);
        Map<String, Map<String, Long>> stores = s.stores(alive);
        compare("the counts", truth, stores.get("count"), s.text.written(Internal.changelog(s, WordCount.COUNTS)) - words, twice);
        compare("the hours", truth, stores.get("hour"), s.text.written(Internal.changelog(s, WordCount.HOURLY)) - words, twice);
        Map<String, Long> results = results();
        Program.check(results.equals(stores.get("count")), "the results differ from the store: %s", difference(results, stores.get("count")));
    }

    private static void compare(String what, Map<String, Long> truth, Map<String, Long> got, long more, boolean twice) {
        Program.check(more == 0 || twice && more > 0, "%s: the changelog has %d records more than there are words", what, more);
        Program.check(got.keySet().equals(truth.keySet()), "%s: %d words, there are %d", what, got.size(), truth.size());
        long over = 0;
        for (var e : truth.entrySet()) {
            long n = got.get(e.getKey());
            Program.check(n >= e.getValue(), "%s: %s is counted %d times, it was sent %d times", what, e.getKey(), n, e.getValue());
            over += n - e.getValue();
        }
        Program.check(over <= more, "%s are too high by %d, of which the changelog explains %d", what, over, more);
        System.err.printf("%s: too high by %d, %d updates were done again%n", what, over, more);
    }

    private static String difference(Map<String, Long> a, Map<String, Long> b) {
        for (var e : b.entrySet()) {
            if (!e.getValue().equals(a.get(e.getKey()))) {
                return e.getKey() + " is " + a.get(e.getKey()) + " instead of " + e.getValue();
            }
        }
        return a.size() + " words instead of " + b.size();
    }

    /** The last count of each word in the topic that the application writes. */
    private Map<String, Long> results() throws Exception {
        Properties p = s.properties();
        p.put("auto.offset.reset", "earliest");
        p.put("enable.auto.commit", "false");
        Map<String, Long> out = new HashMap<>();
        try (var c = new KafkaConsumer<>(p, new StringDeserializer(), new LongDeserializer())) {
            List<TopicPartition> tps = IntStream.range(0, Text.PARTITIONS).mapToObj(i -> new TopicPartition(s.to, i)).toList();
            c.assign(tps);
            c.seekToBeginning(tps);
            Map<TopicPartition, Long> ends = c.endOffsets(tps);
            while (ends.entrySet().stream().anyMatch(e -> c.position(e.getKey()) < e.getValue())) {
                Program.check(s.inTime(), "the results were not read in time");
                c.poll(Duration.ofMillis(100)).forEach(r -> out.put(r.key(), r.value()));
            }
        }
        return out;
    }
}
