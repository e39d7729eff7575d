//! How far a replica is behind.
//!
//! The positions in the store are up to a `loop_wait` old and not of one instant: the leader's position of
//! this moment minus a replica's of ten seconds ago makes a busy healthy replica look far behind. So a
//! replica's position is compared with the leader's position of an *earlier* revision, and it takes two
//! readings in a row over the limit to exclude.
//!
//! A member key is written anew only when something in it has changed. So a key that stands still for a
//! `loop_wait` is a reading too: the replica has not moved, and the leader's position of that long ago is what
//! it should have reached by now.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Moment;
use crate::view::{Lsn, Revision};

/// How many positions of the leader are remembered.
const REMEMBERED: usize = 16;

/// One position of the leader.
#[derive(Clone, Copy, Debug)]
struct Optime {
    revision: Revision,
    position: Lsn,
    seen_at: Moment,
}

/// The leader's positions, in the order of the revisions that wrote them.
#[derive(Clone, Debug, Default)]
pub(super) struct Optimes(VecDeque<Optime>);

impl Optimes {
    pub(super) fn push(&mut self, position: Lsn, revision: Revision, seen_at: Moment) {
        if self.0.back().is_some_and(|last| last.revision >= revision) {
            return;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(Optime { revision, position, seen_at });
    }

    /// The newest position that was written before `revision`.
    fn before(&self, revision: Revision) -> Option<Lsn> {
        self.0.iter().rev().find(|optime| optime.revision < revision).map(|optime| optime.position)
    }

    /// The newest position that was seen at this moment or before.
    pub(super) fn settled(&self, at: Moment) -> Option<Lsn> {
        self.0.iter().rev().find(|optime| optime.seen_at <= at).map(|optime| optime.position)
    }

    /// Positions of another leader's timeline say nothing.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A replica's last readings, newest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lag {
    last: Option<u64>,
    before: Option<u64>,
    read_at: Option<Moment>,
}

impl Lag {
    /// A new position, written at `revision`.
    pub(super) fn read(&mut self, position: Lsn, revision: Revision, optimes: &Optimes, now: Moment) {
        if let Some(optime) = optimes.before(revision) {
            self.take(position.behind(optime), now);
        }
    }

    /// The position has not changed for `patience` at least; `optime` is as old. Says whether that was news.
    pub(super) fn read_still(&mut self, position: Lsn, optime: Lsn, now: Moment, patience: Duration) -> bool {
        if self.read_at.is_some_and(|at| now.since(at) < patience) {
            return false;
        }
        let old = (self.last, self.before);
        self.take(position.behind(optime), now);
        (self.last, self.before) != old
    }

    fn take(&mut self, bytes: u64, now: Moment) {
        self.before = self.last;
        self.last = Some(bytes);
        self.read_at = Some(now);
    }

    /// The last reading, in bytes.
    pub(super) fn bytes(self) -> Option<u64> {
        self.last
    }

    /// Whether two readings in a row were over the limit. One under it ends the exclusion.
    pub(super) fn over(self, limit: u64) -> bool {
        self.last.is_some_and(|bytes| bytes > limit) && self.before.is_some_and(|bytes| bytes > limit)
    }
}
