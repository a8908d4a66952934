import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Random;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndTimestamp;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RecordTooLargeException;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Records: every codec, by time, offsets, large ones. */
final class Data {
    private static final int CODEC_RECORDS = 1000;
    private static final int LARGE = 1_000_000;

    private final Matrix m;

    Data(Matrix m) {
        this.m = m;
    }

    static byte[] bytes(String s) {
        return s.getBytes(StandardCharsets.UTF_8);
    }

    /** A day ago, so that it is not the time of sending. */
    static long base() {
        return (System.currentTimeMillis() / 1000 - 86_400) * 1000;
    }

    static KafkaProducer<byte[], byte[]> producer(Matrix m, String codec, int maxBytes) {
        Properties p = m.properties();
        p.put("acks", "all");
        p.put("enable.idempotence", "true");
        p.put("max.in.flight.requests.per.connection", "5");
        p.put("compression.type", codec);
        p.put("linger.ms", "20");
        p.put("max.request.size", String.valueOf(maxBytes));
        return new KafkaProducer<>(p, new ByteArraySerializer(), new ByteArraySerializer());
    }

    static KafkaConsumer<byte[], byte[]> consumer(Matrix m, Map<String, String> more) {
        Properties p = m.properties();
        p.put("auto.offset.reset", "earliest");
        p.put("enable.auto.commit", "false");
        p.put("fetch.max.wait.ms", "100");
        p.putAll(more);
        return new KafkaConsumer<>(p, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    /**
     * Polls for at most so many milliseconds. A consumer by the consumer protocol hands out records in one thread while another may call a position in
     * question because its partition's leader has changed; it throws here then. Nothing is lost: the position has not moved, and they come again.
     */
    static ConsumerRecords<byte[], byte[]> poll(KafkaConsumer<byte[], byte[]> c, int millis) {
        try {
            return c.poll(Duration.ofMillis(millis));
        } catch (IllegalStateException e) {
            if (!"Cannot set a new position without a valid current position".equals(e.getMessage())) {
                throw e;
            }
            return ConsumerRecords.empty();
        }
    }

    /** A record that compresses well and that no other equals. */
    private static ProducerRecord<byte[], byte[]> record(String topic, int partition, String what, int i, long base) {
        var r = new ProducerRecord<>(topic, partition, base + 1000L * i, bytes(String.format("key-%04d", i)),
            bytes("value " + i + " of " + what + ": " + "compressible ".repeat(12)));
        r.headers().add(new RecordHeader("number", bytes(String.valueOf(i)))).add(new RecordHeader("what", bytes(what)));
        return r;
    }

    static void same(ConsumerRecord<byte[], byte[]> got, ProducerRecord<byte[], byte[]> sent) {
        Matrix.check(Arrays.equals(got.key(), sent.key()) && Arrays.equals(got.value(), sent.value())
                && got.timestamp() == sent.timestamp() && got.headers().equals(sent.headers()),
            "at offset %d: %s, key %s; sent: %s", got.offset(), got.headers(), new String(got.key(), StandardCharsets.UTF_8), sent.headers());
    }

    /** Sends records and checks that they got the offsets from the first one on, in their partition. */
    private void send(String codec, List<ProducerRecord<byte[], byte[]>> records) throws Exception {
        List<Future<RecordMetadata>> acks = new ArrayList<>();
        try (var p = producer(m, codec, 1 << 20)) {
            for (var r : records) {
                acks.add(p.send(r));
            }
            p.flush();
        }
        Map<Integer, Long> next = new HashMap<>();
        for (int i = 0; i < acks.size(); i++) {
            RecordMetadata a = acks.get(i).get();
            long want = next.merge(a.partition(), 1L, Long::sum) - 1;
            Matrix.check(a.partition() == records.get(i).partition() && a.offset() == want, "record %d was acknowledged as %s, not at %d", i, a, want);
        }
    }

    String produce(String codec) throws Exception {
        String topic = m.topic(codec);
        m.create(topic, 1);
        long base = base();
        List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
        for (int i = 0; i < CODEC_RECORDS; i++) {
            records.add(record(topic, 0, codec, i, base));
        }
        send(codec, records);
        compare(topic, records);
        return "";
    }

    /** Reads partition 0 from the beginning. */
    private void compare(String topic, List<ProducerRecord<byte[], byte[]>> records) {
        TopicPartition tp = new TopicPartition(topic, 0);
        try (var c = consumer(m, Map.of())) {
            c.assign(List.of(tp));
            c.seekToBeginning(List.of(tp));
            int next = 0;
            while (next < records.size()) {
                Matrix.check(m.inTime(), "%d of %d records came in time", next, records.size());
                for (var got : poll(c, 500)) {
                    Matrix.check(next < records.size() && got.offset() == next, "offset %d instead of %d", got.offset(), next);
                    same(got, records.get(next++));
                }
            }
        }
    }

    String seekTime() throws Exception {
        String topic = m.topic("time");
        TopicPartition tp = new TopicPartition(topic, 0);
        m.create(topic, 1);
        long base = base();
        List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
        for (int i = 0; i < 100; i++) {
            records.add(record(topic, 0, "time", i, base));
        }
        send("none", records);
        try (var c = consumer(m, Map.of())) {
            c.assign(List.of(tp));
            Map<Long, Integer> wanted = Map.of(base - 3_600_000, 0, base + 50_500, 51, base + 51_000, 51, base + 99_000, 99);
            for (var q : wanted.entrySet()) {
                OffsetAndTimestamp at = c.offsetsForTimes(Map.of(tp, q.getKey())).get(tp);
                Matrix.check(at != null && at.offset() == q.getValue() && at.timestamp() == base + 1000L * q.getValue(), "%d ms after the first: %s, not offset %d",
                    q.getKey() - base, at, q.getValue());
                c.seek(tp, at.offset());
                Iterator<ConsumerRecord<byte[], byte[]>> got = List.<ConsumerRecord<byte[], byte[]>>of().iterator();
                while (!got.hasNext()) {
                    Matrix.check(m.inTime(), "no record after a seek to offset %d", at.offset());
                    got = poll(c, 500).iterator();
                }
                var first = got.next();
                Matrix.check(first.offset() == at.offset(), "after a seek to %d comes %d", at.offset(), first.offset());
                same(first, records.get(q.getValue()));
            }
            OffsetAndTimestamp after = c.offsetsForTimes(Map.of(tp, base + 3_600_000)).get(tp);
            Matrix.check(after == null, "after the last record: %s", after);
        }
        return "";
    }

    String listOffsets() throws Exception {
        String topic = m.topic("offsets");
        m.create(topic, 3);
        List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
        long base = base();
        for (int p = 0; p < 3; p++) {
            for (int i = 0; i < 10 * (p + 1); i++) {
                records.add(record(topic, p, "offsets", i, base));
            }
        }
        send("none", records);
        listed(topic, 0);
        TopicPartition last = new TopicPartition(topic, 2);
        long low = m.admin.deleteRecords(Map.of(last, RecordsToDelete.beforeOffset(7))).lowWatermarks().get(last).get().lowWatermark();
        Matrix.check(low == 7, "records before 7 deleted: the low watermark is %d", low);
        listed(topic, 7);
        return "";
    }

    /** The first and the end offsets by the consumer and by the admin client: 0 to 10, 0 to 20 and first to 30. */
    private void listed(String topic, long first) throws Exception {
        List<TopicPartition> tps = List.of(new TopicPartition(topic, 0), new TopicPartition(topic, 1), new TopicPartition(topic, 2));
        Map<TopicPartition, Long> begin = Map.of(tps.get(0), 0L, tps.get(1), 0L, tps.get(2), first);
        Map<TopicPartition, Long> end = Map.of(tps.get(0), 10L, tps.get(1), 20L, tps.get(2), 30L);
        try (var c = consumer(m, Map.of())) {
            Matrix.check(c.beginningOffsets(tps).equals(begin), "beginnings: %s", c.beginningOffsets(tps));
            Matrix.check(c.endOffsets(tps).equals(end), "ends: %s", c.endOffsets(tps));
        }
        for (TopicPartition tp : tps) {
            long e = m.admin.listOffsets(Map.of(tp, OffsetSpec.earliest())).partitionResult(tp).get().offset();
            long l = m.admin.listOffsets(Map.of(tp, OffsetSpec.latest())).partitionResult(tp).get().offset();
            Matrix.check(e == begin.get(tp) && l == end.get(tp), "the admin client's offsets of %s: %d to %d", tp, e, l);
        }
    }

    String large() throws Exception {
        String topic = m.topic("large");
        m.create(topic, 1);
        byte[] value = new byte[LARGE];
        new Random(1).nextBytes(value);
        List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
        for (int i = 0; i < 4; i++) {
            byte[] v = value.clone();
            v[0] = (byte) i;
            records.add(new ProducerRecord<>(topic, 0, base() + i, bytes("large-" + i), v));
        }
        try (var p = producer(m, "none", 4 << 20)) {
            for (var r : records.subList(0, 3)) {
                p.send(r).get();
            }
            try {
                p.send(new ProducerRecord<>(topic, 0, bytes("too large"), new byte[2 * LARGE])).get();
                throw new IllegalStateException("2,000,000 bytes were taken, more than max.message.bytes");
            } catch (ExecutionException e) {
                Matrix.check(e.getCause() instanceof RecordTooLargeException, "2,000,000 bytes, more than max.message.bytes: %s", e.getCause());
            }
            p.send(records.get(3)).get();
        }
        compare(topic, records);
        return "";
    }
}
