import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Future;
import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RebalanceInProgressException;

/** Consumer groups, in the protocol that the program was started with. */
final class Groups {
    static final int PARTITIONS = 6;
    private static final int STEP = 600; // records between two rebalances
    private static final int ALL = 3 * STEP;

    private final Matrix m;
    private final boolean classic;

    Groups(Matrix m) {
        this.m = m;
        this.classic = m.protocol.equals("classic");
    }

    private Map<String, String> settings(String group, Map<String, String> more) {
        Map<String, String> p = new HashMap<>(more);
        p.put("group.id", group);
        if (classic) {
            p.put("session.timeout.ms", "30000");
        } else {
            p.put("group.protocol", m.protocol);
            p.remove("partition.assignment.strategy"); // the server assigns
        }
        return p;
    }

    /** A member that reads in a thread of its own. */
    private final class Member implements ConsumerRebalanceListener {
        final Set<Integer> owned = ConcurrentHashMap.newKeySet();
        volatile int revoked; // partitions taken away so far
        volatile int generation;
        private final KafkaConsumer<byte[], byte[]> consumer;
        private final Thread thread;
        private volatile boolean stop;
        private volatile RuntimeException failed;

        Member(String group, String topic, Map<String, String> more, Map<String, Integer> seen) {
            consumer = Data.consumer(m, settings(group, more));
            thread = new Thread(() -> {
                try (consumer) {
                    consumer.subscribe(List.of(topic), this);
                    while (!stop) {
                        for (var r : Data.poll(consumer, 100)) {
                            seen.merge(new String(r.value()), 1, Integer::sum);
                        }
                        generation = consumer.groupMetadata().generationId();
                    }
                } catch (RuntimeException e) {
                    failed = e;
                }
            });
            thread.start();
        }

        @Override
        public void onPartitionsAssigned(Collection<TopicPartition> ps) {
            generation = consumer.groupMetadata().generationId(); // before what is owned in it
            ps.forEach(p -> owned.add(p.partition()));
        }

        @Override
        public void onPartitionsRevoked(Collection<TopicPartition> ps) {
            ps.forEach(p -> owned.remove(p.partition()));
            if (!stop) {
                revoked += ps.size();
            }
        }

        void close() throws Exception {
            stop = true;
            thread.join(Matrix.CASE_BOUND.toMillis());
            Matrix.check(!thread.isAlive(), "a member does not end");
            if (failed != null) {
                throw failed;
            }
        }
    }

    /** Waits until the members own every partition between them, each one once and nobody none. */
    private void owned(Member... members) throws Exception {
        m.await("the rebalance", () -> {
            List<Integer> union = new ArrayList<>();
            boolean idle = false;
            for (Member one : members) {
                Set<Integer> o = new TreeSet<>(one.owned);
                idle |= o.isEmpty();
                union.addAll(o);
            }
            boolean all = union.size() == PARTITIONS && new HashSet<>(union).size() == PARTITIONS;
            return all && !idle ? null : members.length + " members own " + union;
        });
    }

    private void send(String topic, int from, int n) throws Exception {
        List<Future<RecordMetadata>> acks = new ArrayList<>();
        try (var p = Data.producer(m, "none", 1 << 20)) {
            for (int i = from; i < from + n; i++) {
                acks.add(p.send(new ProducerRecord<>(topic, i % PARTITIONS, Data.bytes(String.valueOf(i)), Data.bytes("main " + i))));
            }
        }
        for (var a : acks) {
            a.get();
        }
    }

    private void arrived(Map<String, Integer> seen, int n) throws Exception {
        m.await("the last of the records", () -> seen.size() == n ? null : seen.size() + " of " + n + " records have arrived");
    }

    String group() throws Exception {
        String topic = m.topic("main");
        String group = m.topic("group");
        Map<String, Integer> seen = new ConcurrentHashMap<>();
        Member a = new Member(group, topic, Map.of(), seen);
        try {
            owned(a);
            send(topic, 0, STEP);
            arrived(seen, STEP);
            Member b = new Member(group, topic, Map.of(), seen);
            try {
                owned(a, b);
                typed(group, 2);
                send(topic, STEP, STEP);
                arrived(seen, 2 * STEP);
            } finally {
                b.close();
            }
            owned(a);
            send(topic, 2 * STEP, STEP);
            arrived(seen, ALL);
        } finally {
            a.close();
        }
        return "";
    }

    /** The group's description names its members and, where the client knows types, the protocol's. */
    private void typed(String group, int members) throws Exception {
        m.await("the group's description", () -> {
            var d = m.admin.describeConsumerGroups(List.of(group)).all().get().get(group);
            long partitions = d.members().stream().mapToLong(x -> x.assignment().topicPartitions().size()).sum();
            boolean right = d.members().size() == members && partitions == PARTITIONS && d.state().toString().equals("Stable");
            try {
                String type = d.getClass().getMethod("type").invoke(d).toString();
                right &= type.equalsIgnoreCase(m.protocol);
                return right ? null : type + " " + d;
            } catch (NoSuchMethodException e) {
                Matrix.check(classic, "a client that does not know types speaks %s", m.protocol);
                return right ? null : d.toString();
            }
        });
    }

