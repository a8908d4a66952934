import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.DescribeConsumerGroupsOptions;

/** The client matrix' program for Kafka Connect with its file connectors: runs every case and prints its line, see test/clients/README.md. */
public final class Connect extends Program {
    private static final String NAME = "kafka-connect";
    private static final String FILE = "org.apache.kafka.connect.file.FileStream";

    final Path work = Path.of(variable("WORK"), prefix); // a second run has a prefix of its own
    final List<Worker> running = new ArrayList<>(); // and those that were

    private Connect() {
        super(variable("PREFIX"), Duration.ofMinutes(5));
    }

    public static void main(String[] args) throws Exception {
        Connect c = new Connect();
        Files.createDirectories(c.work);
        Distributed d = new Distributed(c);
        try {
            c.print(NAME, "standalone", c::standalone);
            c.print(NAME, "distributed", d::run);
            c.print(NAME, "internal-topics", () -> new Internal(c, d).run());
            c.print(NAME, "sink-offsets", d::sinkOffsets);
        } finally {
            c.endAll();
            c.admin.close(Duration.ofSeconds(10));
        }
    }

    private void endAll() throws InterruptedException {
        for (Worker w : running) {
            w.process.kill();
        }
        running.clear();
    }

    Map<String, String> workerSettings(String converter) {
        Map<String, String> p = new HashMap<>();
        p.put("bootstrap.servers", bootstrap);
        p.put("client.id", prefix);
        p.put("key.converter", converter);
        p.put("value.converter", converter);
        p.put("offset.flush.interval.ms", "500");
        p.put("plugin.discovery", "service_load");
        // A new sink task waits for the session of the one that was killed with its worker. It begins anew with each coordinator, as
        // Kafka's does: with the default of 45 s it would not end as long as other programs have a node in three killed every ten.
        p.put("consumer.session.timeout.ms", "10000");
        return p;
    }

    /** The topic is made by Connect itself. */
    Map<String, String> source(String name, Path file, String topic) {
        return Map.of("name", name, "connector.class", FILE + "SourceConnector", "file", file.toString(), "topic", topic, "tasks.max", "1",
            "batch.size", "200", "topic.creation.default.partitions", "1", "topic.creation.default.replication.factor", "3",
            "topic.creation.default.retention.ms", "-1");
    }

    Map<String, String> sink(String name, Path file, String topic) {
        return Map.of("name", name, "connector.class", FILE + "SinkConnector", "file", file.toString(), "topics", topic, "tasks.max", "1");
    }

    /** Waits until a connector and its one task run, and returns the address of the task's worker. */
    String running(Worker asked, String connector) throws Exception {
        String[] at = new String[1];
        await(connector + " running", () -> {
            JsonNode s = asked.get("/connectors/" + connector + "/status");
            boolean runs = s.path("connector").path("state").asText().equals("RUNNING") && s.path("tasks").size() == 1
                && s.path("tasks").path(0).path("state").asText().equals("RUNNING");
            at[0] = s.path("tasks").path(0).path("worker_id").asText();
            return runs ? null : s.toString();
        });
        return at[0];
    }

    /** One process with both connectors, whose source offsets are in a file: a leader dies, then the worker, then it is asked to end. */
    private String standalone() throws Exception {
        String topic = topic("standalone");
        Map<String, String> settings = workerSettings("org.apache.kafka.connect.json.JsonConverter");
        settings.put("offset.storage.file.filename", work.resolve("standalone.offsets").toString());
        Path out = work.resolve("standalone.out");
        try (Lines lines = new Lines(work.resolve("standalone.in"), this.lines)) {
            Path[] connectors = {
                Worker.properties(work.resolve("source.properties"), source("source", lines.source, topic)),
                Worker.properties(work.resolve("sink.properties"), sink(prefix + ".sink", out, topic))};
            Lines.Sink sink = lines.new Sink(prefix + ".sink", out);
            String main = "org.apache.kafka.connect.cli.ConnectStandalone";
            Worker w = Worker.start(this, "standalone-1", settings, main, connectors);
            lines.upTo(lines.all / 4);
            arrived(w, sink, lines.all / 8);
            killLeader(topic, 0);
            lines.upTo(lines.all / 2);
            arrived(w, sink, lines.all * 3 / 8);
            w.process.kill();
            w = Worker.start(this, "standalone-2", settings, main, connectors);
            lines.upTo(lines.all * 3 / 4);
            arrived(w, sink, lines.all * 5 / 8);
            int code = w.process.end(60);
            check(code == 0 || code == 143, "the worker ended with code %d: %s", code, w.process.tail());
            w = Worker.start(this, "standalone-3", settings, main, connectors);
            lines.upTo(lines.all);
            arrived(w, sink, lines.all);
            check(w.get("/connectors/source/topics").path("source").path("topics").path(0).asText().equals(topic), "the source's topics: %s", w.get("/connectors/source/topics"));
            System.err.printf("standalone: %d lines, %d of them repeated%n", sink.next, sink.repeated);
        } finally {
            endAll();
        }
        return "";
    }

    void arrived(Worker w, Lines.Sink sink, int n) throws Exception {
        try {
            await("line " + n, () -> {
                String why = sink.missing(n);
                check(why == null || w.process.dead() == null, "%s; %s", why, w.process.dead());
                return why;
            });
        } catch (IllegalStateException e) {
            throw new IllegalStateException(e.getMessage() + state(w, sink), e);
        }
    }

    /** What a failure is explained by: the connectors and tasks with the traces of those that failed, the sink's group, the worker's log. */
    private String state(Worker w, Lines.Sink sink) {
        var groups = new DescribeConsumerGroupsOptions().timeoutMs(10_000);
        String group = "connect-" + sink.connector;
        return part("status", () -> w.get("/connectors?expand=status"))
            + part("group", () -> admin.describeConsumerGroups(List.of(group), groups).all().get())
            + part("offsets", () -> admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get(10, TimeUnit.SECONDS))
            + part("log of " + w.process.name, w.process::tail);
    }

    private static String part(String what, Callable<?> asked) {
        String text;
        try {
            text = String.valueOf(asked.call());
        } catch (Exception e) {
            text = e.toString();
        }
        return "; " + what + ": " + text.substring(0, Math.min(text.length(), 8000));
    }
}
