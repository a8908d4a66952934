import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitionReassignment;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.ElectionType;
import org.apache.kafka.common.KafkaFuture;
import org.apache.kafka.common.Node;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.ElectionNotNeededException;
import org.apache.kafka.common.errors.GroupIdNotFoundException;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;

/** The admin client, each call followed by a look. */
final class Administration {
    private final Matrix m;

    Administration(Matrix m) {
        this.m = m;
    }

    /**
     * The client sends a request again whose answer died with a node, so what the first one did may stand in the way of the second:
     * done is the error which says that.
     */
    private static void done(KafkaFuture<?> f, Class<?> done) throws Exception {
        try {
            f.get();
        } catch (ExecutionException e) {
            if (!done.isInstance(e.getCause())) {
                throw e;
            }
        }
    }

    void create(String topic, int partitions, Map<String, String> configs) throws Exception {
        done(m.admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 3).configs(configs))).all(), TopicExistsException.class);
    }

    /** describe hides that the method has got another name between the versions. */
    @SuppressWarnings("unchecked")
    static TopicDescription describe(Admin admin, String topic) throws Exception {
        var r = admin.describeTopics(List.of(topic));
        KafkaFuture<Map<String, TopicDescription>> all;
        try {
            all = (KafkaFuture<Map<String, TopicDescription>>) r.getClass().getMethod("allTopicNames").invoke(r);
        } catch (NoSuchMethodException e) {
            all = (KafkaFuture<Map<String, TopicDescription>>) r.getClass().getMethod("all").invoke(r);
        }
        return all.get().get(topic);
    }

    private String config(ConfigResource.Type type, String resource, String name) throws Exception {
        ConfigResource r = new ConfigResource(type, resource);
        ConfigEntry e = m.admin.describeConfigs(List.of(r)).all().get().get(r).get(name);
        return e == null ? null : e.value();
    }

    private static String unless(boolean ok, Object what) {
        return ok ? null : String.valueOf(what);
    }

    String run() throws Exception {
        String topic = m.topic("admin");
        topics(topic);
        replicas(topic);
        groups();
        done(m.admin.deleteTopics(List.of(topic)).all(), UnknownTopicOrPartitionException.class);
        m.await("the topic's end", () -> {
            try {
                return describe(m.admin, topic).toString();
            } catch (ExecutionException e) {
                return e.getCause() instanceof UnknownTopicOrPartitionException ? null : e.toString();
            }
        });
        return "";
    }

    private void topics(String topic) throws Exception {
        Collection<Node> nodes = m.admin.describeCluster().nodes().get();
        Matrix.check(nodes.size() >= 2 && nodes.size() <= 3, "the cluster's nodes: %s", nodes); // one may be down just now
        Matrix.check(!m.admin.describeCluster().clusterId().get().isEmpty(), "the cluster has no id");
        m.await("a broker's configuration", () -> {
            for (Node n : m.admin.describeCluster().nodes().get()) {
                String id = config(ConfigResource.Type.BROKER, n.idString(), "node.id");
                if (!n.idString().equals(id)) {
                    return "node " + n + " says that it is " + id;
                }
            }
            return null;
        });
        create(topic, 1, Map.of("retention.ms", "3600000"));
        m.await("retention.ms of the new topic", () -> {
            String got = config(ConfigResource.Type.TOPIC, topic, "retention.ms");
            return unless("3600000".equals(got), got);
        });
        m.admin.incrementalAlterConfigs(Map.of(new ConfigResource(ConfigResource.Type.TOPIC, topic),
            List.of(new AlterConfigOp(new ConfigEntry("retention.ms", "7200000"), AlterConfigOp.OpType.SET)))).all().get();
        m.await("the new retention.ms", () -> {
            String got = config(ConfigResource.Type.TOPIC, topic, "retention.ms");
            return unless("7200000".equals(got), got);
        });
        m.await("four partitions", () -> {
            int n = describe(m.admin, topic).partitions().size();
            if (n == 1) {
                m.admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(4))).all().get();
            }
            return unless(n == 4, n);
        });
        Matrix.check(m.admin.listTopics().names().get().contains(topic), "%s is not in the list of topics", topic);
    }

    private void replicas(String topic) throws Exception {
        TopicPartition tp = new TopicPartition(topic, 1);
        m.await("two replicas", () -> {
            m.admin.alterPartitionReassignments(Map.of(tp, Optional.of(new NewPartitionReassignment(List.of(2, 3))))).all().get();
            return null;
        });
        m.await("the end of the reassignment", () -> {
            var under = m.admin.listPartitionReassignments(Set.of(tp)).reassignments().get();
            var p = describe(m.admin, topic).partitions().get(1);
            List<Integer> ids = p.replicas().stream().map(Node::id).toList();
            return unless(under.isEmpty() && ids.equals(List.of(2, 3)), ids + " " + under);
        });
        m.await("the preferred leader", () -> {
            Optional<Throwable> e = m.admin.electLeaders(ElectionType.PREFERRED, Set.of(tp)).partitions().get().getOrDefault(tp, Optional.empty());
            Node leader = describe(m.admin, topic).partitions().get(1).leader(); // null between a leader's death and the next one's election
            boolean elected = e.isEmpty() || e.get() instanceof ElectionNotNeededException;
            return unless(elected && leader != null && leader.id() == 2, e + ", leader " + leader);
        });
        m.await("the log directories", () -> {
            var dirs = m.admin.describeLogDirs(List.of(2, 3)).allDescriptions().get();
            for (var node : dirs.entrySet()) {
                if (node.getValue().values().stream().noneMatch(d -> d.error() == null && d.replicaInfos().containsKey(tp))) {
                    return "node " + node.getKey() + " has no " + tp;
                }
            }
            return unless(dirs.size() == 2, dirs.keySet());
        });
    }

    /** Works on the group that the case commit has left behind. */
    private void groups() throws Exception {
        String group = m.topic("commit");
        TopicPartition tp = new TopicPartition(m.topic("main"), 0);
        m.await("the group in the list", () -> unless(listed(group), "not in the list"));
        m.await("the group without members", () -> {
            var d = m.admin.describeConsumerGroups(List.of(group)).all().get().get(group);
            return unless(d.members().isEmpty() && d.state().toString().equals("Empty"), d);
        });
        m.admin.alterConsumerGroupOffsets(group, Map.of(tp, new OffsetAndMetadata(5, "moved"))).all().get();
        m.await("the moved offset", () -> {
            OffsetAndMetadata o = m.admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(tp);
            return unless(o != null && o.offset() == 5 && o.metadata().equals("moved"), o);
        });
        m.admin.deleteConsumerGroupOffsets(group, Set.of(tp)).all().get();
        m.await("the deleted offset", () -> {
            OffsetAndMetadata o = m.admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(tp);
            return unless(o == null, o);
        });
        done(m.admin.deleteConsumerGroups(List.of(group)).all(), GroupIdNotFoundException.class);
        m.await("the group gone from the list", () -> unless(!listed(group), "still there"));
    }

    private boolean listed(String group) throws Exception {
        return m.admin.listConsumerGroups().all().get().stream().anyMatch(g -> g.groupId().equals(group));
    }
}
