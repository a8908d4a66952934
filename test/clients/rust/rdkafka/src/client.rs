//! The client's own calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pollster::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use crate::records::{Killer, Record};
use crate::{failed, Done, Trouble};

pub const EARLIEST: i64 = -2;
pub const LATEST: i64 = -1;
const ANSWER: Duration = Duration::from_secs(30);

pub type Offsets = BTreeMap<i32, i64>;

/// The crate's version, which Cargo.toml pins, and that of the librdkafka in it.
pub fn version() -> String {
    format!("0.39.0 (librdkafka {})", rdkafka::util::get_rdkafka_version().1)
}

/// Says on standard error what the client has to say.
#[derive(Clone)]
pub struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        eprintln!("{level:?} {fac} {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        eprintln!("{error}: {reason}");
    }
}

impl ConsumerContext for Context {}

/// Acks counts a producer's acknowledgements.
#[derive(Default)]
pub struct Acks {
    state: Mutex<(usize, Option<KafkaError>)>,
    changed: Condvar,
    killer: Option<Arc<Killer>>,
}

impl ProducerContext for Context {
    type DeliveryOpaque = Arc<Acks>;

    fn delivery(&self, result: &DeliveryResult<'_>, acks: Arc<Acks>) {
        let mut s = acks.state.lock().expect("no panic");
        s.0 += 1;
        if let Err((e, _)) = result {
            s.1.get_or_insert(e.clone());
        }
        drop(s);
        acks.changed.notify_all();
        if let Some(k) = &acks.killer {
            k.add();
        }
    }
}

/// A producer with acks=all and idempotence.
pub struct Producer {
    p: ThreadedProducer<Context>,
    acks: Arc<Acks>,
    sent: usize,
}

impl Producer {
    pub fn send(&mut self, topic: &str, r: &Record) -> Done<()> {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &r.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let rec = BaseRecord::with_opaque_to(topic, self.acks.clone())
            .partition(r.partition)
            .key(&r.key)
            .payload(&r.value)
            .headers(headers)
            .timestamp(r.time);
        self.p.send(rec).map_err(|(e, _)| e)?;
        self.sent += 1;
        Ok(())
    }

    /// Waits until at most so many records are not acknowledged.
    pub fn drain(&mut self, most: usize, end: Instant) -> Done<()> {
        let s = self.acks.state.lock().expect("no panic");
        let left = end.saturating_duration_since(Instant::now());
        let waiting = |s: &mut (usize, Option<KafkaError>)| self.sent - s.0 > most && s.1.is_none();
        let (mut s, _) = self.acks.changed.wait_timeout_while(s, left, waiting).expect("no panic");
        if let Some(e) = s.1.take() {
            if e.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
                return Err(Trouble::TooLarge);
            }
            return Err(e.into());
        }
        if self.sent - s.0 > most {
            return failed(format!("{} of {} are acknowledged in time", s.0, self.sent));
        }
        Ok(())
    }

    pub fn close(mut self, end: Instant) -> Done<()> {
        self.drain(0, end)?;
        Ok(self.p.flush(ANSWER)?)
    }
}

/// A reader of partitions or a member of a group, which leaves when it is dropped.
pub struct Reader {
    c: BaseConsumer<Context>,
    topic: String,
}

impl Reader {
    /// The next record, or none within the time.
    pub fn next(&self, wait: Duration) -> Done<Option<Record>> {
        let m = match self.c.poll(wait) {
            None => return Ok(None),
            Some(Err(e @ KafkaError::MessageConsumptionFatal(_))) => return Err(e.into()),
            Some(Err(e)) => {
                eprintln!("{e}"); // news
                return Ok(None);
            }
            Some(Ok(m)) => m,
        };
        let mut headers = Vec::new();
        for h in m.headers().iter().flat_map(|all| all.iter()) {
            headers.push((h.key.to_string(), h.value.unwrap_or_default().to_vec()));
        }
        Ok(Some(Record {
            partition: m.partition(),
            offset: m.offset(),
            key: m.key().unwrap_or_default().to_vec(),
            value: m.payload().unwrap_or_default().to_vec(),
            headers,
            time: m.timestamp().to_millis().unwrap_or(-1),
        }))
    }

