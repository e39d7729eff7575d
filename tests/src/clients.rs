//! Clients that come at a fixed rhythm, and what became of each of them.
//!
//! Unlike [`crate::stopwatch::Traffic`] they may be slow enough for outages of half a minute, and they are judged by when
//! each of them began: whoever comes after a failure has to be served, whoever was being served may be lost with it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::sql::{self, Reached};
use crate::stopwatch::{Attempt, lost_at_one_stroke};
use crate::wait;

/// How long one connection may take: longer than a fail-over with Patroni's shortest ttl.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(70);

type Record = Arc<Mutex<Vec<Attempt>>>;

/// One connection after another to one address. Dropping it ends them all.
#[derive(Debug)]
pub struct Clients {
    record: Record,
    stop: watch::Sender<bool>,
    task: JoinSet<()>,
}

impl Clients {
    /// A new connection `every` so often, whatever becomes of the earlier ones. Begins at once.
    pub fn start(address: SocketAddr, every: Duration) -> Self {
        let record = Record::default();
        let (stop, stopped) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(run(address, every, Arc::clone(&record), stopped));
        Self { record, stop, task }
    }

    /// Waits until `count` connections that began now or later have been served.
    pub async fn wait_served(&self, count: usize, deadline: Duration) -> Result<()> {
        let from = Instant::now();
        wait::until(format!("{count} new connections to be served"), deadline, async || {
            let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            let served = record.iter().filter(|one| one.begun >= from && one.outcome.is_ok()).count();
            ensure!(served >= count, "{served} were; the latest: {:?}", record.last());
            Ok(())
        })
        .await
    }

