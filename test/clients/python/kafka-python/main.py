"""The client matrix' program for kafka-python."""

import logging
import os

import kafka
from kafka.admin import ConfigResource
from kafka.errors import MessageSizeTooLargeError
from kafka.structs import OffsetAndMetadata, TopicPartition

import matrix

SERVERS = os.environ["BOOTSTRAP"].split(",")
PREFIX = os.environ["PREFIX"]
logging.basicConfig(level=logging.WARNING)
# A node that is down is dialled again within a second, and one that is back is known again within two: the admin client routes by
# what it has learnt last, and leaves out who was down then.
COMMON = {"bootstrap_servers": SERVERS, "client_id": PREFIX, "reconnect_backoff_max_ms": 1000, "metadata_max_age_ms": 2000}


class Producer:
    def __init__(self, codec, max_bytes):
        self.p = kafka.KafkaProducer(enable_idempotence=True, acks="all", compression_type=None if codec == "none" else codec,
                                     max_request_size=max_bytes, batch_size=64 << 10, linger_ms=5, **COMMON)

    def send(self, topic, r, done):
        f = self.p.send(topic, key=r.key, value=r.value, headers=r.headers, partition=r.partition, timestamp_ms=r.time)
        f.add_callback(lambda _: done(None))
        f.add_errback(lambda e: done(matrix.TooLarge() if isinstance(e, MessageSizeTooLargeError) else e))

    def flush(self):
        self.p.flush(60)

    def close(self):
        self.p.flush(60)
        self.p.close(30)


class Reader:
    def __init__(self, group=None):
        self.c = kafka.KafkaConsumer(group_id=group, auto_offset_reset="earliest", enable_auto_commit=False, session_timeout_ms=10000, max_partition_fetch_bytes=4 << 20, **COMMON)
        self.buf = []

    def next(self, seconds):
        if not self.buf:
            for records in self.c.poll(int(seconds * 1000)).values():
                self.buf += records
            self.buf.reverse()
        if not self.buf:
            return None
        m = self.buf.pop()
        return matrix.Record(m.partition, m.offset, m.key, m.value, list(m.headers), m.timestamp)

    def close(self):
        self.c.close()


class Member(Reader):
    def __init__(self, group, topic):
        super().__init__(group)
        self.topic = topic
        self.c.subscribe([topic])

    def owned(self):
        return [p.partition for p in self.c.assignment()]

    def commit(self, offsets):
        self.c.commit({TopicPartition(self.topic, p): OffsetAndMetadata(o, "", -1) for p, o in offsets.items()})


class Driver:
    client, idempotent, version = "kafka-python", True, kafka.__version__
    # Its transaction manager takes every error that cannot be retried for fatal (classify_batch_error), whatever the broker.
    refusal_is_fatal = True

    def __init__(self):
        self.a = kafka.KafkaAdminClient(**COMMON)

    def close(self):
        self.a.close()

    producer = staticmethod(Producer)
    join = staticmethod(Member)

    def reader(self, topic, partition, offset, time):
        r, tp = Reader(), TopicPartition(topic, partition)
        r.c.assign([tp])
        if time is not None:
            offset = r.c.offsets_for_times({tp: time})[tp].offset
        r.c.seek(tp, offset)
        return r

    def create_topic(self, topic, partitions, replicas, configs):
        self.a.create_topics({topic: {"num_partitions": partitions, "replication_factor": replicas, "configs": configs}})

    def describe_topic(self, topic):
        (t,) = self.a.describe_topics([topic])
        if t.get("error_code"):
            raise kafka.errors.for_code(t["error_code"])(topic)
        return len(t["partitions"]), len(t["partitions"][0]["replica_nodes"])

    def delete_topic(self, topic):
        self.a.delete_topics([topic])

    def add_partitions(self, topic, total):
        self.a.create_partitions({topic: total})

    def nodes(self):
        return len(self.a.describe_cluster()["brokers"])

    def describe(self, kind, of, name):
        r = self.a.describe_configs([ConfigResource(kind, of)], config_filter="all")
        return r[kind.lower()][of][name]["value"]

    def topic_config(self, topic, name):
        return self.describe("TOPIC", topic, name)

    def broker_config(self, node, name):
        return self.describe("BROKER", str(node), name)

    def set_topic_config(self, topic, name, value):
        self.a.alter_configs([ConfigResource("TOPIC", topic, {name: value})])

    def groups(self):
        return [g["group_id"] for g in self.a.list_groups()]

    def describe_group(self, group):
        g = self.a.describe_groups([group])[group]
        return g["group_state"], len(g["members"])

    def delete_group(self, group):
        self.a.delete_groups([group])

    def committed(self, group, topic):
        return {tp.partition: o.offset for tp, o in self.a.list_group_offsets({group: None})[group].items() if tp.topic == topic}

    def offsets(self, topic, at):
        specs = {TopicPartition(topic, p): at for p in range(self.describe_topic(topic)[0])}
        return {tp.partition: o.offset for tp, o in self.a.list_partition_offsets(specs).items()}

    def delete_records(self, topic, partition, before):
        self.a.delete_records({TopicPartition(topic, partition): before})


matrix.main(Driver())
