//! What a core does with many sessions at once, in slices, so that the others do not wait.
//!
//! Three walks: the sweep after a fence was raised (find its sessions, end them), the beat (idle timeouts, sessions whose broken side
//! has said nothing more), and the young (options that only a session of some age needs).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::core::Core;
use super::driver::{Driver, Key};
use super::relay::{End, Session, Side, Ticks};

/// Sessions that are looked at in one slice: some ten microseconds.
const LOOK: usize = 4096;

/// Sessions that are ended in one slice. Closing two sockets costs up to 40 µs: a slice must not be felt by the others.
const END: usize = 32;

/// How often idle timeouts are looked at.
const BEAT: Duration = Duration::from_secs(1);

/// The walks of a core, and how far they have come.
#[derive(Debug)]
pub(super) struct Walks {
    /// Where the sweep goes on.
    sweep: Option<usize>,
    /// Found by the sweep.
    doomed: VecDeque<Key>,
    /// Where the beat goes on, and when the next one begins.
    beat: Option<usize>,
    next_beat: Instant,
    /// Sessions that the beat has something to look at for.
    pub(super) watched: usize,
    /// Established since the last beat but one, in order.
    young: VecDeque<(Instant, Key)>,
}

impl Walks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            sweep: None,
            doomed: VecDeque::new(),
            beat: None,
            next_beat: now + BEAT,
            watched: 0,
            young: VecDeque::new(),
        }
    }

    /// From the start, whatever is under way: another fence may be raised by now.
    pub(super) fn sweep(&mut self) {
        self.sweep = Some(0);
    }

    /// A session has begun.
    pub(super) fn born(&mut self, now: Instant, session: Key) {
        self.young.push_back((now + BEAT, session));
    }

    /// Something is left to do at once.
    pub(super) fn is_busy(&self) -> bool {
        self.sweep.is_some() || !self.doomed.is_empty() || self.beat.is_some()
    }

    /// When there is something to do.
    pub(super) fn next(&self) -> Option<Instant> {
        let beat = (self.watched > 0).then_some(self.next_beat);
        let grown = self.young.front().map(|(at, _)| *at);
        [beat, grown].into_iter().flatten().min()
    }
}

impl<D: Driver> Core<D> {
    /// A slice of each walk.
    pub(super) fn walk(&mut self, now: Instant) {
        self.walk_sweep();
        for _ in 0..END {
            let Some(doomed) = self.walks.doomed.pop_front() else { break };
            if let Some(end) = self.sessions.get(doomed).and_then(|session| session.relayed.stop()) {
                self.end(doomed, end);
            }
        }
        self.walk_beat(now);
        while self.walks.young.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.walks.young.pop_front() else { return };
            self.settle(key);
        }
    }

    /// Finds the sessions of raised fences. Those with bytes under way are ended at once: the kernel may be about to send them.
    fn walk_sweep(&mut self) {
        let Some(at) = self.walks.sweep else { return };
        let Some(slice) = self.sessions.keys_in(at..at + LOOK) else {
            self.walks.sweep = None;
            return;
        };
        self.walks.sweep = Some(at + LOOK);
        for key in slice {
            let Some(session) = self.sessions.get(key) else { continue };
            let Some(end) = session.relayed.stop() else { continue };
            if self.driver.has_queued(session.server) || self.driver.has_queued(session.client) {
                self.end(key, end);
            } else {
                self.walks.doomed.push_back(key);
            }
        }
    }

    fn walk_beat(&mut self, now: Instant) {
        if now >= self.walks.next_beat {
            self.walks.next_beat = now + BEAT;
            self.walks.beat = (self.walks.watched > 0).then_some(0);
        }
        let Some(at) = self.walks.beat else { return };
        let Some(slice) = self.sessions.keys_in(at..at + LOOK) else {
            self.walks.beat = None;
            return;
        };
        self.walks.beat = Some(at + LOOK);
        let ticks = self.ticks.now();
        for key in slice {
            let Some(session) = self.sessions.get_mut(key) else { continue };
            if let Some(end) = overdue(session, ticks) {
                self.end(key, end);
                continue;
            }
            for side in [Side::Client, Side::Server] {
                if session.from(side).source_ended {
                    self.driver.watch_after_end(session.key(side));
                }
            }
        }
    }

    /// Sets what only a session of some age needs: short ones are spared the system calls.
    fn settle(&mut self, key: Key) {
        let Some(session) = self.sessions.get(key) else { return };
        if let (Some(client), Some(server)) = (self.driver.fd(session.client), self.driver.fd(session.server))
        {
            session.relayed.settled(client, server);
        }
    }
}

/// Whether a session has to end for want of bytes.
fn overdue(session: &mut Session, ticks: u32) -> Option<End> {
    let limit = if session.broken.is_some() {
        // The last words of a broken side have come within a beat, or do not come.
        1000 / Ticks::MILLIS
    } else {
        let ticks = session.relayed.idle_timeout()?.as_millis() / u128::from(Ticks::MILLIS);
        u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
    };
    if ticks.saturating_sub(session.moved) < limit {
        return None;
    }
    Some(session.broken.take().map_or(End::Idle, |broken| End::Broken(broken.0, broken.1)))
}
