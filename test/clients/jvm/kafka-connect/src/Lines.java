import java.io.IOException;
import java.io.RandomAccessFile;
import java.io.Writer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/**
 * A source file that grows while it is read, and the sink file to which its lines go by one partition. Connect promises at least
 * once, in order: after a line comes the next, or, where work was taken up again, an earlier one and what follows it.
 */
final class Lines implements AutoCloseable {
    private static final int STEPS = 40; // in which a quarter of the lines is written, one each STEP
    private static final long STEP_MILLIS = 75;

    final Path source;
    final int all;
    private final Thread writer;
    private int limit; // lines that may be written
    private IOException failed;

    Lines(Path source, int all) throws IOException {
        this.source = source;
        this.all = all;
        Files.createFile(source);
        writer = new Thread(this::write, "source-file");
        writer.setDaemon(true);
        writer.start();
    }

    /** In ASCII: the source counts its position in characters and takes it up again in bytes. */
    static String line(int n) {
        return "line " + n + " of a file whose lines are looked at one by one, \"quoted\" \\ and " + "long ".repeat(n % 5);
    }

    private void write() {
        try (Writer w = Files.newBufferedWriter(source, StandardOpenOption.APPEND)) {
            for (int n = 0; n < all;) {
                int to;
                synchronized (this) {
                    while (limit == n) {
                        wait();
                    }
                    to = Math.min(limit, n + Math.max(1, all / (4 * STEPS)));
                }
                for (; n < to; n++) {
                    w.write(line(n));
                    w.write('\n');
                }
                w.flush();
                Thread.sleep(STEP_MILLIS);
            }
        } catch (IOException e) {
            synchronized (this) {
                failed = e;
            }
        } catch (InterruptedException e) { // closed
        }
    }

    /** Lets lines be written up to n, at a pace, in the background. */
    synchronized void upTo(int n) {
        limit = n;
        notifyAll();
    }

    private synchronized void check() throws IOException {
        if (failed != null) {
            throw failed;
        }
    }

    @Override
    public void close() throws InterruptedException {
        writer.interrupt();
        writer.join();
    }

    /** What has arrived in a sink file. */
    final class Sink {
        final String connector; // its name
        final Path file;
        int next; // lines [0, next) have arrived
        int repeated;
        private int last = -1;
        private long at; // bytes that were looked at

        Sink(String connector, Path file) {
            this.connector = connector;
            this.file = file;
        }

        /** Says what is missing to n lines, having looked at the new ones; null if they are there. */
        String missing(int n) throws IOException {
            check();
            if (!Files.exists(file)) {
                return "there is no " + file;
            }
            byte[] fresh;
            try (RandomAccessFile f = new RandomAccessFile(file.toFile(), "r")) {
                fresh = new byte[(int) (f.length() - at)];
                f.seek(at);
                f.readFully(fresh);
            }
            int from = 0;
            for (int i = 0; i < fresh.length; i++) {
                if (fresh[i] == '\n') {
                    arrived(new String(fresh, from, i - from, StandardCharsets.UTF_8));
                    from = i + 1;
                }
            }
            at += from;
            return next >= n ? null : next + " of " + n + " lines are in the sink file";
        }

        private void arrived(String text) {
            String[] words = text.split(" ", 3);
            int n = words.length == 3 && words[0].equals("line") && words[1].matches("[0-9]{1,9}") ? Integer.parseInt(words[1]) : -1;
            Program.check(n >= 0 && n < all && text.equals(line(n)), "the sink file has the line <%s> after line %d", text, last);
            Program.check(n == last + 1 || n <= last, "line %d arrived after line %d", n, last);
            if (n == next) {
                next++;
            } else {
                repeated++;
            }
            last = n;
        }
    }
}