    /** Static members and cooperative rebalances: one that comes back under its name gets its partitions again, and nobody notices. */
    String fixed() throws Exception {
        String topic = m.topic("static");
        String group = m.topic("static");
        m.create(topic, PARTITIONS);
        Map<String, Integer> seen = new ConcurrentHashMap<>();
        String cooperative = "org.apache.kafka.clients.consumer.CooperativeStickyAssignor";
        Map<String, String> one = Map.of("group.instance.id", "one", "partition.assignment.strategy", cooperative);
        Map<String, String> two = Map.of("group.instance.id", "two", "partition.assignment.strategy", cooperative);
        Member a = new Member(group, topic, one, seen);
        try {
            owned(a);
            Member b = new Member(group, topic, two, seen);
            Member first = b;
            Set<Integer> before;
            int generation;
            try {
                owned(a, b);
                m.await("one generation", () -> a.generation == first.generation ? null : a.generation + " and " + first.generation);
                generation = a.generation;
                before = Set.copyOf(b.owned);
                Matrix.check(a.revoked == PARTITIONS / 2, "the first member lost %d partitions to the second", a.revoked);
            } finally {
                b.close();
            }
            b = new Member(group, topic, two, seen);
            try {
                owned(a, b);
                Matrix.check(b.owned.equals(before), "a static member came back and owns %s instead of %s", b.owned, before);
                send(topic, 0, STEP);
                arrived(seen, STEP);
                Matrix.check(a.revoked == PARTITIONS / 2, "a static member's return took %d partitions from the other", a.revoked - PARTITIONS / 2);
                Matrix.check(!classic || a.generation == generation, "a static member's return made generation %d of %d", a.generation, generation);
            } finally {
                b.close();
            }
        } finally {
            a.close();
        }
        return "";
    }

    /** The coordinator dies while a member reads and commits: generation, member and offsets survive it. */
    String failover() throws Exception {
        String topic = m.topic("failover");
        String group = m.topic("failover");
        m.create(topic, PARTITIONS);
        send(topic, 0, ALL);
        Set<String> seen = new HashSet<>();
        Map<TopicPartition, OffsetAndMetadata> at = new HashMap<>();
        boolean killed = false;
        int generation = 0;
        int refused = 0;
        try (var c = Data.consumer(m, settings(group, Map.of("max.poll.records", "50")))) {
            c.subscribe(List.of(topic));
            while (seen.size() < ALL) {
                Matrix.check(m.inTime(), "%d of %d records came in time", seen.size(), ALL);
                var got = Data.poll(c, 500);
                for (ConsumerRecord<byte[], byte[]> r : got) {
                    seen.add(new String(r.value()));
                    at.merge(new TopicPartition(topic, r.partition()), new OffsetAndMetadata(r.offset() + 1), (x, y) -> x.offset() > y.offset() ? x : y);
                }
                if (got.isEmpty()) {
                    continue;
                }
                try {
                    c.commitSync(at);
                } catch (CommitFailedException | RebalanceInProgressException e) {
                    refused++;
                    continue;
                }
                Map<TopicPartition, OffsetAndMetadata> kept = c.committed(at.keySet());
                at.forEach((tp, o) -> Matrix.check(kept.get(tp) != null && kept.get(tp).offset() == o.offset(), "%s: %d was committed, now it is %s", tp, o.offset(), kept.get(tp)));
                if (!killed && seen.size() > ALL / 3) {
                    generation = c.groupMetadata().generationId();
                    m.killCoordinator(group);
                    killed = true;
                }
            }
            Matrix.check(c.groupMetadata().generationId() == generation, "generation %d before the coordinator died, %d afterwards", generation, c.groupMetadata().generationId());
            Matrix.check(refused == 0, "%d commits were refused", refused);
        }
        return "";
    }

    String commit() throws Exception {
        String topic = m.topic("main");
        String group = m.topic("commit");
        Map<TopicPartition, Long> next = new HashMap<>();
        for (int p = 0; p < PARTITIONS; p++) {
            next.put(new TopicPartition(topic, p), 0L);
        }
        Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
        try (var c = Data.consumer(m, settings(group, Map.of("max.poll.records", "100")))) {
            c.subscribe(List.of(topic));
            read(c, next, ALL / 2);
            next.forEach((tp, o) -> offsets.put(tp, new OffsetAndMetadata(o, "of " + tp)));
            c.commitSync(offsets);
            Matrix.check(c.committed(offsets.keySet()).equals(offsets), "committed: %s, read back: %s", offsets, c.committed(offsets.keySet()));
        }
        var kept = m.admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
        Matrix.check(kept.equals(offsets), "committed: %s, the admin client sees %s", offsets, kept);
        try (var c = Data.consumer(m, settings(group, Map.of()))) {
            c.subscribe(List.of(topic));
            read(c, next, ALL);
        }
        return "";
    }

    /** Reads on from next until so many records are read. A member that has to join again may go back to where it began, but skips nothing. */
    private void read(KafkaConsumer<byte[], byte[]> c, Map<TopicPartition, Long> next, int until) {
        Map<TopicPartition, Long> start = Map.copyOf(next);
        while (next.values().stream().mapToLong(Long::longValue).sum() < until) {
            Matrix.check(m.inTime(), "%s were read in time", next);
            for (var r : Data.poll(c, 500)) {
                TopicPartition tp = new TopicPartition(r.topic(), r.partition());
                Matrix.check(r.offset() >= start.get(tp) && r.offset() <= next.get(tp), "%s: offset %d was read, not %d", tp, r.offset(), next.get(tp));
                next.merge(tp, r.offset() + 1, Math::max);
            }
        }
    }
}
