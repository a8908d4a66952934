import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.internals.RecordHeader;

/** Many records, compared one by one; in the middle of sending and of reading a leader dies. */
final class Many {
    private static final int PARTITIONS = 3;
    private static final int UNDER_WAY = 5000; // records sent and not acknowledged

    private final Matrix m;

    Many(Matrix m) {
        this.m = m;
    }

    /** Kills a leader once a count reaches half; gate holds back at three quarters until it is dead, so that the next leader has work. */
    private final class Killer {
        final AtomicInteger count = new AtomicInteger();
        final CompletableFuture<Integer> dead = new CompletableFuture<>();
        private final String topic;
        private final int partition;

        Killer(String topic, int partition) {
            this.topic = topic;
            this.partition = partition;
        }

        void add() {
            if (count.incrementAndGet() != m.lines / 2) {
                return;
            }
            Thread t = new Thread(() -> {
                try {
                    dead.complete(m.killLeader(topic, partition));
                } catch (Exception e) {
                    dead.completeExceptionally(e);
                }
            });
            t.setDaemon(true);
            t.start();
        }

        /** Waits until one may go on with record n. */
        void gate(int n) throws Exception {
            if (n >= m.lines * 3L / 4) {
                dead.get(Matrix.CASE_BOUND.toMillis(), TimeUnit.MILLISECONDS);
            }
        }
    }

    private static ProducerRecord<byte[], byte[]> numbered(String topic, int i, long base) {
        byte[] n = Data.bytes(String.valueOf(i));
        var r = new ProducerRecord<>(topic, i % PARTITIONS, base + i, n, Data.bytes("record " + i + " of the many that are looked at one by one, each of them"));
        r.headers().add(new RecordHeader("n", n));
        return r;
    }

    String run() throws Exception {
        String topic = m.topic("records");
        m.create(topic, PARTITIONS);
        long base = Data.base();
        long began = System.nanoTime();
        send(topic, base);
        double sent = (System.nanoTime() - began) / 1e9;
        read(topic, base);
        return String.format("%d sent in %.1f s, read in %.1f s", m.lines, sent, (System.nanoTime() - began) / 1e9 - sent);
    }

    private void send(String topic, long base) throws Exception {
        Killer k = new Killer(topic, 0);
        Semaphore slots = new Semaphore(Math.min(UNDER_WAY, m.lines / 4));
        AtomicReference<Exception> failed = new AtomicReference<>();
        try (var p = Data.producer(m, "lz4", 1 << 20)) {
            for (int i = 0; i < m.lines; i++) {
                k.gate(i);
                Matrix.check(slots.tryAcquire(Matrix.CASE_BOUND.toMillis(), TimeUnit.MILLISECONDS), "%d of %d are acknowledged", k.count.get(), m.lines);
                int n = i;
                p.send(numbered(topic, i, base), (ack, e) -> {
                    if (e == null && ack.offset() != n / PARTITIONS) {
                        e = new IllegalStateException("record " + n + " was acknowledged at offset " + ack.offset());
                    }
                    if (e != null) {
                        failed.compareAndSet(null, e);
                    }
                    k.add();
                    slots.release();
                });
            }
            p.flush();
        }
        if (failed.get() != null) {
            throw failed.get();
        }
        Matrix.check(k.count.get() == m.lines, "%d of %d are acknowledged after all were waited for", k.count.get(), m.lines);
    }

    private void read(String topic, long base) throws Exception {
        Killer k = new Killer(topic, 1);
        List<TopicPartition> tps = new ArrayList<>();
        for (int p = 0; p < PARTITIONS; p++) {
            tps.add(new TopicPartition(topic, p));
        }
        int[] next = new int[PARTITIONS];
        try (var c = Data.consumer(m, Map.of())) {
            c.assign(tps);
            c.seekToBeginning(tps);
            for (int n = 0; n < m.lines;) {
                Matrix.check(m.inTime(), "%d of %d records were read in time", n, m.lines);
                k.gate(n);
                for (var got : Data.poll(c, 500)) {
                    int p = got.partition();
                    Matrix.check(got.offset() == next[p], "partition %d: offset %d instead of %d", p, got.offset(), next[p]);
                    Data.same(got, numbered(topic, next[p]++ * PARTITIONS + p, base));
                    k.add();
                    n++;
                }
            }
            Map<TopicPartition, Long> ends = c.endOffsets(tps);
            for (TopicPartition tp : tps) {
                Matrix.check(ends.get(tp) == next[tp.partition()], "%s ends at %d, %d were sent", tp, ends.get(tp), next[tp.partition()]);
            }
        }
    }
}
