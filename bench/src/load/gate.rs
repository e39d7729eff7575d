//! Threads that begin together, are measured together and end together.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use super::{Edge, Observer, Outcome, Pace};
use crate::measure::histogram::Histogram;

const CONNECTING: u8 = 0;
const WARMING: u8 = 1;
const MEASURING: u8 = 2;
const OVER: u8 = 3;

/// How long the sessions of a load may take to open.
const CONNECT_DEADLINE: Duration = Duration::from_secs(60);

/// What one thread has counted; written by that thread alone.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    /// One more request was answered.
    pub fn request(&self) {
        self.requests.store(self.requests.load(Relaxed) + 1, Relaxed);
    }

    /// Bytes so far.
    pub fn count_of_bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// More bytes of a bulk stream.
    pub fn bytes(&self, count: usize) {
        self.bytes.store(self.bytes.load(Relaxed) + count as u64, Relaxed);
    }
}

/// One thread's view of the run.
#[derive(Debug)]
pub struct Worker<'a> {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub threads: usize,
    /// Its counters.
    pub tally: &'a Tally,
    phase: &'a AtomicU8,
    ready: &'a AtomicUsize,
}

impl Worker<'_> {
    /// Says that all sessions are open and waits for the others. False: there is nothing to do any more.
    pub fn wait_for_start(&self) -> bool {
        self.ready.fetch_add(1, Relaxed);
        while self.phase.load(Relaxed) == CONNECTING {
            thread::sleep(Duration::from_millis(1));
        }
        !self.is_over()
    }

    /// The window is open: latencies count.
    pub fn is_measuring(&self) -> bool {
        self.phase.load(Relaxed) == MEASURING
    }

    /// It is time to end.
    pub fn is_over(&self) -> bool {
        self.phase.load(Relaxed) == OVER
    }
}

/// Runs `work` on the threads of `pace`. Each answers the latencies that it saw while the window was open.
pub fn run(
    pace: &Pace,
    observer: Observer<'_>,
    work: impl Fn(&Worker<'_>) -> Result<Histogram> + Sync,
) -> Result<Outcome> {
    let tallies: Vec<Tally> = (0..pace.threads).map(|_| Tally::default()).collect();
    let phase = AtomicU8::new(CONNECTING);
    let ready = AtomicUsize::new(0);
    thread::scope(|scope| {
        let threads: Vec<_> = tallies
            .iter()
            .enumerate()
            .map(|(index, tally)| {
                let worker = Worker { index, threads: pace.threads, tally, phase: &phase, ready: &ready };
                let work = &work;
                scope.spawn(move || {
                    pace.cores.confine_this_thread()?;
                    work(&worker)
                })
            })
            .collect();
        let mut outcome = Outcome::default();
        let waited =
            wait_until_ready(&ready, pace.threads, || threads.iter().any(ScopedJoinHandle::is_finished));
        if waited.is_ok() {
            phase.store(WARMING, Relaxed);
            thread::sleep(pace.warm);
            measure(pace, observer, &tallies, &phase, &mut outcome);
        }
        phase.store(OVER, Relaxed);
        for thread in threads {
            let latency = thread.join().map_err(|_| anyhow!("a thread of the load panicked"))??;
            outcome.latency.merge(&latency);
        }
        waited.map(|()| outcome)
    })
}

fn wait_until_ready(ready: &AtomicUsize, threads: usize, has_ended: impl Fn() -> bool) -> Result<()> {
    let started = Instant::now();
    while ready.load(Relaxed) < threads {
        if has_ended() {
            bail!("the load could not begin");
        }
        if started.elapsed() > CONNECT_DEADLINE {
            bail!("the sessions of the load were not open after {CONNECT_DEADLINE:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn measure(pace: &Pace, observer: Observer<'_>, tallies: &[Tally], phase: &AtomicU8, outcome: &mut Outcome) {
    let read = || {
        let sum =
            |of: fn(&Tally) -> &AtomicU64| tallies.iter().map(|tally| of(tally).load(Relaxed)).sum::<u64>();
        (sum(|tally| &tally.requests), sum(|tally| &tally.bytes))
    };
    phase.store(MEASURING, Relaxed);
    observer(Edge::Begin);
    let (requests, bytes) = read();
    let began = Instant::now();
    thread::sleep(pace.window);
    observer(Edge::End);
    let (requests_after, bytes_after) = read();
    outcome.elapsed = began.elapsed();
    outcome.requests = requests_after - requests;
    outcome.bytes = bytes_after - bytes;
}