    /// Begins no more, waits for the open ones, and answers all.
    pub async fn finish(mut self) -> Served {
        self.stop.send_replace(true);
        while self.task.join_next().await.is_some() {}
        Served(std::mem::take(&mut *self.record.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

async fn run(address: SocketAddr, every: Duration, record: Record, mut stopped: watch::Receiver<bool>) {
    let mut attempts = JoinSet::new();
    let mut rhythm = tokio::time::interval(every);
    rhythm.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = rhythm.tick() => { attempts.spawn(attempt(address, Arc::clone(&record))); }
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

/// What became of [`Clients`].
#[derive(Debug)]
pub struct Served(pub Vec<Attempt>);

impl Served {
    /// An error when any of them failed, except those that were open while something was being `broken`: their server
    /// may have died under them.
    pub fn check_none_failed(&self, broken: Option<&RangeInclusive<Instant>>) -> Result<()> {
        let mut errors = BTreeMap::<&str, usize>::new();
        for one in &self.0 {
            let lost_with_it =
                broken.is_some_and(|broken| one.begun <= *broken.end() && one.ended >= *broken.start());
            if let (Err(error), false) = (&one.outcome, lost_with_it) {
                *errors.entry(error).or_default() += 1;
            }
        }
        ensure!(!self.0.is_empty(), "nobody connected");
        ensure!(errors.is_empty(), "of {} connections failed: {errors:?}", self.0.len());
        Ok(())
    }

    /// As [`Served::check_none_failed`], when nobody knows the moment at which the server ended its sessions: there must
    /// be one moment at which all that failed were open, and just being served, not waiting.
    pub fn check_lost_at_one_stroke(&self) -> Result<()> {
        if lost_at_one_stroke(&self.0) {
            ensure!(!self.0.is_empty(), "nobody connected");
            return Ok(());
        }
        self.check_none_failed(None).context("they were not lost at one stroke")
    }

    /// An error when any of them reached a server in the other role.
    pub fn check_role(&self, in_recovery: bool) -> Result<()> {
        let wrong: Vec<_> =
            self.reached().filter(|(_, reached)| reached.in_recovery != in_recovery).collect();
        ensure!(wrong.is_empty(), "{} in the wrong role; the first: {:?}", wrong.len(), wrong.first());
        Ok(())
    }

    /// An error when any of them that began at `from` or later reached `server`.
    pub fn check_never(&self, server: SocketAddr, from: Instant) -> Result<()> {
        let wrong: Vec<_> =
            self.reached().filter(|(one, reached)| one.begun >= from && reached.server == server).collect();
        let late = wrong.last().map(|(one, _)| one.begun - from);
        ensure!(wrong.is_empty(), "{} reached {server}, the last {late:?} too late", wrong.len());
        Ok(())
    }

    /// The longest that anybody who was served had to wait.
    pub fn slowest(&self) -> Duration {
        self.reached().map(|(one, _)| one.ended - one.begun).max().unwrap_or_default()
    }

    /// An error when any of them had to wait for as long as `slow`, beside what a connection took at that time to a server
    /// that was reached `directly`: on a machine that has other things to do that may be seconds by itself.
    pub fn check_none_waited(&self, slow: Duration, directly: &Self) -> Result<()> {
        let (slowest, pace) = (self.slowest(), directly.slowest());
        ensure!(slowest < slow + pace, "a connection took {slowest:?}, directly to a server {pace:?}");
        Ok(())
    }

    /// How many each server has served.
    pub fn by_server(&self) -> BTreeMap<SocketAddr, usize> {
        let mut servers = BTreeMap::new();
        for (_, reached) in self.reached() {
            *servers.entry(reached.server).or_default() += 1;
        }
        servers
    }

    fn reached(&self) -> impl Iterator<Item = (&Attempt, &Reached)> {
        self.0.iter().filter_map(|one| Some((one, one.outcome.as_ref().ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (begun, ended, served), in ms.
    fn served(attempts: &[(u64, u64, bool)]) -> Served {
        let start = Instant::now();
        let attempt = |&(begun, ended, served): &(u64, u64, bool)| Attempt {
            begun: start + Duration::from_millis(begun),
            ended: start + Duration::from_millis(ended),
            outcome: if served {
                Ok(Reached { in_recovery: false, server: SocketAddr::from(([127, 0, 0, 1], 5432)) })
            } else {
                Err("lost".to_owned())
            },
        };
        Served(attempts.iter().map(attempt).collect())
    }

    #[test]
    fn one_stroke_ends_those_that_were_open_at_one_moment() {
        assert!(served(&[(0, 10, true), (100, 110, true)]).check_lost_at_one_stroke().is_ok());
        assert!(
            served(&[(0, 110, false), (100, 110, false), (200, 210, true)])
                .check_lost_at_one_stroke()
                .is_ok()
        );
        // Refused one after the other.
        assert!(served(&[(0, 10, false), (100, 110, false)]).check_lost_at_one_stroke().is_err());
        // Waited, and was turned away.
        assert!(served(&[(0, 2_000, false)]).check_lost_at_one_stroke().is_err());
        assert!(served(&[]).check_lost_at_one_stroke().is_err());
    }

    #[test]
    fn who_waits_is_judged_by_what_a_connection_takes_without_us() {
        let slow = Duration::from_secs(2);
        let quick = served(&[(0, 10, true)]);
        assert!(served(&[(0, 1_900, true)]).check_none_waited(slow, &quick).is_ok());
        assert!(served(&[(0, 10, true), (10, 2_100, true)]).check_none_waited(slow, &quick).is_err());
        assert!(served(&[(0, 2_100, true)]).check_none_waited(slow, &served(&[(0, 900, true)])).is_ok());
    }

    #[test]
    fn who_came_before_it_was_broken_may_be_lost_with_it() {
        let all = served(&[(0, 50, false), (60, 80, false), (100, 110, true)]);
        let start = all.0[0].begun;
        let broken = |from, to| start + Duration::from_millis(from)..=start + Duration::from_millis(to);
        assert!(all.check_none_failed(Some(&broken(40, 70))).is_ok());
        assert!(all.check_none_failed(Some(&broken(40, 50))).is_err());
        assert!(all.check_none_failed(Some(&broken(55, 70))).is_err());
        assert!(all.check_none_failed(None).is_err());
    }
}
