import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.serialization.IntegerSerializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** The lines whose words are counted, sent at a pace in the background, and how far the application has come with them. */
final class Text {
    static final int PARTITIONS = 3;
    private static final int WORDS = 3; // of a line
    private static final int DIFFERENT = 500;
    private static final int STEPS = 20; // in which an eighth of the lines is sent, one each STEP
    private static final long STEP_MILLIS = 75;

    private final Streams s;
    private int limit; // lines that may be sent
    private int acknowledged;
    private Exception failed;

    Text(Streams s) {
        this.s = s;
    }

    /** Line n: some words are much more frequent than others. */
    private static String line(int n) {
        StringBuilder b = new StringBuilder();
        for (int i = 0; i < WORDS; i++) {
            int w = (int) ((n * 7919L + i * 104_729L) % DIFFERENT);
            b.append(i == 0 ? "" : " ").append("word-").append(n % 3 == i ? w % 10 : w);
        }
        return b.toString();
    }

    /** How often each word is in the first n lines. */
    Map<String, Long> words(int n) {
        Map<String, Long> out = new HashMap<>();
        for (int i = 0; i < n; i++) {
            for (String w : line(i).split(" ")) {
                out.merge(w, 1L, Long::sum);
            }
        }
        return out;
    }

    void createTopics() throws Exception {
        for (String topic : List.of(s.from, s.to)) {
            try {
                s.admin.createTopics(List.of(new NewTopic(topic, PARTITIONS, (short) 3))).all().get();
            } catch (java.util.concurrent.ExecutionException e) {
                if (!(e.getCause() instanceof TopicExistsException)) { // of a request whose first answer died with a node
                    throw e;
                }
            }
        }
        Thread t = new Thread(this::send, "lines");
        t.setDaemon(true);
        t.start();
    }

    private void send() {
        Properties p = s.properties();
        p.put("acks", "all");
        p.put("enable.idempotence", "true");
        try (var producer = new KafkaProducer<>(p, new IntegerSerializer(), new StringSerializer())) {
            for (int n = 0; n < s.lines;) {
                int to;
                synchronized (this) {
                    while (limit == n) {
                        wait();
                    }
                    to = Math.min(limit, n + Math.max(1, s.lines / (8 * STEPS)));
                }
                List<Future<RecordMetadata>> acks = new ArrayList<>();
                for (; n < to; n++) {
                    acks.add(producer.send(new ProducerRecord<>(s.from, n % PARTITIONS, n, line(n))));
                }
                for (var a : acks) {
                    a.get(120, TimeUnit.SECONDS);
                }
                synchronized (this) {
                    acknowledged = n;
                }
                Thread.sleep(STEP_MILLIS);
            }
        } catch (Exception e) {
            synchronized (this) {
                failed = e;
            }
        }
    }

    /** Lets lines be sent up to n. */
    synchronized void upTo(int n) {
        limit = n;
        notifyAll();
    }

    /** Says what is missing until the application has committed n lines, and, if these are all that may be sent, their words too. */
    String uncounted(int n) throws Exception {
        boolean all;
        synchronized (this) {
            if (failed != null) {
                throw failed;
            }
            all = n == limit;
            if (all && acknowledged < n) {
                return acknowledged + " of " + n + " lines are acknowledged";
            }
        }
        Map<TopicPartition, OffsetAndMetadata> at = commits();
        long lines = committed(at, s.from);
        if (lines < n || !all) {
            return lines >= n ? null : "the application has committed " + lines + " of " + n + " lines";
        }
        for (var e : offsets(Internal.repartition(s), OffsetSpec.latest()).entrySet()) {
            OffsetAndMetadata o = at.get(e.getKey());
            if (e.getValue() > 0 && (o == null || o.offset() < e.getValue())) {
                return "the application has committed " + o + " of " + e;
            }
        }
        return null;
    }

    private Map<TopicPartition, OffsetAndMetadata> commits() throws Exception {
        return s.admin.listConsumerGroupOffsets(s.app).partitionsToOffsetAndMetadata().get();
    }

    private static long committed(Map<TopicPartition, OffsetAndMetadata> at, String topic) {
        return at.entrySet().stream().filter(e -> e.getKey().topic().equals(topic) && e.getValue() != null).mapToLong(e -> e.getValue().offset()).sum();
    }

    /** Null while words of lines that are not committed are in the repartition topic: who dies now has them sent once more. */
    String committed() throws Exception {
        long n = committed(commits(), s.from);
        return written(Internal.repartition(s)) > n * WORDS ? null : "all of " + n + " lines is committed";
    }

    Map<TopicPartition, Long> offsets(String topic, OffsetSpec spec) throws Exception {
        Map<TopicPartition, OffsetSpec> ask = new HashMap<>();
        for (int p = 0; p < PARTITIONS; p++) {
            ask.put(new TopicPartition(topic, p), spec);
        }
        Map<TopicPartition, Long> out = new HashMap<>();
        s.admin.listOffsets(ask).all().get().forEach((tp, o) -> out.put(tp, o.offset()));
        return out;
    }

    long written(String topic) throws Exception {
        return offsets(topic, OffsetSpec.latest()).values().stream().mapToLong(Long::longValue).sum();
    }
}
