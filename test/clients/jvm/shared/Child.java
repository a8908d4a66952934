import java.io.BufferedReader;
import java.io.BufferedWriter;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStreamWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;

/** A Java process of this program's own class path, such as a worker or an instance, with what it has printed. */
final class Child {
    private static final int KEPT = 200_000; // lines of output

    final String name;
    private final Process process;
    private final BufferedWriter in;
    private final List<String> printed = new ArrayList<>();
    private final Path log;

    /** Starts MAIN with its arguments below work, where its temporary files and its log go. */
    Child(String name, Path work, String main, String... args) throws IOException {
        this.name = name;
        Path tmp = Files.createDirectories(work.resolve(name + ".tmp"));
        log = work.resolve(name + ".log");
        List<String> command = new ArrayList<>(List.of("java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.io.tmpdir=" + tmp,
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true", "-cp", System.getProperty("java.class.path"), main));
        command.addAll(List.of(args));
        process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.appendTo(log.toFile())).start();
        in = new BufferedWriter(new OutputStreamWriter(process.getOutputStream(), StandardCharsets.UTF_8));
        Thread reader = new Thread(this::read, name);
        reader.setDaemon(true);
        reader.start();
    }

    private void read() {
        try (BufferedReader out = new BufferedReader(new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8))) {
            for (String line = out.readLine(); line != null; line = out.readLine()) {
                synchronized (printed) {
                    if (printed.size() < KEPT) {
                        printed.add(line);
                    }
                }
            }
        } catch (IOException e) { // it is dead
        }
    }

    /** The lines that it has printed so far. */
    List<String> printed() {
        synchronized (printed) {
            return new ArrayList<>(printed);
        }
    }

    void tell(String line) throws IOException {
        in.write(line);
        in.newLine();
        in.flush();
    }

    boolean alive() {
        return process.isAlive();
    }

    /** How it ended, with the end of its log; null if it lives. */
    String dead() throws IOException {
        return process.isAlive() ? null : name + " ended with code " + process.exitValue() + ": " + tail();
    }

    String tail() throws IOException {
        String all = log();
        return all.substring(Math.max(0, all.length() - 2000));
    }

    String log() throws IOException {
        return Files.readString(log);
    }

    /** kill -9. */
    void kill() throws InterruptedException {
        process.destroyForcibly().waitFor();
    }

    /** Asks it to end, and returns its exit code. */
    int end(long seconds) throws InterruptedException {
        process.destroy();
        return awaitEnd(seconds);
    }

    int awaitEnd(long seconds) throws InterruptedException {
        if (!process.waitFor(seconds, TimeUnit.SECONDS)) {
            kill();
            throw new IllegalStateException(name + " did not end in " + seconds + " s");
        }
        return process.exitValue();
    }
}
