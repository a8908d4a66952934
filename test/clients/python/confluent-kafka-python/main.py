"""The client matrix' program for confluent-kafka, librdkafka's binding for Python."""

import os
import threading

import confluent_kafka as ck
from confluent_kafka import admin as ca

import matrix

SERVERS = os.environ["BOOTSTRAP"]


def config(**more):
    c = {"bootstrap.servers": SERVERS, "client.id": os.environ["PREFIX"], "log_level": 4}
    c.update({k.replace("_", "."): v for k, v in more.items()})
    return c


class Producer:
    def __init__(self, codec, max_bytes):
        self.p = ck.Producer(config(enable_idempotence=True, compression_type=codec, message_max_bytes=max_bytes, linger_ms=5))
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.poll, daemon=True)
        self.thread.start()

    def poll(self):
        while not self.ended.is_set():
            self.p.poll(0.1)

    def send(self, topic, r, done):
        def delivered(err, _):
            if err and err.code() == ck.KafkaError.MSG_SIZE_TOO_LARGE:
                err = matrix.TooLarge()
            done(err)

        self.p.produce(topic, r.value, r.key, r.partition, on_delivery=delivered, timestamp=r.time, headers=r.headers)

    def flush(self):
        self.p.flush(60)

    def close(self):
        left = self.p.flush(60)
        self.ended.set()
        self.thread.join(10)
        if left:
            raise matrix.Failure("%d records are not acknowledged after a minute" % left)


class Reader:
    def __init__(self, group, **protocol):
        protocol = protocol or {"session_timeout_ms": 10000}
        self.c = ck.Consumer(config(group_id=group, auto_offset_reset="earliest", enable_auto_commit=False, fetch_message_max_bytes=4 << 20, **protocol))
        self.buf = []

    def next(self, seconds):
        if not self.buf:
            self.buf = self.c.consume(500, seconds)
            self.buf.reverse()
        while self.buf:
            m = self.buf.pop()
            if m.error():  # news, unless fatal
                matrix.log(m.error())
                if m.error().fatal():
                    raise ck.KafkaException(m.error())
                continue
            return matrix.Record(m.partition(), m.offset(), m.key(), m.value(), m.headers() or [], m.timestamp()[1])
        return None

    def close(self):
        self.c.close()


class Member(Reader):
    def __init__(self, group, topic, **protocol):
        super().__init__(group, **protocol)
        self.topic = topic
        self.c.subscribe([topic])

    def owned(self):
        return [p.partition for p in self.c.assignment()]

    def commit(self, offsets):
        for p in self.c.commit(offsets=[ck.TopicPartition(self.topic, p, o) for p, o in offsets.items()], asynchronous=False):
            if p.error:
                raise ck.KafkaException(p.error)


class Driver:
    client, idempotent = "confluent-kafka-python", True
    version = "%s (librdkafka %s)" % (ck.__version__, ck.libversion()[0])

    def __init__(self):
        self.a = ca.AdminClient(config())

    def close(self):
        pass

    producer = staticmethod(Producer)
    join = staticmethod(Member)

    @staticmethod
    def join_consumer(group, topic):
        return Member(group, topic, group_protocol="consumer")

    def reader(self, topic, partition, offset, time):
        r = Reader(os.environ["PREFIX"] + ".reader")
        if time is not None:
            at = r.c.offsets_for_times([ck.TopicPartition(topic, partition, time)], timeout=30)[0]
            if at.error:
                raise ck.KafkaException(at.error)
            offset = at.offset
        r.c.assign([ck.TopicPartition(topic, partition, offset)])
        return r

    @staticmethod
    def one(futures):
        (f,) = futures.values()
        return f.result(30)

    def asked(self, call):
        a = ca.AdminClient(config())  # not let go before the answer is there
        return self.one(call(a))

    def create_topic(self, topic, partitions, replicas, configs):
        self.one(self.a.create_topics([ca.NewTopic(topic, partitions, replicas, config=configs)]))

    def describe_topic(self, topic):
        d = self.one(self.a.describe_topics(ck.TopicCollection([topic])))
        return len(d.partitions), len(d.partitions[0].replicas)

    def delete_topic(self, topic):
        self.one(self.a.delete_topics([topic]))

    def add_partitions(self, topic, total):
        self.one(self.a.create_partitions([ck.admin.NewPartitions(topic, total)]))

    def nodes(self):
        return len(self.a.describe_cluster().result(30).nodes)

    def describe(self, kind, of, name, seconds=30):
        f = self.a.describe_configs([ca.ConfigResource(kind, of)], request_timeout=seconds)
        return self.one(f)[name].value

    def topic_config(self, topic, name):
        return self.describe(ca.ConfigResource.Type.TOPIC, topic, name)

    def broker_config(self, node, name):
        return self.describe(ca.ConfigResource.Type.BROKER, str(node), name, 5)

    def set_topic_config(self, topic, name, value):
        entry = ca.ConfigEntry(name, value, incremental_operation=ca.AlterConfigOpType.SET)
        self.one(self.a.incremental_alter_configs([ca.ConfigResource(ca.ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])]))

    # librdkafka's admin client goes on asking a group's coordinator that has moved: a NOT_COORDINATOR in an answer about a group
    # does not empty its cache. Whatever is asked of a coordinator is therefore asked by a client of its own.

    def groups(self):
        r = self.a.list_consumer_groups().result(30)
        if r.errors:
            raise r.errors[0]
        return [g.group_id for g in r.valid]

    def group_type(self, group):
        r = self.a.list_consumer_groups().result(30)
        if r.errors:
            raise r.errors[0]
        (g,) = [g for g in r.valid if g.group_id == group]
        return g.type.name

    def describe_group(self, group):
        g = self.asked(lambda a: a.describe_consumer_groups([group]))
        return g.state.name.title(), len(g.members)

    def delete_group(self, group):
        self.asked(lambda a: a.delete_consumer_groups([group]))

    def partitions(self, topic):
        return [ck.TopicPartition(topic, p) for p in range(self.describe_topic(topic)[0])]

    def committed(self, group, topic):
        parts = self.partitions(topic)
        r = self.asked(lambda a: a.list_consumer_group_offsets([ck.ConsumerGroupTopicPartitions(group, parts)]))
        return {p.partition: p.offset for p in r.topic_partitions}

    def offsets(self, topic, at):
        spec = {matrix.EARLIEST: ca.OffsetSpec.earliest(), matrix.LATEST: ca.OffsetSpec.latest()}.get(at) or ca.OffsetSpec.for_timestamp(at)
        futures = self.a.list_offsets({p: spec for p in self.partitions(topic)})
        got = {p.partition: f.result(30).offset for p, f in futures.items()}
        if ck.OFFSET_INVALID in got.values():  # what it leaves, without an error, of a leader that could not be asked
            raise matrix.Failure("no answer for all partitions of " + topic)
        return got

    def delete_records(self, topic, partition, before):
        self.one(self.a.delete_records([ck.TopicPartition(topic, partition, before)]))


matrix.main(Driver())
