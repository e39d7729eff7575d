//! A leader change under as many sessions as the limits allow, all of whose clients keep writing, beside another cluster of the
//! same process.
//!
//! What is seen from outside, and on which clock:
//! * *revoked*: the earlier of two instants: the timeline's entry `revoked` (cut off to milliseconds, so up to one too early) and the
//!   first end of a session that its client or the old server has seen.
//! * *last byte*: when the old server read the last message of all. What arrived before and was read later is counted against us.
//! * *written later*: messages that clients wrote more than 5 ms after that instant. None may arrive, ever; how many were written says
//!   what that proves. (Within the 5 ms the control task may have been kept from its core between noting and revoking.)
//! * *all ended*: the last end that a client or the old server has seen.
//! * the other cluster's round trips: the 99th percentile from the put of the new leader's key until all have ended (200 ms at
//!   least), beside that of the time before; and beside round trips without a proxy in the same time, which show how much of it is
//!   the load's own: load and servers share one core.

pub mod clients;
pub mod server;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, ensure};

use self::clients::{RoundTrip, Told, ping, write_on};
use self::server::{OldServer, Seen};
use super::Scale;
use super::subject::{Listening, PLACEMENT, Subject, address};
use super::table::{Column, Table};
use super::world::{Cluster, Kept, SERVER_PORT};
use crate::load::idle;
use crate::sandbox;

/// Nanoseconds since the measurement began.
pub type Nanos = u64;

/// Bytes in a message: when it was written, and nothing.
pub const MESSAGE: usize = 16;

/// Its servers' port is below those that the kernel gives to clients, one of which may be in use.
const FENCED: Cluster = Cluster { scope: "fenced", net: 40, members: 2, port: 543, kept: Kept::Etcd };
const OTHER: Cluster = Cluster { scope: "other", net: 41, members: 1, port: SERVER_PORT, kept: Kept::Etcd };
/// What the process needs beside the sessions.
const OTHER_SESSIONS: u64 = 32;
/// The usual, before.
const USUAL: Duration = Duration::from_millis(600);
/// For messages that are still on their way when all sessions have ended.
const AFTER: Duration = Duration::from_millis(100);
/// Nothing that a client writes later than this after the revocation may arrive. In nanoseconds.
const FENCED_WITHIN: Nanos = 5_000_000;
const AT_LEAST: Duration = Duration::from_millis(200);
const END_DEADLINE: Duration = Duration::from_secs(10);

const COLUMNS: &[Column] = &[
    Column::told("put → revoked", "ms"),
    Column::bounded("revoked → last byte at the old server", "ms", 5.0),
    Column::told("messages written later than 5 ms after it", "messages"),
    Column::bounded("of them arrived at the old server", "messages", 0.0),
    Column::bounded("revoked → all ended", "ms", 2000.0),
    Column::told("usual p99 of the other cluster", "ms"),
    Column::told("p99 meanwhile", "ms"),
    Column::bounded("more than usual", "ms", 10.0),
    Column::told("p99 meanwhile without a proxy", "ms"),
    Column::told("proxy CPU of the change, less the usual", "ms"),
];

/// Time since `epoch`.
fn since(epoch: Instant) -> Nanos {
    Nanos::try_from(epoch.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
}

/// The whole part.
pub fn measure(scale: &mut Scale<'_>) -> Result<Table> {
    let mut table =
        Table::new("fence", "A leader change under sessions that keep writing", "sessions", COLUMNS);
    let most = usize::try_from(sandbox::sessions().saturating_sub(OTHER_SESSIONS)).unwrap_or(usize::MAX);
    let epoch = Instant::now();
    let old = OldServer::start(FENCED.port, epoch, PLACEMENT.load())?;
    scale.world.create(&FENCED)?;
    scale.world.create(&OTHER)?;
    for engine in scale.engines() {
        let listeners = [&FENCED, &OTHER].map(|cluster| Listening { cluster, target: "primary" });
        let subject = Subject::start(scale.site, engine, &listeners)?;
        let mut leader = 0;
        for count in [100, 1_000, most] {
            for round in 1..=scale.runs {
                leader = 1 - leader;
                let change = Change { scale, subject: &subject, old: &old, epoch, leader };
                let run =
                    change.run(count).with_context(|| format!("a leader change under {count} sessions"))?;
                scale.tell(table.name, engine, count, round, COLUMNS, &run);
                table.add(engine, count, run);
            }
        }
        scale.world.lead(&FENCED, 0)?;
    }
    table.notes.push(format!(
        "{} messages a second are written by all sessions together; the largest step is what {} descriptors for each process allow.",
        clients::WRITES_PER_SECOND,
        sandbox::descriptors()
    ));
    Ok(table)
}

struct Change<'a> {
    scale: &'a Scale<'a>,
    subject: &'a Subject,
    old: &'a OldServer,
    epoch: Instant,
    leader: usize,
}

