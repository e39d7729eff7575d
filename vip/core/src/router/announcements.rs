//! When the neighbours are told whose the addresses are.
//!
//! Once is not enough: a frame may be lost, and two hosts that take over at once may both speak, so that the last word counts. And
//! more than so often does harm: a stranger with our address must not be able to start an endless quarrel.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Moment;

/// After the first time.
const AGAIN: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];

/// Between two that answer somebody else's claim.
const GAP: Duration = Duration::from_millis(50);

/// The announcements that are to come.
#[derive(Clone, Debug)]
pub(crate) struct Announcements {
    pending: VecDeque<Moment>,
    last: Moment,
}

impl Announcements {
    /// The first has just been made.
    pub(crate) fn begun(now: Moment) -> Self {
        Self { pending: AGAIN.iter().map(|after| now + *after).collect(), last: now }
    }

    /// Somebody may have told the neighbours otherwise: begin again. True: announce now; else a little later.
    pub(crate) fn repair(&mut self, now: Moment) -> bool {
        let begin = now.max(self.last + GAP);
        self.pending = [Duration::ZERO].iter().chain(&AGAIN).map(|after| begin + *after).collect();
        self.due(now)
    }

    /// Takes what is due; several at once are one.
    pub(crate) fn due(&mut self, now: Moment) -> bool {
        let mut due = false;
        while self.pending.front().is_some_and(|at| *at <= now) {
            self.pending.pop_front();
            due = true;
        }
        if due {
            self.last = now;
        }
        due
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Moment> {
        self.pending.front().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_start(Duration::from_millis(millis))
    }

    /// The moments of the announcements up to `end`, with a repair at each of `repairs`.
    fn made(repairs: &[u64], end: u64) -> Vec<u64> {
        let mut all = Announcements::begun(at(0));
        let one = |now: u64| {
            let due = all.due(at(now));
            let repaired = repairs.contains(&now) && all.repair(at(now));
            (due || repaired).then_some(now)
        };
        (1..=end).filter_map(one).collect()
    }

    #[test]
    fn they_are_repeated() {
        assert_eq!(made(&[], 20_000), [50, 200, 1000, 5000]);
    }

    #[test]
    fn a_claim_begins_them_anew() {
        assert_eq!(made(&[10_000], 20_000), [50, 200, 1000, 5000, 10_000, 10_050, 10_200, 11_000, 15_000]);
    }

    #[test]
    fn a_storm_of_claims_is_answered_twenty_times_a_second() {
        let storm: Vec<u64> = (1..10_000).collect();
        let made = made(&storm, 10_000);
        assert!((195..=205).contains(&made.len()), "{}", made.len());
    }
}