    pub fn owned(&self) -> Done<Vec<i32>> {
        Ok(self.c.assignment()?.elements().iter().map(|e| e.partition()).collect())
    }

    pub fn commit(&self, offsets: &Offsets) -> Done<()> {
        let mut all = TopicPartitionList::new();
        for (p, o) in offsets {
            all.add_partition_offset(&self.topic, *p, Offset::Offset(*o))?;
        }
        Ok(self.c.commit(&all, CommitMode::Sync)?)
    }
}

/// Offsets of a list of which every element must be without an error.
fn offsets_of(list: &TopicPartitionList) -> Done<Offsets> {
    let mut out = Offsets::new();
    for e in list.elements() {
        e.error()?;
        out.insert(e.partition(), e.offset().to_raw().unwrap_or(-1001));
    }
    Ok(out)
}

/// One result of an admin call for one thing.
fn one<T>(all: Vec<Result<T, (String, RDKafkaErrorCode)>>) -> Done<()> {
    for r in all {
        r.map_err(|(of, code)| Trouble::Failed(format!("{of}: {code:?}")))?;
    }
    Ok(())
}

pub struct Client {
    servers: String,
    prefix: String,
    admin: AdminClient<Context>,
    asks: BaseConsumer<Context>,
}

impl Client {
    pub fn new(servers: String, prefix: String) -> Done<Client> {
        let base = config(&servers, &prefix);
        Ok(Client { admin: base.create_with_context(Context)?, asks: base.create_with_context(Context)?, servers, prefix })
    }

    fn config(&self) -> ClientConfig {
        config(&self.servers, &self.prefix)
    }

    /// A producer that lets records of up to max_bytes through; the killer counts acknowledgements.
    pub fn producer(&self, codec: &str, max_bytes: usize, killer: Option<Arc<Killer>>) -> Done<Producer> {
        let p = self
            .config()
            .set("enable.idempotence", "true")
            .set("compression.type", codec)
            .set("message.max.bytes", max_bytes.to_string())
            .set("linger.ms", "5")
            .create_with_context(Context)?;
        Ok(Producer { p, acks: Arc::new(Acks { killer, ..Acks::default() }), sent: 0 })
    }

    fn consumer(&self, group: &str, topic: &str) -> Done<Reader> {
        let c = self
            .config()
            .set("group.id", group)
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("session.timeout.ms", "10000")
            .set("fetch.message.max.bytes", (4 << 20).to_string())
            .create_with_context(Context)?;
        Ok(Reader { c, topic: topic.to_string() })
    }

    /// A reader of one partition from an offset.
    pub fn reader(&self, topic: &str, partition: i32, offset: i64) -> Done<Reader> {
        let r = self.consumer(&format!("{}.reader", self.prefix), topic)?;
        let mut at = TopicPartitionList::new();
        at.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        r.c.assign(&at)?;
        Ok(r)
    }