impl Change<'_> {
    fn run(&self, count: usize) -> Result<Vec<Option<f64>>> {
        let cores = PLACEMENT.load();
        let sessions = thread::scope(|scope| {
            let opener = scope.spawn(|| {
                cores.confine_this_thread()?;
                idle::open(address(0), count)
            });
            joined(opener)
        })?;
        self.old.take();
        let stop = AtomicBool::new(false);
        let confined = || cores.confine_this_thread();
        thread::scope(|scope| {
            let writer = scope.spawn(|| confined().and_then(|()| write_on(sessions, self.epoch, &stop)));
            let pinger = |target: SocketAddr| {
                let stop = &stop;
                scope.spawn(move || confined().and_then(|()| ping(target, self.epoch, stop)))
            };
            let (proxied, direct) = (pinger(address(1)), pinger(OTHER.server(0)));
            let changed = self.change(&writer);
            stop.store(true, Relaxed);
            let (told, proxied, direct) = (joined(writer), joined(proxied), joined(direct));
            Facts { changed: changed?, told: told?, seen: self.old.take(), count }
                .columns(&proxied?, &direct?)
        })
    }

    /// Waits, changes the leader, and waits until the clients have seen it.
    fn change(&self, writer: &ScopedJoinHandle<'_, Result<Told>>) -> Result<Changed> {
        let (last, _) = self.subject.timeline(0)?;
        let usual = self.subject.at_rest(USUAL)?;
        let (cpu, began) = (self.subject.cpu(), Instant::now());
        let put = self.scale.world.lead(&FENCED, self.leader)?;
        while !(writer.is_finished() && put.elapsed() > AT_LEAST) {
            ensure!(put.elapsed() < END_DEADLINE, "sessions were open {END_DEADLINE:?} after the change");
            thread::sleep(Duration::from_millis(2));
        }
        let ended = since(self.epoch);
        let cpu = self.subject.cpu().since(&cpu).as_secs_f64() - usual * began.elapsed().as_secs_f64();
        thread::sleep(AFTER);
        let (_, events) = self.subject.timeline(last)?;
        let revoked = events.iter().find(|event| event.cluster == FENCED.scope && event.kind == "revoked");
        let revoked = revoked.context("the timeline tells of no revocation")?;
        let put = put.saturating_duration_since(self.epoch);
        Ok(Changed {
            put: Nanos::try_from(put.as_nanos())?,
            revoked: on_our_clock(revoked.millis_of_day, self.epoch)?,
            ended,
            cpu: cpu.max(0.0),
        })
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the load panicked"))?
}

/// Milliseconds of the day as nanoseconds since `epoch`, of an instant less than half a day ago.
fn on_our_clock(millis_of_day: u64, epoch: Instant) -> Result<Nanos> {
    const DAY: i128 = 86_400_000_000_000;
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).context("a clock before 1970")?;
    let now = i128::from(since(epoch));
    let ago = (i128::try_from(wall.as_nanos())? - i128::from(millis_of_day) * 1_000_000).rem_euclid(DAY);
    Ok(Nanos::try_from((now - ago).max(0))?)
}

/// The instants of a change.
#[derive(Debug, Clone, Copy)]
struct Changed {
    put: Nanos,
    /// By the timeline.
    revoked: Nanos,
    /// The clients have seen the last end.
    ended: Nanos,
    /// Beyond the usual, in seconds.
    cpu: f64,
}

/// What both ends have noted.
#[derive(Debug)]
struct Facts {
    changed: Changed,
    told: Told,
    seen: Seen,
    count: usize,
}

