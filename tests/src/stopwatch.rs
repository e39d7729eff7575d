//! What clients see while the leader changes.
//!
//! [`Traffic`] opens a connection to one address at a fixed rhythm, whatever becomes of the earlier ones, asks who is
//! there and closes it. [`first_write`] finds the instant at which a member accepts writes when asked directly. From both,
//! [`judge`] computes what is reported: failures, wrong roles, the outage, and *our share*: the first session served on
//! the new primary minus the first write that it accepts directly.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::cluster::Cluster;
use crate::member::Member;
use crate::sql::{self, Reached};
use crate::wait;

/// How often a client connects, on a machine that keeps up with it.
pub const RHYTHM: Duration = Duration::from_millis(10);
/// How long one attempt may take: longer than any planned switchover. With [`RHYTHM`] it bounds the open attempts.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(30);
/// How often the new primary is asked directly.
const WRITE_RHYTHM: Duration = Duration::from_millis(2);
/// The attempts of this time, in a row, must be good before a measurement begins, and after the change before it ends.
const STEADY: Duration = Duration::from_secs(2);
/// And so many of them at least.
const STEADY_AT_LEAST: usize = 30;
const STEADY_DEADLINE: Duration = Duration::from_secs(60);
/// How often the machine's pace is taken.
const PACE_SAMPLES: usize = 9;

/// One connection of [`Traffic`].
#[derive(Debug, Clone)]
pub struct Attempt {
    /// When it began to connect.
    pub begun: Instant,
    /// When it had its answer, or failed.
    pub ended: Instant,
    /// Who answered; or what went wrong.
    pub outcome: Result<Reached, String>,
}

impl Attempt {
    fn is_served_by(&self, server: SocketAddr) -> bool {
        self.outcome.as_ref().is_ok_and(|reached| reached.server == server && !reached.in_recovery)
    }
}

/// Who is served at once is done by then, even on a busy machine; who takes longer has been waiting.
const SERVED_WITHIN: Duration = Duration::from_secs(1);

/// Whether there is one moment at which all that failed were open, and just being served, not waiting: a server that ends
/// its sessions ends them so, and nothing else does.
pub(crate) fn lost_at_one_stroke(attempts: &[Attempt]) -> bool {
    let failed = || attempts.iter().filter(|one| one.outcome.is_err());
    let last_begun = failed().map(|one| one.begun).max();
    let first_ended = failed().map(|one| one.ended).min();
    last_begun <= first_ended && failed().all(|one| one.ended - one.begun < SERVED_WITHIN)
}

type Record = Arc<Mutex<Vec<Attempt>>>;

/// A client that connects at a fixed rhythm until it is told to stop. Dropping it stops it and forgets the rest.
#[derive(Debug)]
pub struct Traffic {
    rhythm: Duration,
    record: Record,
    stop: watch::Sender<bool>,
    task: JoinSet<()>,
}

impl Traffic {
    /// One connection each [`RHYTHM`]. Begins at once.
    pub fn start(address: SocketAddr) -> Self {
        Self::start_every(RHYTHM, address)
    }

    fn start_every(rhythm: Duration, address: SocketAddr) -> Self {
        let record = Record::default();
        let (stop, stopped) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(run_traffic(address, rhythm, Arc::clone(&record), stopped));
        Self { rhythm, record, stop, task }
    }

    /// Waits until the attempts of [`STEADY`] (in the order of their ends) have all been served by `server`.
    async fn wait_steady(&self, name: &str, server: SocketAddr) -> Result<()> {
        let steady = usize::try_from(STEADY.as_micros() / self.rhythm.as_micros().max(1))?;
        let steady = steady.max(STEADY_AT_LEAST);
        wait::until(format!("{name} to serve from {server} alone"), STEADY_DEADLINE, async || {
            let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            let good = record.iter().rev().take_while(|attempt| attempt.is_served_by(server)).count();
            ensure!(good >= steady, "{good} in a row; before them: {:?}", record.iter().rev().nth(good));
            Ok(())
        })
        .await
    }