    pub fn join(&self, group: &str, topic: &str) -> Done<Reader> {
        let r = self.consumer(group, topic)?;
        r.c.subscribe(&[topic])?;
        Ok(r)
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER))
    }

    pub fn create_topic(&self, topic: &str, partitions: i32, replicas: i32, configs: &[(&str, &str)]) -> Done<()> {
        let mut t = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
        for (name, value) in configs {
            t = t.set(name, value);
        }
        one(block_on(self.admin.create_topics([&t], &self.options()))?)
    }

    /// How many partitions the topic has, and replicas of the first; none: there is no such topic.
    pub fn describe_topic(&self, topic: &str) -> Done<Option<(usize, usize)>> {
        let m = self.asks.fetch_metadata(Some(topic), ANSWER)?;
        let [t] = m.topics() else { return failed(format!("{} topics", m.topics().len())) };
        if let Some(e) = t.error() {
            let code = RDKafkaErrorCode::from(e);
            if code == RDKafkaErrorCode::UnknownTopicOrPartition {
                return Ok(None);
            }
            return failed(format!("{topic}: {code:?}"));
        }
        let p = t.partitions();
        if p.is_empty() {
            return Ok(None);
        }
        Ok(Some((p.len(), p[0].replicas().len())))
    }

    pub fn delete_topic(&self, topic: &str) -> Done<()> {
        one(block_on(self.admin.delete_topics(&[topic], &self.options()))?)
    }

    pub fn add_partitions(&self, topic: &str, total: usize) -> Done<()> {
        one(block_on(self.admin.create_partitions([&NewPartitions::new(topic, total)], &self.options()))?)
    }

    pub fn nodes(&self) -> Done<usize> {
        Ok(self.asks.fetch_metadata(None, ANSWER)?.brokers().len())
    }

    /// A node that is down is not waited for long: another is asked then.
    pub fn config_of(&self, of: ResourceSpecifier, name: &str) -> Done<String> {
        let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(5)));
        for r in block_on(self.admin.describe_configs([&of], &options))? {
            let r = r.map_err(|code| Trouble::Failed(format!("{of:?}: {code:?}")))?;
            if let Some(v) = r.get(name).and_then(|e| e.value.clone()) {
                return Ok(v);
            }
        }
        failed(format!("{of:?} has no {name}"))
    }

    pub fn set_topic_config(&self, topic: &str, name: &str, value: &str) -> Done<()> {
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
        for r in block_on(self.admin.alter_configs([&change], &self.options()))? {
            r.map_err(|(of, code)| Trouble::Failed(format!("{of:?}: {code:?}")))?;
        }
        Ok(())
    }

    pub fn groups(&self) -> Done<Vec<String>> {
        Ok(self.asks.fetch_group_list(None, ANSWER)?.groups().iter().map(|g| g.name().to_string()).collect())
    }

    pub fn describe_group(&self, group: &str) -> Done<(String, usize)> {
        let list = self.asks.fetch_group_list(Some(group), ANSWER)?;
        match list.groups() {
            [g] => Ok((g.state().to_string(), g.members().len())),
            all => failed(format!("{} groups", all.len())),
        }
    }

    // librdkafka's admin client goes on asking a group's coordinator that has moved: a NOT_COORDINATOR in an answer about a group
    // does not empty its cache. Whatever is asked of a coordinator is therefore asked by a client of its own.

    pub fn delete_group(&self, group: &str) -> Done<()> {
        let admin: AdminClient<Context> = self.config().create_with_context(Context)?;
        one(block_on(admin.delete_groups(&[group], &self.options()))?)
    }

    pub fn committed(&self, group: &str, topic: &str) -> Done<Offsets> {
        let list = self.partitions(topic)?;
        let r = self.consumer(group, topic)?;
        offsets_of(&r.c.committed_offsets(list, ANSWER)?)
    }

    fn partitions(&self, topic: &str) -> Done<TopicPartitionList> {
        let Some((n, _)) = self.describe_topic(topic)? else { return failed(format!("there is no topic {topic}")) };
        let mut list = TopicPartitionList::new();
        list.add_partition_range(topic, 0, n as i32 - 1);
        Ok(list)
    }

    /// Asks for EARLIEST, LATEST or the first record of a time or later (-1, the end: there is none).
    pub fn offsets(&self, topic: &str, at: i64) -> Done<Offsets> {
        let mut list = self.partitions(topic)?;
        if at != EARLIEST && at != LATEST {
            list.set_all_offsets(Offset::Offset(at))?;
            return offsets_of(&self.asks.offsets_for_times(list, ANSWER)?);
        }
        let mut out = Offsets::new();
        for e in list.elements() {
            let (low, high) = self.asks.fetch_watermarks(topic, e.partition(), ANSWER)?;
            out.insert(e.partition(), if at == EARLIEST { low } else { high });
        }
        Ok(out)
    }

    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) -> Done<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before))?;
        offsets_of(&block_on(self.admin.delete_records(&list, &self.options()))?)?;
        Ok(())
    }
}

fn config(servers: &str, prefix: &str) -> ClientConfig {
    let mut c = ClientConfig::new();
    c.set("bootstrap.servers", servers).set("client.id", prefix).set_log_level(RDKafkaLogLevel::Warning);
    c
}
