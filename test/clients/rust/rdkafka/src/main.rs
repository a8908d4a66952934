//! The client matrix' program for rdkafka, librdkafka's binding for Rust: see ../../README.md.

mod cases;
mod client;
mod groups;
mod records;

use std::env;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use client::Client;

/// Why a case does not succeed.
#[derive(Debug)]
pub enum Trouble {
    /// The client has no such thing.
    Unsupported(String),
    /// The broker has refused a record with MESSAGE_TOO_LARGE.
    TooLarge,
    Failed(String),
}

pub type Done<T> = Result<T, Trouble>;

pub fn failed<T>(what: String) -> Done<T> {
    Err(Trouble::Failed(what))
}

impl<E: std::error::Error> From<E> for Trouble {
    fn from(e: E) -> Trouble {
        Trouble::Failed(e.to_string())
    }
}

const CASE: Duration = Duration::from_secs(300);

/// What the runner has given the program.
pub struct Suite {
    pub client: Client,
    pub prefix: String,
    pub control: String,
    pub lines: usize,
    pub end: Instant,
}

impl Suite {
    pub fn topic(&self, name: &str) -> String {
        format!("{}.{}", self.prefix, name)
    }

    /// Fails once the case's time is over.
    pub fn check(&self, what: &dyn Fn() -> String) -> Done<()> {
        if Instant::now() > self.end {
            return failed(format!("{}: not in time", what()));
        }
        Ok(())
    }

    /// Looks until what is there.
    pub fn until<T>(&self, what: &str, look: impl FnMut() -> Done<T>) -> Done<T> {
        self.change(what, || Ok(()), look)
    }

    /// Makes a change until a look finds it, again every few seconds: its answer may get lost with a node.
    pub fn change<T>(&self, what: &str, mut change: impl FnMut() -> Done<()>, mut look: impl FnMut() -> Done<T>) -> Done<T> {
        let mut changed: Option<Instant> = None;
        loop {
            let mut first = String::new();
            if changed.is_none_or(|t| t.elapsed() > Duration::from_secs(5)) {
                changed = Some(Instant::now());
                match change() {
                    Err(Trouble::Unsupported(why)) => return Err(Trouble::Unsupported(why)),
                    Err(e) => first = format!("{e:?}; "),
                    Ok(()) => {}
                }
            }
            match look() {
                Ok(got) => return Ok(got),
                Err(Trouble::Unsupported(why)) => return Err(Trouble::Unsupported(why)),
                Err(e) if Instant::now() > self.end => return failed(format!("{what} does not come: {first}{e:?}")),
                Err(e) if !first.is_empty() => eprintln!("{what}: {first}{e:?}"),
                Err(_) => {}
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Has the leader of a partition killed. The runner answers when it is dead.
pub fn kill(control: &str, topic: &str, partition: i32) -> Done<()> {
    let host = control.trim_start_matches("http://");
    let mut s = TcpStream::connect(host)?;
    s.set_read_timeout(Some(Duration::from_secs(180)))?;
    write!(s, "POST /kill?topic={topic}&partition={partition} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    s.read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200 ") {
        return failed(format!("killing the leader: {answer}"));
    }
    Ok(())
}

/// The value of a variable that the runner sets.
fn given(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} must be set: `make clients` does it"))
}

fn main() {
    let prefix = given("PREFIX");
    let client = Client::new(given("BOOTSTRAP"), prefix.clone()).expect("a client");
    let lines = given("LINES").parse().expect("LINES is a number");
    let mut s = Suite { client, prefix, control: given("CONTROL"), lines, end: Instant::now() };
    for (name, run) in cases::all() {
        let began = Instant::now();
        s.end = began + CASE;
        let (result, detail) = match run(&s) {
            Ok(detail) => ("ok", detail),
            Err(Trouble::Unsupported(why)) => ("unsupported", why),
            Err(Trouble::Failed(why)) => ("failed", why),
            Err(Trouble::TooLarge) => ("failed", "MESSAGE_TOO_LARGE".to_string()),
        };
        eprintln!("{name}: {result} in {:.1} s {detail}", began.elapsed().as_secs_f64());
        println!("{}", serde_json::json!({"client": "rdkafka", "version": client::version(), "case": name, "result": result, "detail": detail}));
    }
}
