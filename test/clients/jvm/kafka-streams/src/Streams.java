import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** The client matrix' program for Kafka Streams: runs every case and prints its line, see test/clients/README.md. */
public final class Streams extends Program {
    private static final String NAME = "kafka-streams";

    /** What every internal topic is made with, so that compaction shows within a minute. Each kind's own settings are in Internal. */
    static final Map<String, String> SETTINGS = Map.of("segment.ms", "500", "min.cleanable.dirty.ratio", "0.01");

    final String app = topic("app");
    final String from = topic("lines");
    final String to = topic("counts");
    final Text text;
    private final Path work = Path.of(variable("WORK"), prefix); // a second run has a prefix of its own
    private final List<Child> started = new ArrayList<>();

    private Streams() {
        super(variable("PREFIX"), Duration.ofMinutes(5));
        this.text = new Text(this);
    }

    public static void main(String[] args) throws Exception {
        Streams s = new Streams();
        Files.createDirectories(s.work);
        try {
            s.print(NAME, "word-count", s::wordCount);
            s.print(NAME, "failover", s::failover);
            s.print(NAME, "restore", s::restore);
            s.print(NAME, "internal-topics", () -> new Internal(s).run());
        } finally {
            for (Child c : s.started) {
                c.kill();
            }
            s.admin.close(Duration.ofSeconds(10));
        }
    }

    private Child one; // instances that live after a case
    private Child two;

    /** Starts an instance with no state. */
    private Child start() throws Exception {
        String name = "instance-" + (started.size() + 1);
        Child c = new Child(name, work, "WordCount", app, from, to, work.resolve(name + ".state").toString());
        started.add(c);
        await(name + " running", () -> {
            check(c.dead() == null, "%s", c.dead());
            return states(c).equals("RUNNING") ? null : "state " + states(c);
        });
        return c;
    }

    private static String states(Child c) {
        return c.printed().stream().filter(l -> l.startsWith("state ")).reduce("", (a, b) -> b.substring("state ".length()));
    }

    private static long restored(Child c, String store) {
        return c.printed().stream().map(l -> l.split(" ")).filter(w -> w[0].equals("restored") && w[1].equals(store)).mapToLong(w -> Long.parseLong(w[3])).sum();
    }

    /** One instance, then two, of which one is closed in the middle; leaders die. Nothing is counted twice unless an instance says that it has to. */
    private String wordCount() throws Exception {
        text.createTopics();
        one = start();
        text.upTo(lines / 8);
        counted(lines / 16);
        two = start();
        // The partitions of both topics are divided anew; what the second instance gets it restores.
        await("the second instance's share", () -> restored(two, WordCount.COUNTS) > 0 ? null : "it has restored nothing");
        text.upTo(lines / 4);
        counted(lines * 3 / 16);
        killLeader(Internal.repartition(this), 0);
        text.upTo(lines * 3 / 8);
        counted(lines * 5 / 16);
        one.tell("close");
        check(one.awaitEnd(90) == 0, "the instance that was closed: %s", one.dead());
        text.upTo(lines / 2);
        counted(lines / 2);
        boolean twice = false;
        for (Child c : started) {
            twice |= c.log().contains("as zombies") || c.log().contains("TaskCorruptedException") || c.log().contains("TaskMigratedException");
        }
        new Result(this).judge(lines / 2, twice, two);
        return "";
    }

    /** A third instance comes, and one of the two is killed while lines flow; so is the leader of a changelog. */
    private String failover() throws Exception {
        check(two != null && two.dead() == null, "the case word-count has left no instance");
        one = start();
        text.upTo(lines * 5 / 8);
        counted(lines * 9 / 16);
        await("work that is not committed", text::committed);
        two.kill();
        long before = restored(one, WordCount.COUNTS);
        text.upTo(lines * 3 / 4);
        counted(lines * 11 / 16);
        // The lines of its own partitions may already have been enough: the other one's come when its session has ended.
        await("the other instance's share", () -> restored(one, WordCount.COUNTS) > before ? null : "the one that lives has restored nothing of it");
        killLeader(Internal.changelog(this, WordCount.COUNTS), 1);
        counted(lines * 3 / 4);
        new Result(this).judge(lines * 3 / 4, true, one);
        return "";
    }

    /** All instances are gone. A new one on an empty disk goes on with the counts that are in the changelogs. */
    private String restore() throws Exception {
        check(one != null && one.dead() == null, "the case failover has left no instance");
        one.kill();
        two = start();
        Map<String, Long> words = text.words(lines * 3 / 4);
        long n = restored(two, WordCount.COUNTS);
        check(n >= words.size(), "%d records of the changelog were restored, there are %d words", n, words.size());
        check(restored(two, WordCount.HOURLY) >= words.size(), "%d records of the hourly changelog were restored", restored(two, WordCount.HOURLY));
        new Result(this).judge(lines * 3 / 4, true, two);
        text.upTo(lines);
        counted(lines);
        new Result(this).judge(lines, true, two);
        return "";
    }

    /** Waits until the application has committed n lines, and if these are all that were sent, everything in its repartition topic. */
    private void counted(int n) throws Exception {
        await(n + " lines counted", () -> {
            String why = text.uncounted(n);
            check(why == null || started.stream().anyMatch(Child::alive), "%s, and no instance lives: %s", why, started.get(started.size() - 1).tail());
            return why;
        });
    }

    /** The stores of the living instances: counts, and the sums of the hours. */
    Map<String, Map<String, Long>> stores(Child... alive) throws Exception {
        Map<String, Map<String, Long>> out = new HashMap<>(Map.of("count", new HashMap<>(), "hour", new HashMap<>()));
        for (Child c : alive) {
            int before = c.printed().size();
            c.tell("counts");
            await(c.name + "'s stores", () -> {
                check(c.dead() == null, "%s", c.dead());
                return c.printed().subList(before, c.printed().size()).contains("end") ? null : "no answer";
            });
            for (String line : c.printed().subList(before, c.printed().size())) {
                String[] w = line.split(" ");
                if (w.length == 3 && out.containsKey(w[0])) {
                    out.get(w[0]).merge(w[1], Long.parseLong(w[2]), Long::sum);
                }
            }
        }
        return out;
    }
}
