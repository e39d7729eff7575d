//! How far a replica is behind.
//!
//! The positions in the store are up to a `loop_wait` old and not of one instant: the leader's position of
//! this moment minus a replica's of ten seconds ago makes a busy healthy replica look far behind. So a
//! replica's position is compared with the leader's position of an *earlier* revision, and it takes two
//! readings in a row over the limit to exclude.

use std::collections::VecDeque;

use crate::view::{Lsn, Revision};

/// How many positions of the leader are remembered.
const REMEMBERED: usize = 16;

/// The leader's positions, by the revision that wrote them.
#[derive(Clone, Debug, Default)]
pub(super) struct Optimes(VecDeque<(Revision, Lsn)>);

impl Optimes {
    pub(super) fn push(&mut self, position: Lsn, revision: Revision) {
        if self.0.back().is_some_and(|(last, _)| *last >= revision) {
            return;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((revision, position));
    }

    /// The newest position that was written before `revision`.
    fn before(&self, revision: Revision) -> Option<Lsn> {
        self.0.iter().rev().find(|(written, _)| *written < revision).map(|(_, position)| *position)
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
}

impl Lag {
    /// A new position, written at `revision`.
    pub(super) fn read(&mut self, position: Lsn, revision: Revision, optimes: &Optimes) {
        if let Some(optime) = optimes.before(revision) {
            self.before = self.last;
            self.last = Some(position.behind(optime));
        }
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
