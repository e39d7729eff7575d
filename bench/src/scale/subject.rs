//! The Pointsman that is measured.

use std::fmt::Write as _;
use std::io::{BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::world::{Cluster, read_response};
use crate::comparison::Placement;
use crate::load::socket::begin;
use crate::load::{self, Edge, Pace, Stream};
use crate::measure::memory;
use crate::measure::processes::{CpuTime, Pid, cpu_of};
use crate::peers::Engine;
use crate::process::Server;
use crate::site::Site;
use crate::wire::Pattern;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(ADDRESS), 7000);
/// The first listener's port; the others follow.
const FIRST_PORT: u16 = 10_000;
/// How long it may take until it serves.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How often a start-up is looked at.
const LOOK: Duration = Duration::from_millis(1);
/// Where proxy and load run: its costs are told best when nobody else is on its core.
pub const PLACEMENT: Placement = Placement::Pinned;

/// What a listener routes to.
#[derive(Debug, Clone, Copy)]
pub struct Listening<'a> {
    /// In which cluster.
    pub cluster: &'a Cluster,
    /// `primary` or `replicas`.
    pub target: &'static str,
}

/// A Pointsman that serves on all of its listeners.
#[derive(Debug)]
pub struct Subject {
    _server: Server,
    pids: Vec<Pid>,
    /// From its start until the last listener has served a session.
    pub started_in: Duration,
}

/// Where the listener of this index listens.
pub fn address(listener: usize) -> SocketAddr {
    let port = FIRST_PORT.saturating_add(u16::try_from(listener).unwrap_or(u16::MAX));
    SocketAddr::from((ADDRESS, port))
}

