import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Properties;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.common.utils.AppInfoParser;

/** What the matrix' Java programs have in common: what they are given, the line of each case, waiting, and kills. See test/clients/README.md. */
class Program {
    final String bootstrap = variable("BOOTSTRAP");
    final String prefix;
    final int lines = Integer.parseInt(variable("LINES"));
    final Admin admin;
    private final String control = variable("CONTROL");
    private final Duration caseBound;
    private final HttpClient http = HttpClient.newHttpClient();
    private long deadline; // of the case that runs, in System.nanoTime

    /** What a case does. It returns the detail. */
    interface Case {
        String run() throws Exception;
    }

    Program(String prefix, Duration caseBound) {
        this.prefix = prefix;
        this.caseBound = caseBound;
        this.admin = Admin.create(properties());
    }

    static String variable(String name) {
        String v = System.getenv(name);
        if (v == null || v.isEmpty()) {
            System.err.println(name + " is not set: `make clients` does it");
            System.exit(2);
        }
        return v;
    }

    Properties properties() {
        Properties p = new Properties();
        p.put("bootstrap.servers", bootstrap);
        p.put("client.id", prefix);
        return p;
    }

    String topic(String name) {
        return prefix + "." + name;
    }

    /** Runs a case and prints its line. */
    void print(String client, String name, Case c) {
        long began = System.nanoTime();
        deadline = began + caseBound.toNanos();
        String result = "ok";
        String detail = "";
        try {
            detail = c.run();
        } catch (Throwable e) {
            e.printStackTrace();
            result = "failed";
            detail = e.toString();
        }
        System.err.printf("%s %s: %s (%d ms)%n", client, name, result, (System.nanoTime() - began) / 1_000_000);
        System.out.printf("{\"client\":%s,\"version\":%s,\"case\":%s,\"result\":%s,\"detail\":%s}%n", quoted(client),
            quoted(AppInfoParser.getVersion()), quoted(name), quoted(result), quoted(detail));
        System.out.flush();
    }

    static String quoted(String s) {
        StringBuilder b = new StringBuilder("\"");
        for (char c : s.toCharArray()) {
            if (c == '"' || c == '\\') {
                b.append('\\').append(c);
            } else if (c < 0x20) {
                b.append(String.format("\\u%04x", (int) c));
            } else {
                b.append(c);
            }
        }
        return b.append('"').toString();
    }

    boolean inTime() {
        return System.nanoTime() < deadline;
    }

    /** Asks again until the answer is null; an answer or an exception says what is missing. */
    void await(String what, Callable<String> missing) throws Exception {
        while (true) {
            String why;
            Exception cause = null;
            try {
                why = missing.call();
                if (why == null) {
                    return;
                }
            } catch (ExecutionException | IOException | org.apache.kafka.common.KafkaException e) {
                why = e.toString();
                cause = e;
            }
            if (!inTime()) {
                throw new IllegalStateException(what + " does not come: " + why, cause);
            }
            Thread.sleep(100);
        }
    }

    /** Has a partition's leader killed. */
    int killLeader(String topic, int partition) throws IOException, InterruptedException {
        return kill("topic=" + URLEncoder.encode(topic, StandardCharsets.UTF_8) + "&partition=" + partition);
    }

    int killCoordinator(String group) throws IOException, InterruptedException {
        return kill("group=" + URLEncoder.encode(group, StandardCharsets.UTF_8));
    }

    private int kill(String what) throws IOException, InterruptedException {
        var request = HttpRequest.newBuilder(URI.create(control + "/kill?" + what)).timeout(caseBound)
            .POST(HttpRequest.BodyPublishers.noBody()).build();
        var response = http.send(request, HttpResponse.BodyHandlers.ofString());
        if (response.statusCode() != 200) {
            throw new IOException("killing the leader: " + response.statusCode() + " " + response.body());
        }
        return Integer.parseInt(response.body().replaceAll("\\D", ""));
    }

    static void check(boolean ok, String format, Object... args) {
        if (!ok) {
            throw new IllegalStateException(String.format(format, args));
        }
    }
}