impl Facts {
    fn columns(&self, proxied: &[RoundTrip], direct: &[RoundTrip]) -> Result<Vec<Option<f64>>> {
        let Changed { put, revoked, ended, cpu } = self.changed;
        ensure!(
            self.told.ends.len() == self.count && self.seen.ends.len() == self.count,
            "of {} sessions {} ended at the clients and {} at the server",
            self.count,
            self.told.ends.len(),
            self.seen.ends.len()
        );
        let ends = || self.told.ends.iter().chain(&self.seen.ends).copied();
        let (first_end, last_end) = ends().min().zip(ends().max()).context("nothing ended")?;
        ensure!(first_end > put, "sessions ended before the change");
        let revoked = revoked.min(first_end);
        let last_byte = self.seen.arrivals.iter().map(|arrival| arrival.read).max().unwrap_or(revoked);
        let surely = revoked + FENCED_WITHIN;
        let written = self.told.writes.iter().filter(|at| **at > surely).count();
        let arrived = self.seen.arrivals.iter().filter(|arrival| arrival.written > surely).count();
        let meanwhile = put..ended.max(put + 1);
        let (usual, during) = (p99(proxied, &(0..put)), p99(proxied, &meanwhile));
        let distance = |from: Nanos, to: Nanos| (to as f64 - from as f64) / 1e6;
        Ok(vec![
            Some(distance(put, revoked)),
            Some(distance(revoked, last_byte).max(0.0)),
            Some(written as f64),
            Some(arrived as f64),
            Some(distance(revoked, last_end)),
            usual,
            during,
            during.zip(usual).map(|(during, usual)| (during - usual).max(0.0)),
            p99(direct, &meanwhile),
            Some(cpu * 1e3),
        ])
    }
}

/// In milliseconds.
fn p99(trips: &[RoundTrip], within: &std::ops::Range<Nanos>) -> Option<f64> {
    let mut took: Vec<Duration> =
        trips.iter().filter(|trip| within.contains(&trip.due)).map(|trip| trip.took).collect();
    took.sort_unstable();
    let rank = (took.len() * 99).div_ceil(100);
    Some(took.get(rank.checked_sub(1)?)?.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::server::Arrival;
    use super::*;

    const MS: Nanos = 1_000_000;

    fn facts(arrivals: Vec<Arrival>) -> Facts {
        Facts {
            changed: Changed { put: 100 * MS, revoked: 103 * MS, ended: 400 * MS, cpu: 0.01 },
            told: Told { writes: vec![90 * MS, 103 * MS, 200 * MS], ends: vec![104 * MS, 300 * MS] },
            seen: Seen { arrivals, ends: vec![105 * MS, 310 * MS] },
            count: 2,
        }
    }

    #[test]
    fn a_byte_after_the_fence_is_seen() {
        let good = facts(vec![Arrival { read: 103 * MS + MS / 2, written: 90 * MS }]);
        let columns = good.columns(&[], &[]).unwrap();
        assert_eq!(&columns[..6], [Some(3.0), Some(0.5), Some(1.0), Some(0.0), Some(207.0), None]);
        let bad = facts(vec![Arrival { read: 201 * MS, written: 200 * MS }]);
        let columns = bad.columns(&[], &[]).unwrap();
        assert_eq!(&columns[1..4], [Some(98.0), Some(1.0), Some(1.0)]);
    }

    #[test]
    fn a_session_that_never_ends_is_an_error() {
        let mut facts = facts(Vec::new());
        facts.seen.ends.pop();
        assert!(facts.columns(&[], &[]).is_err());
    }

    #[test]
    fn the_99th_percentile_is_that_of_its_window() {
        let trips: Vec<RoundTrip> =
            (1..=200).map(|n| RoundTrip { due: n, took: Duration::from_millis(n) }).collect();
        assert_eq!(p99(&trips, &(1..101)), Some(99.0));
        assert_eq!(p99(&trips, &(101..201)), Some(199.0));
        assert_eq!(p99(&trips, &(500..501)), None);
    }

    #[test]
    fn the_time_of_day_on_our_clock() {
        let epoch = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let ago = SystemTime::now().checked_sub(Duration::from_secs(2)).unwrap();
        let wall = ago.duration_since(UNIX_EPOCH).unwrap();
        let of_day = u64::try_from(wall.as_millis() % 86_400_000).unwrap();
        let found = on_our_clock(of_day, epoch).unwrap();
        assert!((7_990 * MS..8_500 * MS).contains(&found), "{found}");
    }
}
