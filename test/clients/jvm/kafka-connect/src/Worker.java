import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** A Connect worker: a process, and its REST API. */
final class Worker {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final HttpClient HTTP = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(5)).build();

    final Child process;
    final String address; // as worker_id names it

    private Worker(Child process, int port) {
        this.process = process;
        this.address = "127.0.0.1:" + port;
    }

    static Path properties(Path file, Map<String, String> p) throws IOException {
        List<String> text = new ArrayList<>();
        new TreeMap<>(p).forEach((k, v) -> text.add(k + "=" + v));
        return Files.write(file, text);
    }

    /** Starts a worker and waits until it says that it is healthy. The files are connectors' properties, in standalone mode. */
    static Worker start(Connect c, String name, Map<String, String> settings, String main, Path... connectors) throws Exception {
        while (true) {
            int port;
            try (ServerSocket s = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
                port = s.getLocalPort();
            }
            Map<String, String> p = new TreeMap<>(settings);
            p.put("listeners", "http://127.0.0.1:" + port);
            List<String> args = new ArrayList<>(List.of(properties(c.work.resolve(name + ".properties"), p).toString()));
            for (Path f : connectors) {
                args.add(f.toString());
            }
            Worker w = new Worker(new Child(name, c.work, main, args.toArray(new String[0])), port);
            c.running.add(w);
            c.await(name + "'s health", () -> w.process.dead() != null ? null : w.get("/health").path("status").asText().equals("healthy") ? null : "not healthy");
            if (w.process.dead() == null) {
                return w;
            }
            // Somebody else may have taken the port in the meantime.
            Program.check(w.process.log().contains("BindException") && c.inTime(), "%s", w.process.dead());
        }
    }

    JsonNode get(String path) throws IOException, InterruptedException {
        return request("GET", path, null);
    }

    /** Any answer but a success is an IOException, which the caller's await repeats. */
    JsonNode request(String method, String path, Object body) throws IOException, InterruptedException {
        var publisher = body == null ? HttpRequest.BodyPublishers.noBody() : HttpRequest.BodyPublishers.ofString(JSON.writeValueAsString(body));
        var r = HTTP.send(HttpRequest.newBuilder(URI.create("http://" + address + path)).timeout(Duration.ofSeconds(90))
            .header("Content-Type", "application/json").method(method, publisher).build(), HttpResponse.BodyHandlers.ofString());
        if (r.statusCode() / 100 != 2) {
            throw new IOException(method + " " + path + " of " + process.name + ": " + r.statusCode() + " " + r.body());
        }
        return r.body().isEmpty() ? JSON.nullNode() : JSON.readTree(r.body());
    }
}
