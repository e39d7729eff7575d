//! What a client sees: a new TCP connection to the virtual address every millisecond, and who answers.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, connect, recv, socket_with, sockopt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::namespace::Namespace;

/// A new connection so often.
const TICK: Duration = Duration::from_millis(1);
/// A connection that is not answered within this time failed: a SYN that was lost is repeated after a second only.
const PATIENCE: Duration = Duration::from_millis(25);

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// When the connection was begun.
    pub begun: Instant,
    /// When the answer was read.
    pub at: Instant,
    /// The host that gave it.
    pub host: usize,
}

/// A time without answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// How long.
    pub length: Duration,
    /// The last answer before.
    pub from: Instant,
    /// The first answer after; the time of the question, if none has come.
    pub to: Instant,
    /// Whose the first answer after is; `None`: none has come.
    pub by: Option<usize>,
}

#[derive(Debug, Default)]
struct Seen {
    answers: Vec<Answer>,
    failures: Vec<Instant>,
    /// We ourselves did not run: when, and for how long.
    stalls: Vec<(Instant, Duration)>,
    error: Option<String>,
}

/// Connects from the client's namespace until it is dropped.
#[derive(Debug)]
pub struct Meter {
    target: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Meter {
    /// Begins to connect to `target`.
    pub(super) fn start(client: &Namespace, target: SocketAddr) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let namespace = client.handle()?;
        let (shared, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = thread::Builder::new().name("meter".to_owned()).spawn(move || {
            let work = || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                // Before the others: what it measures is not its own waiting.
                let _ = rustix::process::setpriority_process(None, -15);
                run(target, &shared, &stopped)
            };
            if let Err(error) = work() {
                shared.lock().unwrap_or_else(PoisonError::into_inner).error = Some(format!("{error:#}"));
            }
        })?;
        Ok(Self { target, seen, stop, thread: Some(thread) })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(seen.error.is_none(), "the client has ended: {:?}", seen.error);
        seen
    }

    /// Where it connects to.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// The answers to connections that were begun from `since` on.
    pub fn answers(&self, since: Instant) -> Vec<Answer> {
        self.seen().answers.iter().filter(|answer| answer.begun >= since).copied().collect()
    }

    /// Who gave the latest answer, if it is younger than `age`.
    pub fn answered_by(&self, age: Duration) -> Option<usize> {
        let seen = self.seen();
        let last = seen.answers.iter().max_by_key(|answer| answer.at)?;
        (last.at.elapsed() < age).then_some(last.host)
    }

    /// The longest time without answers of which some part lies after `since`.
    pub fn gap(&self, since: Instant) -> Result<Gap> {
        self.gap_between(since, Instant::now())
    }

    /// The same, seen up to `until`.
    pub fn gap_between(&self, since: Instant, until: Instant) -> Result<Gap> {
        let seen = self.seen();
        let mut answers: Vec<Answer> =
            seen.answers.iter().filter(|answer| answer.at <= until).copied().collect();
        drop(seen);
        answers.sort_by_key(|answer| answer.at);
        let first = answers.iter().rposition(|answer| answer.at < since);
        let first = first.context("the client had no answer before")?;
        let tail = answers.get(first..).unwrap_or_default();
        let gaps = tail.iter().zip(tail.get(1..).unwrap_or_default()).map(|(before, after)| Gap {
            length: after.at.duration_since(before.at),
            from: before.at,
            to: after.at,
            by: Some(after.host),
        });
        let open = tail.last().map(|last| Gap {
            length: until.duration_since(last.at),
            from: last.at,
            to: until,
            by: None,
        });
        gaps.chain(open).max_by_key(|gap| gap.length).context("no answers")
    }

    /// The first answer of another host than `old` to a connection that was begun from `since` on.
    pub fn first_of_another(&self, old: usize, since: Instant) -> Option<Answer> {
        let seen = self.seen();
        let others = seen.answers.iter().filter(|answer| answer.begun >= since && answer.host != old);
        others.min_by_key(|answer| answer.at).copied()
    }

    /// The hosts that answered connections begun from `since` on.
    pub fn hosts(&self, since: Instant) -> Vec<usize> {
        let mut hosts: Vec<usize> = self.answers(since).iter().map(|answer| answer.host).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// How often the answering host changed from `since` on.
    pub fn changes(&self, since: Instant) -> usize {
        let mut answers = self.answers(since);
        answers.sort_by_key(|answer| answer.at);
        answers.iter().zip(answers.iter().skip(1)).filter(|(a, b)| a.host != b.host).count()
    }

    /// How many connections that failed were begun from `since` on.
    pub fn failures(&self, since: Instant) -> usize {
        self.seen().failures.iter().filter(|begun| **begun >= since).count()
    }

    /// The longest time for which the client itself did not run since `since`: no gap can be known better than that.
    pub fn stall(&self, since: Instant) -> Duration {
        self.stall_between(since, Instant::now())
    }

    /// The same up to `until`.
    pub fn stall_between(&self, since: Instant, until: Instant) -> Duration {
        let seen = self.seen();
        let within = seen.stalls.iter().filter(|(at, length)| *at >= since && *at <= until + *length);
        within.map(|(_, length)| *length).max().unwrap_or_default()
    }

    /// Waits until the client is answered by `host`, and only by it.
    pub fn wait_answered_by(&self, host: usize, deadline: Duration) -> Result<()> {
        super::wait::until(format!("the client to be answered by lb{}", host + 1), deadline, || {
            let by = self.answered_by(TICK * 20);
            ensure!(by == Some(host), "answered by {by:?}");
            Ok(())
        })
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(target: SocketAddr, seen: &Mutex<Seen>, stop: &AtomicBool) -> Result<()> {
    let mut pending: Vec<(Instant, OwnedFd)> = Vec::new();
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= next {
            let late = now.duration_since(next);
            if late >= TICK {
                seen.lock().unwrap_or_else(PoisonError::into_inner).stalls.push((now, late));
                next = now;
            }
            next += TICK;
            match begin(target) {
                Ok(socket) => pending.push((now, socket)),
                Err(_) => seen.lock().unwrap_or_else(PoisonError::into_inner).failures.push(now),
            }
        }
        let mut waiting: Vec<PollFd<'_>> = pending
            .iter()
            .map(|(_, socket)| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
            .collect();
        let left = next.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
        poll(&mut waiting, Some(&left)).context("poll")?;
        let at = Instant::now();
        let mut ready =
            waiting.iter().map(|entry| !entry.revents().is_empty()).collect::<Vec<_>>().into_iter();
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        pending.retain(|(begun, socket)| {
            if ready.next() == Some(true) {
                match read(socket) {
                    Some(host) => seen.answers.push(Answer { begun: *begun, at, host }),
                    None => seen.failures.push(*begun),
                }
                return false;
            }
            if at.duration_since(*begun) >= PATIENCE {
                seen.failures.push(*begun);
                return false;
            }
            true
        });
    }
    Ok(())
}

fn begin(target: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if target.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // Closed by RST: sixty thousand connections a minute may leave nothing behind.
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    match connect(&socket, &target) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

fn read(socket: &OwnedFd) -> Option<usize> {
    let mut byte = [0];
    match recv(socket, &mut byte, RecvFlags::empty()) {
        Ok((1, _)) => Some(usize::from(byte[0])),
        Ok(_) | Err(_) => None,
    }
}