    /// Begins no more attempts, waits for the open ones, and answers all of them.
    pub async fn finish(mut self) -> Vec<Attempt> {
        self.stop.send_replace(true);
        while self.task.join_next().await.is_some() {}
        std::mem::take(&mut *self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn run_traffic(
    address: SocketAddr,
    rhythm: Duration,
    record: Record,
    mut stopped: watch::Receiver<bool>,
) {
    let mut attempts = JoinSet::new();
    let mut rhythm = tokio::time::interval(rhythm);
    // A late tick must not be followed by a burst.
    rhythm.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = rhythm.tick() => {
                attempts.spawn(attempt(address, Arc::clone(&record)));
            }
            _ = attempts.join_next(), if !attempts.is_empty() => {}
            _ = stopped.changed() => break,
        }
    }
    while attempts.join_next().await.is_some() {}
}

async fn attempt(address: SocketAddr, record: Record) {
    let begun = Instant::now();
    let outcome = sql::who(address, ATTEMPT_DEADLINE).await.map_err(|error| format!("{error:#}"));
    let attempt = Attempt { begun, ended: Instant::now(), outcome };
    record.lock().unwrap_or_else(PoisonError::into_inner).push(attempt);
}

/// Prepares `cluster` for [`first_write`].
pub async fn prepare(cluster: &Cluster) -> Result<()> {
    let client = sql::Client::connect(cluster.leader_address().await?, Duration::from_secs(5)).await?;
    client.session.batch_execute("create table if not exists stopwatch (at timestamptz not null)").await?;
    Ok(())
}

/// Asks `server` every 2 ms over one open session; answers the instant at which its first write was done.
pub async fn first_write(server: SocketAddr, deadline: Duration) -> Result<Instant> {
    wait::until(format!("{server} to take a write"), deadline, async || {
        // A replica may end its sessions on its way: the next look connects again.
        write_once_primary(&sql::Client::connect(server, Duration::from_secs(5)).await?).await
    })
    .await
}

async fn write_once_primary(client: &sql::Client) -> Result<Instant> {
    while client.reached().await?.in_recovery {
        tokio::time::sleep(WRITE_RHYTHM).await;
    }
    client.session.batch_execute("insert into stopwatch values (clock_timestamp())").await?;
    Ok(Instant::now())
}

/// What one client saw of one change of leader.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Through what it connected.
    pub name: String,
    /// All connections.
    pub attempts: usize,
    /// Connections that ended in an error.
    pub failed: usize,
    /// Connections that reached a server in recovery.
    pub wrong_role: usize,
    /// From the last session served on the old primary to the first on the new one.
    pub outage: Duration,
    /// From the first write that the new primary accepted directly to the first session served on it, in milliseconds.
    /// A session may be served before our own write gets its answer, so it may be a little below zero.
    pub share_ms: f64,
    /// The longest time that a connection took which was served.
    pub slowest: Duration,
    /// The errors, and how often each was seen.
    pub errors: BTreeMap<String, usize>,
    /// All that failed were just being served at one moment: that at which their server ended its sessions.
    pub lost_at_one_stroke: bool,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<22} {:>5} connections {:>5} failed {:>5} wrong role   outage {:>6.2} s   our share {:>8.1} ms   slowest {:>6.2} s",
            self.name,
            self.attempts,
            self.failed,
            self.wrong_role,
            self.outage.as_secs_f64(),
            self.share_ms,
            self.slowest.as_secs_f64()
        )
    }
}

/// Judges what a client of the write port saw while the leader changed from `old` to `new`.
pub fn judge(
    name: &str,
    attempts: &[Attempt],
    old: SocketAddr,
    new: SocketAddr,
    written: Instant,
) -> Result<Verdict> {
    let ends = |server| attempts.iter().filter(move |a| a.is_served_by(server)).map(|a| a.ended);
    let last_old = ends(old).max().with_context(|| format!("{name} never served from the old primary"))?;
    let first_new = ends(new).min().with_context(|| format!("{name} never served from the new primary"))?;
    let mut errors = BTreeMap::new();
    for error in attempts.iter().filter_map(|attempt| attempt.outcome.as_ref().err()) {
        *errors.entry(error.clone()).or_insert(0) += 1;
    }
    let served = attempts.iter().filter(|attempt| attempt.outcome.is_ok());
    Ok(Verdict {
        name: name.to_owned(),
        attempts: attempts.len(),
        failed: errors.values().sum(),
        wrong_role: attempts.iter().filter(|a| a.outcome.as_ref().is_ok_and(|r| r.in_recovery)).count(),
        outage: first_new.saturating_duration_since(last_old),
        share_ms: signed_ms(written, first_new),
        slowest: served.map(|attempt| attempt.ended - attempt.begun).max().unwrap_or_default(),
        errors,
        lost_at_one_stroke: lost_at_one_stroke(attempts),
    })
}

