//! The records of the client matrix, what compares them, and what has leaders killed among them.

use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::{failed, Done};

/// A record as it is sent or read. Times are milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub time: i64,
}

pub const RECORD_PARTITIONS: usize = 3;

/// A record that compresses well and that no other equals.
pub fn codec_record(codec: &str, i: usize, base: i64) -> Record {
    Record {
        key: format!("key-{i:04}").into_bytes(),
        value: format!("value {i} of {codec}: {}", "compressible ".repeat(12)).into_bytes(),
        headers: vec![("number".into(), i.to_string().into_bytes()), ("codec".into(), codec.into())],
        time: base + i as i64 * 1000,
        ..Record::default()
    }
}

/// The time of the first record: a day ago, so that it is not the time of sending.
pub fn base_time() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    (now.as_secs() as i64 - 86_400) * 1000
}

pub fn numbered(i: usize, base: i64) -> Record {
    let n = i.to_string();
    Record {
        partition: (i % RECORD_PARTITIONS) as i32,
        value: format!("record {n} of the many that are looked at one by one, each of them").into_bytes(),
        headers: vec![("n".into(), n.clone().into_bytes())],
        key: n.into_bytes(),
        time: base + i as i64,
        ..Record::default()
    }
}

pub fn same(got: &Record, want: &Record) -> Done<()> {
    if got.key != want.key || got.value != want.value || got.time != want.time || got.headers != want.headers {
        let show = |r: &Record| {
            let value = String::from_utf8_lossy(&r.value[..r.value.len().min(60)]).into_owned();
            format!("{:?}={value:?} at {} with headers {:?}", String::from_utf8_lossy(&r.key), r.time, r.headers)
        };
        return failed(format!("at offset {}: {}; sent: {}", got.offset, show(got), show(want)));
    }
    Ok(())
}

/// Compares a partition's records with those that were sent to it, in order and once.
#[derive(Default)]
pub struct Checker {
    pub next: usize,
}

impl Checker {
    pub fn check(&mut self, got: &Record, want: &Record) -> Done<()> {
        if got.offset != self.next as i64 {
            return failed(format!("offset {} instead of {}", got.offset, self.next));
        }
        self.next += 1;
        same(got, want)
    }
}

#[derive(Default)]
struct Count {
    n: usize,
    started: bool,
    dead: Option<Result<(), String>>,
}

/// Has a leader killed once a count reaches half; hold at three quarters waits until it is dead.
pub struct Killer {
    total: usize,
    count: Mutex<Count>,
    changed: Condvar,
    kill: Box<dyn Fn() -> Done<()> + Send + Sync>,
}

impl Killer {
    pub fn new(total: usize, kill: impl Fn() -> Done<()> + Send + Sync + 'static) -> Arc<Killer> {
        Arc::new(Killer { total, count: Mutex::default(), changed: Condvar::new(), kill: Box::new(kill) })
    }

    pub fn add(self: &Arc<Self>) {
        let mut c = self.count.lock().expect("no panic");
        c.n += 1;
        if c.n >= self.total / 2 && !c.started {
            c.started = true;
            let k = self.clone();
            thread::spawn(move || {
                let dead = (k.kill)().map_err(|e| format!("{e:?}"));
                k.count.lock().expect("no panic").dead = Some(dead);
                k.changed.notify_all();
            });
        }
    }

    pub fn hold(&self, n: usize, end: Instant) -> Done<()> {
        if n < self.total * 3 / 4 {
            return Ok(());
        }
        let c = self.count.lock().expect("no panic");
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let (c, _) = self.changed.wait_timeout_while(c, left, |c| c.dead.is_none()).expect("no panic");
        match &c.dead {
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => failed(e.clone()),
            None => failed(format!("{} of {} records, and no leader was killed in time", c.n, self.total)),
        }
    }
}
