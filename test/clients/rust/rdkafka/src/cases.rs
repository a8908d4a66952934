//! The cases, but for those of consumer groups.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use rdkafka::admin::ResourceSpecifier;

use crate::client::{Offsets, EARLIEST, LATEST};
use crate::groups::{self, MAIN_PARTITIONS};
use crate::records::{base_time, codec_record, numbered, same, Checker, Killer, Record, RECORD_PARTITIONS};
use crate::{failed, kill, Done, Suite, Trouble};

const UNDER_WAY: usize = 5000; // records sent and not acknowledged

type Case = (&'static str, fn(&Suite) -> Done<String>);

pub fn all() -> Vec<Case> {
    vec![
        ("create-topic", |s| s.create(&s.topic("main"), MAIN_PARTITIONS).map(|()| String::new())),
        ("produce-none", |s| s.produce("none")),
        ("produce-gzip", |s| s.produce("gzip")),
        ("produce-snappy", |s| s.produce("snappy")),
        ("produce-lz4", |s| s.produce("lz4")),
        ("produce-zstd", |s| s.produce("zstd")),
        ("group", groups::group),
        ("commit", groups::commit),
        ("seek-time", Suite::seek_time),
        ("list-offsets", Suite::list_offsets),
        ("admin", Suite::admin),
        ("large", Suite::large),
        ("records", Suite::records),
    ]
}

impl Suite {
    pub fn equal<T: PartialEq + Debug>(&self, want: T, got: T) -> Done<()> {
        if got != want {
            return failed(format!("{got:?}, not {want:?}"));
        }
        Ok(())
    }

    fn create(&self, topic: &str, partitions: i32) -> Done<()> {
        let create = || self.client.create_topic(topic, partitions, 3, &[]);
        self.change(topic, create, || self.equal(Some((partitions as usize, 3)), self.client.describe_topic(topic)?))
    }

    /// Asks again while leaders move.
    pub fn offsets(&self, topic: &str, at: i64) -> Done<Offsets> {
        self.until("an answer about offsets", || self.client.offsets(topic, at))
    }

    pub fn send(&self, codec: &str, topic: &str, records: impl Iterator<Item = Record>) -> Done<()> {
        let mut p = self.client.producer(codec, 1 << 20, None)?;
        for r in records {
            p.send(topic, &r)?;
        }
        p.close(self.end)
    }

    fn compare(&self, topic: &str, records: &[Record]) -> Done<()> {
        let (r, mut c) = (self.client.reader(topic, 0, 0)?, Checker::default());
        while c.next < records.len() {
            self.check(&|| format!("record {}", c.next))?;
            if let Some(got) = r.next(Duration::from_secs(1))? {
                let want = &records[c.next];
                c.check(&got, want)?;
            }
        }
        Ok(())
    }

    fn produce(&self, codec: &str) -> Done<String> {
        let (topic, base) = (self.topic(codec), base_time());
        self.create(&topic, 1)?;
        let records: Vec<Record> = (0..1000).map(|i| codec_record(codec, i, base)).collect();
        self.send(codec, &topic, records.iter().cloned())?;
        self.compare(&topic, &records)?;
        Ok(String::new())
    }

    fn seek_time(&self) -> Done<String> {
        let (topic, base) = (self.topic("time"), base_time());
        self.create(&topic, 1)?;
        let records: Vec<Record> = (0..100).map(|i| codec_record("time", i, base)).collect();
        self.send("none", &topic, records.iter().cloned())?;
        for (after, want) in [(-3_600_000, 0), (50_500, 51), (51_000, 51), (99_000, 99)] {
            let at = self.offsets(&topic, base + after)?[&0];
            self.equal((after, want), (after, at))?;
            let r = self.client.reader(&topic, 0, at)?;
            let got = loop {
                self.check(&|| format!("the record at {after} ms"))?;
                if let Some(got) = r.next(Duration::from_secs(1))? {
                    break got;
                }
            };
            self.equal((after, want), (after, got.offset))?;
            same(&got, &records[want as usize])?;
        }
        match self.offsets(&topic, base + 3_600_000)?[&0] {
            -1 | 100 => Ok(String::new()),
            o => failed(format!("after the last record: offset {o}")),
        }
    }

    fn list_offsets(&self) -> Done<String> {
        let (topic, base) = (self.topic("offsets"), base_time());
        self.create(&topic, 3)?;
        let records = (0..3).flat_map(|p| (0..10 * (p + 1)).map(move |i| Record { partition: p, ..codec_record("offsets", i as usize, base) }));
        self.send("none", &topic, records)?;
        let begin = |first: i64| Offsets::from([(0, 0), (1, 0), (2, first)]);
        let end = Offsets::from([(0, 10), (1, 20), (2, 30)]);
        self.equal(begin(0), self.offsets(&topic, EARLIEST)?)?;
        self.equal(end.clone(), self.offsets(&topic, LATEST)?)?;
        let delete = || self.client.delete_records(&topic, 2, 7);
        self.change("the new beginning", delete, || self.equal(begin(7), self.client.offsets(&topic, EARLIEST)?))?;
        self.equal(end, self.offsets(&topic, LATEST)?)?;
        Ok(String::new())
    }

    /// Looks at everything that it has changed. What the client cannot do goes into the detail.
    fn admin(&self) -> Done<String> {
        let (topic, group, c) = (self.topic("admin"), self.topic("commit"), &self.client);
        let retention = |want: &str| self.equal(want.to_string(), c.config_of(ResourceSpecifier::Topic(&topic), "retention.ms")?);
        let listed = |want: bool| self.equal(want, c.groups()?.contains(&group));
        let broker = || {
            let mut errors = Vec::new();
            for node in 1..=3 {
                // one may be down just now
                match c.config_of(ResourceSpecifier::Broker(node), "node.id") {
                    Ok(v) if v == node.to_string() => return Ok(()),
                    other => errors.push(other),
                }
            }
            failed(format!("node.id: {errors:?}"))
        };
        let mut cannot = BTreeSet::new();
        let mut step = |r: Done<()>| match r {
            Err(Trouble::Unsupported(why)) => {
                cannot.insert(why);
                Ok(())
            }
            other => other,
        };
        step(self.until("the cluster's nodes", || match c.nodes()? {
            n if n >= 2 => Ok(()),
            n => failed(format!("{n} nodes")), // of three, one may be down just now
        }))?;
        let create = || c.create_topic(&topic, 1, 3, &[("retention.ms", "3600000")]);
        step(self.change("a topic with configurations", create, || retention("3600000")))?;
        step(self.change("the new retention.ms", || c.set_topic_config(&topic, "retention.ms", "7200000"), || retention("7200000")))?;
        step(self.until("a broker's configuration", broker))?;
        step(self.change("four partitions", || c.add_partitions(&topic, 4), || self.equal(Some((4, 3)), c.describe_topic(&topic)?)))?;
        step(self.until("the group in the list", || listed(true)))?;
        step(self.until("the group's description", || self.equal(("Empty".to_string(), 0), c.describe_group(&group)?)))?;
        step(self.change("the group gone", || c.delete_group(&group), || listed(false)))?;
        step(self.change("the topic gone", || c.delete_topic(&topic), || self.equal(None, c.describe_topic(&topic)?)))?;
        Ok(cannot.into_iter().collect::<Vec<_>>().join("; "))
    }

    fn large(&self) -> Done<String> {
        let (topic, base) = (self.topic("large"), base_time());
        self.create(&topic, 1)?;
        // Bytes that do not compress: a linear congruential generator's high ones.
        let mut x: u64 = 1;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 56) as u8
        })
        .take(2_000_000)
        .collect();
        let sized = |i: usize, n: usize| {
            let mut r = codec_record("large", i, base);
            r.value = [i.to_string().as_bytes(), &noise].concat()[..n].to_vec();
            r
        };
        let mut records: Vec<Record> = (0..3).map(|i| sized(i, 1_000_000)).collect();
        let mut p = self.client.producer("none", 4 << 20, None)?;
        for r in &records {
            p.send(&topic, r)?;
            p.drain(0, self.end)?;
        }
        p.send(&topic, &sized(0, 2_000_000))?;
        match p.drain(0, self.end) {
            Err(Trouble::TooLarge) => {}
            other => return failed(format!("2,000,000 bytes, more than max.message.bytes: {other:?}")),
        }
        p.send(&topic, &records[0])?;
        p.close(self.end)?;
        records.push(records[0].clone());
        self.compare(&topic, &records)?;
        Ok(String::new())
    }

    fn records(&self) -> Done<String> {
        let (topic, base) = (self.topic("records"), base_time());
        self.create(&topic, RECORD_PARTITIONS as i32)?;
        let began = Instant::now();
        self.send_numbered(&topic, base)?;
        let sent = began.elapsed();
        self.read_numbered(&topic, base)?;
        Ok(format!("{} sent in {:.1} s, read in {:.1} s", self.lines, sent.as_secs_f64(), (began.elapsed() - sent).as_secs_f64()))
    }

    fn send_numbered(&self, topic: &str, base: i64) -> Done<()> {
        let (control, of) = (self.control.clone(), topic.to_string());
        let k = Killer::new(self.lines, move || kill(&control, &of, 0));
        let mut p = self.client.producer("lz4", 1 << 20, Some(k.clone()))?;
        let most = UNDER_WAY.min(self.lines / 4);
        for i in 0..self.lines {
            k.hold(i, self.end)?;
            p.drain(most, self.end)?;
            p.send(topic, &numbered(i, base))?;
        }
        p.close(self.end)
    }

    fn read_numbered(&self, topic: &str, base: i64) -> Done<()> {
        let (control, of) = (self.control.clone(), topic.to_string());
        let k = Killer::new(self.lines, move || kill(&control, &of, 1));
        let mut read = 0;
        for p in 0..RECORD_PARTITIONS {
            let (r, mut c) = (self.client.reader(topic, p as i32, 0)?, Checker::default());
            for i in (p..self.lines).step_by(RECORD_PARTITIONS) {
                k.hold(read, self.end)?;
                let got = loop {
                    self.check(&|| format!("partition {p}, record {}", c.next))?;
                    if let Some(got) = r.next(Duration::from_secs(1))? {
                        break got;
                    }
                };
                c.check(&got, &numbered(i, base))?;
                read += 1;
                k.add();
            }
            self.equal((p, c.next as i64), (p, self.offsets(topic, LATEST)?[&(p as i32)]))?;
        }
        Ok(())
    }
}