/// Milliseconds from one instant to another, below zero when the other was first.
pub fn signed_ms(from: Instant, to: Instant) -> f64 {
    let after = to.saturating_duration_since(from).as_secs_f64();
    let before = from.saturating_duration_since(to).as_secs_f64();
    (after - before) * 1000.0
}

/// What all clients saw of one switchover.
#[derive(Debug)]
pub struct Measurement {
    /// The leader before.
    pub old: String,
    /// The leader afterwards.
    pub new: String,
    /// In the order in which the addresses were given.
    pub verdicts: Vec<Verdict>,
    /// What lies between a first write and the first session whoever makes it, at the machine's present pace: Patroni's
    /// answer that is under way and comes too early, the next one, and a connection.
    pub pace_ms: f64,
}

/// Makes a planned switchover to `candidate` while one client connects to each of `ports` (name, address of a write
/// port), and judges what they saw. The cluster must be ready and [`prepare`]d.
pub async fn measure_switchover(
    cluster: &Cluster,
    ports: &[(&str, SocketAddr)],
    candidate: &str,
) -> Result<Measurement> {
    let old_name = cluster.leader().await?;
    let (old, new) = (cluster.member(&old_name)?.postgres(), cluster.member(candidate)?.postgres());
    // Clients of which more than one at a time are being served in peace are too many for the machine: those who wait for
    // the change come all at once behind it, and it would be measured how a server does that is asked for too much.
    let pace = Pace::of(cluster.member(&old_name)?).await?;
    let rhythm = RHYTHM.max(pace.connection * u32::try_from(ports.len())?);
    let start = |&(name, address): &(_, SocketAddr)| (name, Traffic::start_every(rhythm, address));
    let traffic: Vec<_> = ports.iter().map(start).collect();
    for (name, traffic) in &traffic {
        traffic.wait_steady(name, old).await?;
    }
    let written = first_write(new, Duration::from_secs(60));
    let (written, ()) = tokio::try_join!(written, cluster.switchover(candidate))?;
    for (name, traffic) in &traffic {
        traffic.wait_steady(name, new).await?;
    }
    let mut verdicts = Vec::new();
    for (name, traffic) in traffic {
        verdicts.push(judge(name, &traffic.finish().await, old, new, written)?);
    }
    let pace = Pace::of(cluster.member(candidate)?).await?;
    let pace_ms = (pace.answer * 2 + pace.connection).as_secs_f64() * 1000.0;
    Ok(Measurement { old: old_name, new: candidate.to_owned(), verdicts, pace_ms })
}

/// How long the machine takes now for what a member is asked, directly.
struct Pace {
    /// Patroni's answer.
    answer: Duration,
    /// A connection to PostgreSQL and one query.
    connection: Duration,
}

impl Pace {
    async fn of(member: &Member) -> Result<Self> {
        let (mut answers, mut connections) = (Vec::new(), Vec::new());
        for _ in 0..PACE_SAMPLES {
            let begun = Instant::now();
            member.status().await?;
            answers.push(begun.elapsed().as_secs_f64());
            let begun = Instant::now();
            sql::who(member.postgres(), ATTEMPT_DEADLINE).await?;
            connections.push(begun.elapsed().as_secs_f64());
        }
        let median = |times: &[f64]| Ok::<_, anyhow::Error>(Duration::from_secs_f64(median(times)?));
        Ok(Self { answer: median(&answers)?, connection: median(&connections)? })
    }
}

/// The middle of `values`; of an even number the mean of the two in the middle.
pub fn median(values: &[f64]) -> Result<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.len() % 2, sorted.get(middle)) {
        (1, Some(value)) => Ok(*value),
        (_, Some(value)) => Ok((value + sorted.get(middle - 1).copied().unwrap_or(*value)) / 2.0),
        (_, None) => bail!("no values"),
    }
}

#[cfg(test)]
mod tests;
