//! The guard's loop: start a worker, listen, clean up behind it, start the next.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::service::News;
use super::wire::Order;
use super::worker::{Heard, Worker};
use super::{BAD_CONFIGURATION, Guard, START};
use crate::sys::process::next_signal;

/// The time between the end of a worker and the start of the next, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A worker that lived so long was in order; the next one is started as after the first failure.
const PROVEN: Duration = Duration::from_secs(30);
/// How long a worker may take to hand over and end.
const STOP: Duration = Duration::from_secs(10);
/// How long a worker that holds nothing may take to end after it has closed the link.
const PARTING: Duration = Duration::from_secs(5);
/// How often signals are looked for while a death is waited for.
const TICK: Duration = Duration::from_millis(50);
/// A death that takes longer than this is no matter of a busy machine.
const LONG: Duration = Duration::from_secs(1);
/// How long the death of a killed worker is waited for before the cleaning: what does not die in that time hangs within the
/// kernel, and never comes out of it alive.
const DEATH: Duration = Duration::from_millis(20);

/// How the watch over a worker ended.
#[derive(Debug)]
enum End {
    /// It is dead.
    Dead,
    /// It has closed the link, so it is dying, or should be.
    Closed,
    /// It gave no sign of life.
    Hung(Duration),
    /// It was told to stop, and did not.
    Overdue,
}

/// What the cleaning came to. It is written down afterwards: the log must not come before the network.
#[derive(Debug)]
struct Cleaning {
    routers: Vec<String>,
    addresses: usize,
    farewells: usize,
    problems: Vec<String>,
    /// From the end of the watch on.
    took: Duration,
}

struct Life {
    guard: Guard,
    /// Since when we are to stop.
    stopping: Option<Instant>,
    backoff: Duration,
    was_ready: bool,
    reloading: bool,
}

/// Guards workers until it is told to stop.
pub(super) fn run(guard: Guard) -> u8 {
    let mut life = Life { guard, stopping: None, backoff: BACKOFF.0, was_ready: false, reloading: false };
    loop {
        match Worker::start(&life.guard.program) {
            Ok(worker) => {
                tracing::debug!(pid = worker.pid(), "The worker is started");
                if let Some(code) = life.accompany(worker) {
                    return code;
                }
            }
            Err(error) => tracing::error!("Cannot start the worker: {error}"),
        }
        if life.is_told_to_stop_within(life.backoff) {
            return 0;
        }
        life.backoff = (life.backoff * 2).min(BACKOFF.1);
    }
}

impl Life {
    /// A worker's life and what comes after it. Answers how we end, if that was that.
    fn accompany(&mut self, mut worker: Worker) -> Option<u8> {
        let end = self.watch(&mut worker);
        let ended = Instant::now();
        let died = matches!(end, End::Dead) || {
            worker.kill();
            worker.is_dead_within(DEATH)
        };
        self.hear_last_words(&mut worker);
        let cleaning = self.clean(&worker, ended);
        self.tell(&end, &mut worker, &cleaning);
        if !died {
            self.outlive(&worker);
        }
        if !died || !cleaning.problems.is_empty() {
            self.clean_again(&worker);
        }
        let code = worker.ending().and_then(|status| status.code());
        // A file that was good when we started and is not now will be put right, and then a worker has to be tried again.
        if code == Some(BAD_CONFIGURATION.into()) && !self.was_ready {
            self.guard.service.tell(News::Stopping);
            return Some(BAD_CONFIGURATION);
        }
        if self.stopping.is_some() {
            return Some(0);
        }
        if worker.started.elapsed() >= PROVEN {
            self.backoff = BACKOFF.0;
        }
        tracing::info!("The worker is started again in {} ms", self.backoff.as_millis());
        None
    }

    fn watch(&mut self, worker: &mut Worker) -> End {
        loop {
            let holds = worker.ledger.holds();
            let before = Instant::now();
            let step = worker.vigil.step(holds);
            let turn = self.guard.service.turn(before).unwrap_or(step);
            let limit = step.min(turn).min(STOP / 10);
            let is_dead = wait(&self.guard, Some(worker), limit);
            let passed = before.elapsed();
            self.take_signals(Some(worker));
            let heard = worker.listen();
            let (anything, closed) = (heard.anything, heard.closed);
            self.note(&heard);
            if is_dead {
                return End::Dead;
            }
            if closed {
                return self.part(worker);
            }
            if !anything && worker.vigil.is_hung_after(passed, holds) {
                return End::Hung(worker.vigil.silent());
            }
            if self.stopping.is_some_and(|since| since.elapsed() >= STOP) {
                return End::Overdue;
            }
        }
    }

    /// The worker has closed the link. If it holds nothing it may take its time to end: it has a log to write.
    fn part(&mut self, worker: &Worker) -> End {
        let deadline = Instant::now() + PARTING;
        loop {
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            if worker.ledger.holds() || left.is_zero() {
                return End::Closed;
            }
            let turn = self.guard.service.turn(now).unwrap_or(left);
            if worker.is_dead_within(left.min(turn).min(TICK)) {
                return End::Dead;
            }
            self.take_signals(Some(worker));
        }
    }

    fn note(&mut self, heard: &Heard) {
        if let Some(line) = &heard.status {
            self.guard.service.tell(News::Status(line.clone()));
        }
        if heard.ready && (!self.was_ready || self.reloading) {
            self.was_ready = true;
            self.reloading = false;
            self.guard.service.tell(News::Ready);
        }
        if let Some(error) = heard.senseless {
            tracing::error!("The worker says what makes no sense: {error}");
        }
    }

