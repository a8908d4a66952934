//! The cases of consumer groups.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::client::{Offsets, Reader, LATEST};
use crate::records::{base_time, Record};
use crate::{failed, Done, Suite};

pub const MAIN_PARTITIONS: i32 = 6;
const STEP: usize = 600; // records between two rebalances
const ALL: i64 = 3 * STEP as i64;

/// A member that a thread of its own reads.
#[derive(Default)]
struct Member {
    ended: AtomicBool,
    owned: Mutex<Vec<i32>>,
}

impl Member {
    fn run(&self, s: &Suite, group: &str, topic: &str, seen: &Mutex<HashSet<Vec<u8>>>) -> Done<()> {
        let m = s.client.join(group, topic)?;
        while !self.ended.load(Ordering::Relaxed) {
            let r = m.next(Duration::from_millis(200))?;
            *self.owned.lock().expect("no panic") = m.owned()?;
            if let Some(r) = r {
                seen.lock().expect("no panic").insert(r.value);
            }
        }
        Ok(())
    }
}

pub fn group(s: &Suite) -> Done<String> {
    let (topic, group) = (s.topic("main"), s.topic("group"));
    let seen = Mutex::new(HashSet::new());
    let step = |i: usize| -> Done<()> {
        let base = base_time();
        let records = (i * STEP..(i + 1) * STEP).map(|n| Record {
            partition: n as i32 % MAIN_PARTITIONS,
            key: n.to_string().into_bytes(),
            value: format!("main {n}").into_bytes(),
            time: base + n as i64,
            ..Record::default()
        });
        s.send("none", &topic, records)?;
        s.until("the last of the records", || match seen.lock().expect("no panic").len() {
            n if n == (i + 1) * STEP => Ok(()),
            n => failed(format!("{n} of {} records have arrived", (i + 1) * STEP)),
        })
    };
    let owned = |members: &[&Member]| {
        s.until("the rebalance", || {
            let parts: Vec<Vec<i32>> = members.iter().map(|m| m.owned.lock().expect("no panic").clone()).collect();
            let mut union = parts.concat();
            union.sort();
            if union != (0..MAIN_PARTITIONS).collect::<Vec<_>>() || parts.iter().any(Vec::is_empty) {
                return failed(format!("owned: {parts:?}"));
            }
            Ok(())
        })
    };
    let (a, b) = (Member::default(), Member::default());
    let run = |m: &Member| m.run(s, &group, &topic, &seen);
    thread::scope(|scope| {
        let first = scope.spawn(|| run(&a));
        let mut second = None;
        let mut steps = || -> Done<()> {
            owned(&[&a])?;
            step(0)?;
            let later = second.insert(scope.spawn(|| run(&b)));
            owned(&[&a, &b])?;
            step(1)?;
            b.ended.store(true, Ordering::Relaxed);
            while !later.is_finished() {
                s.check(&|| "a member that leaves".to_string())?;
                thread::sleep(Duration::from_millis(20));
            }
            owned(&[&a])?;
            step(2)
        };
        let mut done = steps();
        a.ended.store(true, Ordering::Relaxed);
        b.ended.store(true, Ordering::Relaxed);
        for member in [Some(first), second].into_iter().flatten() {
            done = member.join().expect("no panic").and(done);
        }
        done
    })?;
    Ok(String::new())
}

/// Reads on from at until that is enough. Whoever is made to join again by a coordinator that moved may go back to what is
/// committed, but no further, and skips nothing.
fn read(s: &Suite, m: &Reader, at: &mut Offsets, enough: impl Fn(&Offsets) -> bool) -> Done<()> {
    let start = at.clone();
    while !enough(at) {
        s.check(&|| format!("at {at:?}"))?;
        let Some(r) = m.next(Duration::from_secs(1))? else { continue };
        let (first, next) = (start[&r.partition], at[&r.partition]);
        if r.offset < first || r.offset > next {
            return failed(format!("partition {}: offset {} was read, not {next} (or again something from {first} on)", r.partition, r.offset));
        }
        at.insert(r.partition, next.max(r.offset + 1));
    }
    Ok(())
}

pub fn commit(s: &Suite) -> Done<String> {
    let (topic, group) = (s.topic("main"), s.topic("commit"));
    let ends = s.offsets(&topic, LATEST)?;
    let mut at: Offsets = ends.keys().map(|p| (*p, 0)).collect();
    let positive = |o: &Offsets| -> Offsets { o.iter().filter(|(_, o)| **o > 0).map(|(p, o)| (*p, *o)).collect() };
    let first = s.client.join(&group, &topic)?;
    read(s, &first, &mut at, |at| at.values().sum::<i64>() == ALL / 2)?;
    let again = || first.commit(&at);
    s.change("the commit", again, || s.equal(positive(&at), positive(&s.client.committed(&group, &topic)?)))?;
    drop(first);
    let second = s.client.join(&group, &topic)?;
    read(s, &second, &mut at, |at| *at == ends)?;
    Ok(String::new())
}
