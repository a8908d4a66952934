import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * The client matrix' program for Kafka's Java client: runs every case and prints its line, see test/clients/README.md.
 * Arguments: the client's name in client.json and the group.protocol of its consumers.
 */
public final class Matrix extends Program {
    static final Duration CASE_BOUND = Duration.ofMinutes(4);

    final String protocol;

    private Matrix(String client, String protocol) {
        super(variable("PREFIX") + "." + client, CASE_BOUND);
        this.protocol = protocol;
    }

    public static void main(String[] args) {
        Matrix m = new Matrix(args[0], args[1]);
        Groups groups = new Groups(m);
        Map<String, Case> cases = new LinkedHashMap<>();
        cases.put("create-topic", () -> m.create(m.topic("main"), Groups.PARTITIONS));
        for (String codec : new String[] {"none", "gzip", "snappy", "lz4", "zstd"}) {
            cases.put("produce-" + codec, () -> new Data(m).produce(codec));
        }
        cases.put("group", groups::group);
        cases.put("group-static", groups::fixed);
        cases.put("group-failover", groups::failover);
        cases.put("commit", groups::commit);
        cases.put("seek-time", () -> new Data(m).seekTime());
        cases.put("list-offsets", () -> new Data(m).listOffsets());
        cases.put("admin", () -> new Administration(m).run());
        cases.put("large", () -> new Data(m).large());
        cases.put("records", () -> new Many(m).run());
        cases.forEach((name, c) -> m.print(args[0], name, c));
        m.admin.close(Duration.ofSeconds(10));
    }

    /** Creates a topic with three replicas and looks at it. */
    String create(String topic, int partitions) throws Exception {
        new Administration(this).create(topic, partitions, Map.of());
        await(topic, () -> {
            var d = Administration.describe(admin, topic);
            boolean replicated = d.partitions().stream().allMatch(p -> p.replicas().size() == 3);
            return d.partitions().size() == partitions && replicated ? null : d.toString();
        });
        return "";
    }
}