impl Subject {
    /// Starts it and waits until each listener has served a session; `serves` says which of them can.
    pub fn start(site: &Site, engine: Engine, listeners: &[Listening<'_>]) -> Result<Self> {
        let program = site.pointsman.as_ref().context(
            "no pointsman to measure: build it beside this program, or name it with --pointsman FILE",
        )?;
        let directory = site.fresh_directory("pointsman-scale")?;
        std::fs::write(directory.join("pointsman.toml"), configuration(engine, listeners))?;
        let arguments = ["run", "--config", "pointsman.toml"];
        let began = Instant::now();
        let server = Server::start(&directory, Some(site.account), &PLACEMENT.proxy(), program, arguments)?;
        for listener in 0..listeners.len() {
            while let Err(error) = begin(address(listener), None, Pattern::Sink) {
                ensure!(
                    began.elapsed() < START_DEADLINE,
                    "pointsman does not serve on {}: {error:#}; {}",
                    address(listener),
                    server.tail()
                );
                thread::sleep(LOOK);
            }
        }
        let started_in = began.elapsed();
        let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        ensure!(engine != Engine::IoUring || !log.contains("falls back"), "io_uring is not available here");
        let pids = server.family();
        Ok(Self { _server: server, pids, started_in })
    }

    /// Bytes.
    pub fn resident(&self) -> u64 {
        memory::resident(&self.pids)
    }

    /// Until now.
    pub fn cpu(&self) -> CpuTime {
        cpu_of(&self.pids)
    }

    /// CPU time used while `doing`, and how long it took.
    pub fn while_doing<T>(&self, doing: impl FnOnce() -> Result<T>) -> Result<(T, Duration, Duration)> {
        let (before, began) = (self.cpu(), Instant::now());
        let done = doing()?;
        Ok((done, self.cpu().since(&before), began.elapsed()))
    }

    /// CPU seconds for each second in which nobody does anything.
    pub fn at_rest(&self, window: Duration) -> Result<f64> {
        let ((), cpu, elapsed) = self.while_doing(|| {
            thread::sleep(window);
            Ok(())
        })?;
        Ok(cpu.as_secs_f64() / elapsed.as_secs_f64())
    }

    /// CPU seconds for each round trip of one session.
    pub fn round_trip(&self, listener: usize, window: Duration) -> Result<f64> {
        self.unit(window, |pace, look| load::streams(address(listener), &[Stream::Ping(64)], pace, look))
    }

    /// CPU seconds for each connection that is opened, asked once and closed.
    pub fn churn(&self, listener: usize, window: Duration) -> Result<f64> {
        self.unit(window, |pace, look| load::churn(address(listener), 4, pace, look))
    }

    fn unit(
        &self,
        window: Duration,
        load: impl FnOnce(&Pace, load::Observer<'_>) -> Result<load::Outcome>,
    ) -> Result<f64> {
        let pace = Pace { warm: Duration::from_millis(100), window, threads: 1, cores: PLACEMENT.load() };
        let mut edges = (self.cpu(), self.cpu());
        let outcome = load(&pace, &mut |edge| match edge {
            Edge::Begin => edges.0 = self.cpu(),
            Edge::End => edges.1 = self.cpu(),
        })?;
        ensure!(outcome.requests > 0, "nothing came through");
        Ok(edges.1.since(&edges.0).as_secs_f64() / outcome.requests as f64)
    }

    /// A number of `/metrics`: the first sample that begins so.
    pub fn metric(&self, sample: &str) -> Result<f64> {
        let (status, body) = self.ask("/metrics")?;
        ensure!(status == 200, "the metrics cannot be read: {status} {body}");
        let line = body.lines().find(|line| line.starts_with(sample));
        let value =
            line.and_then(|line| line.rsplit(' ').next()).with_context(|| format!("no sample {sample}"))?;
        Ok(value.parse()?)
    }

    /// What happened after the entry of this number, and the number of the newest entry: from `/api/v1/timeline`.
    pub fn timeline(&self, since: u64) -> Result<(u64, Vec<Event>)> {
        let (status, body) = self.ask(&format!("/api/v1/timeline?since={since}"))?;
        ensure!(status == 200, "the timeline cannot be read: {status} {body}");
        let last = number_after(&body, r#""last":"#).context("the timeline has no end")?;
        Ok((last, body.split("\"seq\":").skip(1).filter_map(Event::parse).collect()))
    }

    /// Status and body of an answer on the admin address.
    #[expect(clippy::unused_self, reason = "it must run")]
    fn ask(&self, path: &str) -> Result<(u16, String)> {
        let mut socket = TcpStream::connect(ADMIN).context("cannot connect to the admin address")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {ADMIN}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes())?;
        read_response(&mut BufReader::new(socket))
    }
}

/// An entry of the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Milliseconds of its day, in UTC.
    pub millis_of_day: u64,
    /// In which cluster.
    pub cluster: String,
    /// What it was.
    pub kind: String,
}

impl Event {
    fn parse(json: &str) -> Option<Self> {
        let text = |name: &str| {
            let after = json.split_once(&format!("\"{name}\":\""))?.1;
            Some(after.split_once('"')?.0.to_owned())
        };
        let at = text("at")?;
        let time = at.split_once('T')?.1.trim_end_matches('Z');
        let (clock, millis) = time.split_once('.')?;
        let mut seconds = 0;
        for part in clock.split(':') {
            seconds = seconds * 60 + part.parse::<u64>().ok()?;
        }
        let millis_of_day = seconds * 1000 + millis.parse::<u64>().ok()?;
        Some(Self { millis_of_day, cluster: text("cluster")?, kind: text("kind")? })
    }
}

fn number_after(text: &str, name: &str) -> Option<u64> {
    let digits = text.split_once(name)?.1;
    digits.split(|byte: char| !byte.is_ascii_digit()).next()?.parse().ok()
}

/// The defaults, without limits on connections and without a log line for each session.
fn configuration(engine: Engine, listeners: &[Listening<'_>]) -> String {
    let mut text = format!(
        r#"state_dir = "state"
[admin]
bind = "{ADMIN}"
socket = "admin.sock"
[relay]
engine = "{}"
[log]
sessions = false
[shutdown]
drain = "100ms"
"#,
        engine.name()
    );
    let mut clusters: Vec<&Cluster> = listeners.iter().map(|listening| listening.cluster).collect();
    clusters.sort_unstable_by_key(|cluster| cluster.scope);
    clusters.dedup_by_key(|cluster| cluster.scope);
    for cluster in clusters {
        // Writing to a string cannot fail.
        let _ = write!(text, "[clusters.{}]\ndiscovery = {}\n", cluster.scope, cluster.kept.discovery());
    }
    for (index, Listening { cluster, target }) in listeners.iter().enumerate() {
        let _ = write!(
            text,
            r#"[[listeners]]
name = "l{index}"
cluster = "{}"
bind = "{}"
target = "{target}"
max_connections = 1000000
release_rate = 1000000
"#,
            cluster.scope,
            address(index)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::world::Kept;

    #[test]
    fn an_entry_of_the_timeline() {
        let json = r#"7,"at":"2026-11-21T01:02:03.045Z","cluster":"fenced","loudness":"info","member":"pg0","kind":"revoked","text":"x"}"#;
        let event = Event::parse(json).unwrap();
        assert_eq!(event.millis_of_day, 3_723_045);
        assert_eq!((event.cluster.as_str(), event.kind.as_str()), ("fenced", "revoked"));
        assert_eq!(Event::parse("7}"), None);
        assert_eq!(number_after(r#"{"last":12,"entries":[]}"#, r#""last":"#), Some(12));
    }

    #[test]
    fn a_configuration_is_understood() {
        let cluster = Cluster { scope: "one", net: 16, members: 2, port: 5432, kept: Kept::Etcd };
        let listeners = ["primary", "replicas"].map(|target| Listening { cluster: &cluster, target });
        let text = configuration(Engine::Epoll, &listeners);
        assert!(text.contains("[clusters.one]") && text.matches("[clusters.").count() == 1, "{text}");
        assert!(text.contains("127.0.1.1:10001"), "{text}");
    }
}
