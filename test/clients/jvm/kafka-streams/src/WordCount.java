import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.time.Duration;
import java.util.Arrays;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.CloseOptions;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.processor.StateRestoreListener;
import org.apache.kafka.streams.state.QueryableStoreTypes;

/**
 * One instance of the application: words of a topic's lines are counted, in all and by the hour. Arguments: the application's id,
 * the topics it reads and writes, and the folder for its state. It prints what happens; on standard input it is told "counts" (its
 * stores are printed) or "close".
 */
public final class WordCount {
    static final String COUNTS = "counts";
    static final String HOURLY = "hourly";

    public static void main(String[] args) throws Exception {
        try (KafkaStreams streams = new KafkaStreams(topology(args[1], args[2]), properties(args[0], args[3]))) {
            streams.setStateListener((now, before) -> say("state " + now));
            streams.setGlobalStateRestoreListener(new Restored());
            streams.start();
            BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
            for (String line = in.readLine(); line != null && !line.equals("close"); line = in.readLine()) {
                print(streams);
            }
            boolean closed = streams.close(CloseOptions.timeout(Duration.ofSeconds(60)).withGroupMembershipOperation(CloseOptions.GroupMembershipOperation.LEAVE_GROUP));
            System.exit(closed ? 0 : 3);
        }
    }

    private static Topology topology(String from, String to) {
        StreamsBuilder b = new StreamsBuilder();
        KGroupedStream<String, String> words = b.stream(from, Consumed.with(Serdes.Integer(), Serdes.String()))
            .flatMapValues(line -> Arrays.asList(line.split(" ")))
            .groupBy((k, word) -> word, Grouped.with("words", Serdes.String(), Serdes.String()));
        words.count(Materialized.as(COUNTS)).toStream().to(to, Produced.with(Serdes.String(), Serdes.Long()));
        words.windowedBy(TimeWindows.ofSizeAndGrace(Duration.ofHours(1), Duration.ofHours(1))).count(Materialized.as(HOURLY));
        return b.build();
    }

    private static Properties properties(String id, String dir) {
        Properties p = new Properties();
        p.put(StreamsConfig.APPLICATION_ID_CONFIG, id);
        p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, System.getenv("BOOTSTRAP"));
        p.put(StreamsConfig.STATE_DIR_CONFIG, dir);
        p.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.AT_LEAST_ONCE);
        p.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, "500");
        p.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, "2");
        p.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, "0"); // every update is a record of the changelog
        p.put(StreamsConfig.ACCEPTABLE_RECOVERY_LAG_CONFIG, String.valueOf(Long.MAX_VALUE)); // a new instance takes part at once
        p.put(StreamsConfig.REPARTITION_PURGE_INTERVAL_MS_CONFIG, "1000");
        p.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        p.put(StreamsConfig.consumerPrefix("session.timeout.ms"), "10000");
        Streams.SETTINGS.forEach((k, v) -> p.put(StreamsConfig.topicPrefix(k), v));
        return p;
    }

    private static synchronized void say(String line) {
        System.out.println(line);
        System.out.flush();
    }

    private static final class Restored implements StateRestoreListener {
        @Override
        public void onRestoreStart(TopicPartition tp, String store, long from, long to) {
        }

        @Override
        public void onBatchRestored(TopicPartition tp, String store, long end, long n) {
        }

        @Override
        public void onRestoreEnd(TopicPartition tp, String store, long n) {
            say("restored " + store + " " + tp.partition() + " " + n);
        }
    }

    private static void print(KafkaStreams streams) {
        StringBuilder out = new StringBuilder();
        try (var all = streams.store(StoreQueryParameters.fromNameAndType(COUNTS, QueryableStoreTypes.<String, Long>keyValueStore())).all()) {
            all.forEachRemaining(e -> out.append("count ").append(e.key).append(' ').append(e.value).append('\n'));
        }
        try (var all = streams.store(StoreQueryParameters.fromNameAndType(HOURLY, QueryableStoreTypes.<String, Long>windowStore())).all()) {
            all.forEachRemaining(e -> out.append("hour ").append(e.key.key()).append(' ').append(e.value).append('\n'));
        }
        say(out + "end");
    }
}