    /// What is left of what it said, all of it: what it held may be told in there.
    fn hear_last_words(&mut self, worker: &mut Worker) {
        loop {
            let heard = worker.listen();
            self.note(&heard);
            if !heard.anything {
                return;
            }
        }
    }

    fn take_signals(&mut self, worker: Option<&Worker>) {
        while let Some(signal) = next_signal(&self.guard.signals) {
            match signal {
                libc::SIGHUP => {
                    // Without a worker there is nothing to do: the next one reads the file.
                    if let Some(worker) = worker {
                        self.reloading = true;
                        self.guard.service.tell(News::Reloading);
                        worker.order(Order::Reload);
                    }
                }
                _ if self.stopping.is_none() => {
                    self.stopping = Some(Instant::now());
                    self.guard.service.tell(News::Stopping);
                    if let Some(worker) = worker {
                        worker.order(Order::Stop);
                    }
                }
                _ => {}
            }
        }
    }

    /// Removes what the dead worker held, then tells the others.
    fn clean(&self, worker: &Worker, since: Instant) -> Cleaning {
        let ledger = &worker.ledger;
        let addresses = ledger.addresses();
        let count = addresses.len();
        let mut problems = Vec::new();
        let mut farewells = 0;
        if !addresses.is_empty()
            && let Err(error) = self.guard.netlink.remove_all(addresses)
        {
            problems.push(error.to_string());
        }
        for (cover, farewell) in ledger.farewells() {
            let sent =
                self.guard.sender.send(cover.index, &cover.interface, farewell.envelope, &farewell.packet);
            match sent {
                Ok(()) => farewells += 1,
                Err(error) => problems.push(error.to_string()),
            }
        }
        let took = since.elapsed();
        let routers = ledger.held_names().iter().map(ToString::to_string).collect();
        Cleaning { routers, addresses: count, farewells, problems, took }
    }

    fn tell(&self, end: &End, worker: &mut Worker, cleaning: &Cleaning) {
        for problem in &cleaning.problems {
            tracing::error!("While cleaning up behind the worker: {problem}");
        }
        let ending = Ending(end, worker.ending());
        if cleaning.routers.is_empty() {
            let code = worker.ending().and_then(|status| status.code());
            if self.stopping.is_some() && code == Some(0) {
                tracing::info!("The worker {ending}");
            } else {
                tracing::error!("The worker {ending}; it held nothing");
            }
        } else {
            tracing::error!(
                "The worker {ending} while it held {}: removed {} and sent {} with priority 0 within {:.1} ms",
                cleaning.routers.join(", "),
                count(cleaning.addresses, "address", "addresses"),
                count(cleaning.farewells, "advert", "adverts"),
                cleaning.took.as_secs_f64() * 1000.0,
            );
        }
        if self.stopping.is_none() {
            self.guard.service.tell(News::Status(format!("The worker {ending}; it is started again")));
        }
    }

    /// What could not be removed in time, or what the worker may have added in its last call, is removed before there is
    /// another worker, whose addresses it would be then.
    fn clean_again(&self, worker: &Worker) {
        if let Err(error) = self.guard.netlink.waiting(START).remove_all(worker.ledger.addresses()) {
            tracing::error!("While cleaning up behind the worker again: {error}");
        }
    }

    /// A killed worker that does not die hangs within the kernel. No other is started before it is gone.
    fn outlive(&mut self, worker: &Worker) {
        let mut told = false;
        let began = Instant::now();
        while !worker.is_dead_within(TICK) {
            if !told && began.elapsed() > LONG {
                told = true;
                tracing::error!(
                    pid = worker.pid(),
                    "The killed worker does not die: it hangs within the kernel"
                );
            }
            self.guard.service.turn(Instant::now());
            self.take_signals(None);
            if self.stopping.is_some() {
                return;
            }
        }
    }

    /// Waits before the next start. True: we are to end instead.
    fn is_told_to_stop_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            self.take_signals(None);
            if self.stopping.is_some() {
                return true;
            }
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                return false;
            }
            let turn = self.guard.service.turn(now).unwrap_or(left);
            wait(&self.guard, None, left.min(turn));
        }
    }
}

/// Waits for a signal, the worker's word, or its death; not longer than so. True: the worker is dead.
fn wait(guard: &Guard, worker: Option<&Worker>, limit: Duration) -> bool {
    let mut descriptors = vec![PollFd::new(&guard.signals, PollFlags::IN)];
    if let Some(worker) = worker {
        descriptors.push(PollFd::new(&worker.pidfd, PollFlags::IN));
        descriptors.push(PollFd::new(&worker.link, PollFlags::IN));
    }
    match poll(&mut descriptors, Timespec::try_from(limit).ok().as_ref()) {
        Ok(_) => descriptors.get(1).is_some_and(|pidfd| !pidfd.revents().is_empty()),
        Err(_) => false, // interrupted: whoever waits looks anew
    }
}

fn count(number: usize, one: &str, several: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {several}") }
}

/// For people: how a worker ended.
struct Ending<'a>(&'a End, Option<ExitStatus>);

impl fmt::Display for Ending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            End::Hung(silent) => {
                return write!(f, "gave no sign of life for {} ms and was killed", silent.as_millis());
            }
            End::Overdue => {
                return write!(f, "did not stop within {} s and was killed", STOP.as_secs());
            }
            End::Dead | End::Closed => {}
        }
        match self.1.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => write!(f, "ended with code {code}"),
            Some((None, Some(signal))) => write!(f, "was ended by signal {signal}"),
            Some((None, None)) | None => f.write_str("ended"),
        }
    }
}
