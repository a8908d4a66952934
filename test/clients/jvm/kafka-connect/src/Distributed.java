import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Path;
import java.util.Map;

/** Two workers or more in one group, connectors made through REST; workers die while lines flow. */
final class Distributed {
    final String group;
    final String topic;
    final String sinkName;
    Worker worker; // one that lives
    Lines lines;
    private final Connect c;
    private int started;

    Distributed(Connect c) {
        this.c = c;
        this.group = c.topic("workers");
        this.topic = c.topic("distributed");
        this.sinkName = c.topic("file-sink");
    }

    String internal(String name) {
        return c.topic("workers-" + name);
    }

    private Worker start() throws Exception {
        Map<String, String> p = c.workerSettings("org.apache.kafka.connect.storage.StringConverter");
        p.put("group.id", group);
        for (String name : new String[] {"config", "offset", "status"}) {
            p.put(name + ".storage.topic", internal(name));
            // Settings that Connect hands on to the topic: old records are to be compacted soon. It adds the policy itself.
            Internal.SETTINGS.forEach((k, v) -> p.put(name + ".storage." + k, v));
        }
        p.put("scheduled.rebalance.max.delay.ms", "1000"); // how long a lost worker's tasks wait for it; five minutes by default
        return Worker.start(c, "worker-" + ++started, p, "org.apache.kafka.connect.cli.ConnectDistributed");
    }

    private void put(Worker w, Map<String, String> connector) throws Exception {
        c.await(connector.get("name"), () -> { // 409 while the workers rebalance
            w.request("PUT", "/connectors/" + connector.get("name") + "/config", connector);
            return null;
        });
    }

    String run() throws Exception {
        Worker a = start();
        Worker b = start();
        lines = new Lines(c.work.resolve("distributed.in"), c.lines);
        Path out = c.work.resolve("distributed.out");
        Lines.Sink sink = lines.new Sink(sinkName, out);
        put(a, c.source("source", lines.source, topic));
        put(b, c.sink(sinkName, out, topic));
        c.running(b, "source");
        c.running(a, sinkName);
        lines.upTo(lines.all / 4);
        c.arrived(a, sink, lines.all / 8);
        c.killLeader(topic, 0);

        lines.upTo(lines.all / 2);
        c.arrived(a, sink, lines.all * 3 / 8);
        Worker lives = killHost(a, b, "source");
        Worker next = start();
        c.arrived(lives, sink, lines.all / 2);

        lines.upTo(lines.all * 3 / 4);
        c.arrived(lives, sink, lines.all * 5 / 8);
        worker = killHost(lives, next, sinkName);
        c.killCoordinator(group);
        lines.upTo(lines.all);
        c.arrived(worker, sink, lines.all);
        System.err.printf("distributed: %d lines, %d of them repeated%n", sink.next, sink.repeated);
        return "";
    }

    /** Kills the worker on which a connector's task runs, waits for the task to run on the other one, and returns that. */
    private Worker killHost(Worker a, Worker b, String connector) throws Exception {
        String host = c.running(a, connector);
        Worker dies = host.equals(a.address) ? a : b;
        Worker lives = dies == a ? b : a;
        Program.check(host.equals(dies.address), "%s runs on %s, which is neither %s nor %s", connector, host, a.address, b.address);
        dies.process.kill();
        c.await(connector + " on the other worker", () -> {
            String now = c.running(lives, connector);
            return now.equals(lives.address) ? null : "it is said to run on " + now;
        });
        return lives;
    }

    /** The sink's offsets, its group's, are read and taken back through REST (KIP-875): everything comes once more. Then the connectors go. */
    String sinkOffsets() throws Exception {
        Program.check(worker != null, "the case distributed has left no worker");
        String path = "/connectors/" + sinkName;
        c.await("the sink's offsets", () -> {
            JsonNode o = worker.get(path + "/offsets").path("offsets");
            boolean end = o.size() == 1 && o.path(0).path("partition").path("kafka_topic").asText().equals(topic)
                && o.path(0).path("offset").path("kafka_offset").asInt() >= lines.all;
            return end ? null : o.toString();
        });
        c.await("the sink stopped", () -> {
            worker.request("PUT", path + "/stop", null);
            JsonNode s = worker.get(path + "/status");
            return s.path("connector").path("state").asText().equals("STOPPED") && s.path("tasks").isEmpty() ? null : s.toString();
        });
        c.await("the offsets gone", () -> {
            worker.request("DELETE", path + "/offsets", null);
            return null;
        });
        Path again = c.work.resolve("again.out");
        put(worker, c.sink(sinkName, again, topic));
        c.await("the sink resumed", () -> {
            worker.request("PUT", path + "/resume", null);
            return null;
        });
        Lines.Sink sink = lines.new Sink(sinkName, again);
        c.arrived(worker, sink, lines.all);
        for (String name : new String[] {"source", sinkName}) {
            c.await(name + " gone", () -> {
                if (worker.get("/connectors").toString().contains("\"" + name + "\"")) {
                    worker.request("DELETE", "/connectors/" + name, null);
                }
                return worker.get("/connectors").toString().contains("\"" + name + "\"") ? "it is there" : null;
            });
        }
        lines.close();
        return "";
    }
}
