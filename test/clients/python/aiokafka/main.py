"""The client matrix' program for aiokafka. Its event loop has a thread of its own, so that the cases can call it."""

import asyncio
import logging
import os
import threading
from concurrent.futures import CancelledError

import aiokafka
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import MessageSizeTooLargeError, for_code

import matrix

logging.basicConfig(level=logging.WARNING)
COMMON = {"bootstrap_servers": os.environ["BOOTSTRAP"].split(","), "client_id": os.environ["PREFIX"], "metadata_max_age_ms": 5000}
LOOP = asyncio.new_event_loop()
threading.Thread(target=LOOP.run_forever, daemon=True).start()


def wait(coroutine, seconds=60):
    f = asyncio.run_coroutine_threadsafe(coroutine, LOOP)
    try:
        return f.result(seconds)
    except TimeoutError:
        f.cancel()
        raise


async def started(make):
    """Clients must be made on the loop."""
    c = make()
    await c.start()
    return c


class Producer:
    def __init__(self, codec, max_bytes):
        self.p = wait(started(lambda: aiokafka.AIOKafkaProducer(
            enable_idempotence=True, acks="all", compression_type=None if codec == "none" else codec, max_request_size=max_bytes,
            max_batch_size=64 << 10, linger_ms=5, **COMMON)))
        self.queue = asyncio.Queue()
        self.pump = asyncio.run_coroutine_threadsafe(self.run(), LOOP)

    async def run(self):
        while (item := await self.queue.get()) is not None:
            topic, r, done = item
            if topic is None:
                done.set()
                continue
            try:
                f = await self.p.send(topic, key=r.key, value=r.value, headers=r.headers, partition=r.partition, timestamp_ms=r.time)
            except Exception as e:
                done(e)
                continue
            f.add_done_callback(lambda f, done=done: done(self.error(f)))

    @staticmethod
    def error(f):
        e = f.exception()
        return matrix.TooLarge() if isinstance(e, MessageSizeTooLargeError) else e

    def put(self, item):
        LOOP.call_soon_threadsafe(self.queue.put_nowait, item)

    def send(self, topic, r, done):
        self.put((topic, r, done))

    def flush(self):
        handed = threading.Event()
        self.put((None, None, handed))
        if not handed.wait(120):
            raise matrix.Failure("the producer takes no more records")
        wait(self.p.flush(), 120)

    def close(self):
        self.flush()
        self.put(None)
        self.pump.result(60)
        wait(self.p.stop())


class Reader:
    def __init__(self, group=None, topic=None):
        topics = [topic] if topic else []
        self.topic, self.buf = topic, []
        self.c = wait(started(lambda: aiokafka.AIOKafkaConsumer(
            *topics, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False, session_timeout_ms=10000, max_partition_fetch_bytes=4 << 20, **COMMON)))

    def next(self, seconds):
        if not self.buf:
            for records in wait(self.c.getmany(timeout_ms=int(seconds * 1000), max_records=1000)).values():
                self.buf += records
            self.buf.reverse()
        if not self.buf:
            return None
        m = self.buf.pop()
        return matrix.Record(m.partition, m.offset, m.key, m.value, list(m.headers), m.timestamp)

    def owned(self):
        return [p.partition for p in self.c.assignment()]

    def commit(self, offsets):
        wait(self.c.commit({TopicPartition(self.topic, p): o for p, o in offsets.items()}))

    def close(self):
        try:
            wait(self.c.stop())
        except CancelledError:
            # It has left its group by then. Its fetcher is stopped next, and a fetch that had failed, and waits to be sent again, ends
            # with the CancelledError that stop() itself caused (Fetcher.close and _proc_fetch_request in 0.14.0): only its connections stay.
            logging.warning("stop() was cancelled by itself")


def check(code):
    if code:
        raise for_code(code)()


class Driver:
    client, idempotent, version = "aiokafka", True, aiokafka.__version__
    # A refused batch keeps its sequence number, so that whatever follows it is out of order for the broker.
    refusal_is_fatal = True

    def __init__(self):
        self.a = wait(started(lambda: AIOKafkaAdminClient(**COMMON)))
        self.c = Reader()  # consumers answer questions about offsets

    def close(self):
        self.c.close()
        wait(self.a.close())

    producer = staticmethod(Producer)
    join = staticmethod(Reader)

    def reader(self, topic, partition, offset, time):
        r, tp = Reader(), TopicPartition(topic, partition)

        async def begin():
            r.c.assign([tp])
            r.c.seek(tp, offset if time is None else (await r.c.offsets_for_times({tp: time}))[tp].offset)

        wait(begin())
        return r

    def create_topic(self, topic, partitions, replicas, configs):
        r = wait(self.a.create_topics([NewTopic(topic, partitions, replicas, topic_configs=configs)]))
        for t in r.topic_errors:
            check(t[1])

    def describe_topic(self, topic):
        (t,) = wait(self.a.describe_topics([topic]))
        check(t["error_code"])
        return len(t["partitions"]), len(t["partitions"][0]["replicas"])

    def topics(self):
        return wait(self.a.list_topics())

    def delete_topic(self, topic):
        for t in wait(self.a.delete_topics([topic])).topic_error_codes:
            check(t[1])

    def add_partitions(self, topic, total):
        for t in wait(self.a.create_partitions({topic: NewPartitions(total)})).topic_errors:
            check(t[1])

    def nodes(self):
        return len(wait(self.a.describe_cluster())["brokers"])

    def describe(self, kind, of, name):
        for res in wait(self.a.describe_configs([ConfigResource(kind, of)])):
            for r in res.resources:
                check(r[0])
                for entry in r[4]:
                    if entry[0] == name:
                        return entry[1]
        raise matrix.Failure("there is no %s" % name)

    def topic_config(self, topic, name):
        return self.describe(ConfigResourceType.TOPIC, topic, name)

    def broker_config(self, node, name):
        return self.describe(ConfigResourceType.BROKER, str(node), name)

    def set_topic_config(self, topic, name, value):
        for res in wait(self.a.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {name: value})])):
            for r in res.resources:
                check(r[0])

    def groups(self):
        return [g[0] for g in wait(self.a.list_consumer_groups())]

    def describe_group(self, group):
        for res in wait(self.a.describe_consumer_groups([group])):
            for g in res.to_object()["groups"]:
                check(g["error_code"])
                return g["state"], len(g["members"])

    def delete_group(self, group):
        raise matrix.Unsupported("no deletion of groups")

    def partitions(self, topic):
        return [TopicPartition(topic, p) for p in range(self.describe_topic(topic)[0])]

    def committed(self, group, topic):
        r = wait(self.a.list_consumer_group_offsets(group))
        return {tp.partition: o.offset for tp, o in r.items() if tp.topic == topic}

    def offsets(self, topic, at):
        parts = self.partitions(topic)
        if at == matrix.EARLIEST:
            r = wait(self.c.c.beginning_offsets(parts))
        elif at == matrix.LATEST:
            r = wait(self.c.c.end_offsets(parts))
        else:
            found = wait(self.c.c.offsets_for_times({p: at for p in parts}))
            r = {p: o.offset for p, o in found.items() if o}
        return {p.partition: o for p, o in r.items()}

    def delete_records(self, topic, partition, before):
        wait(self.a.delete_records({TopicPartition(topic, partition): RecordsToDelete(before)}))


matrix.main(Driver())
