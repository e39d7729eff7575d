//! When the neighbours are told whose the addresses are.
//!
//! Once is not enough: a frame may be lost, and two hosts that take over at once may both speak, so that the last word counts. And
//! more than so often does harm: a stranger with our address must not be able to start an endless quarrel.
//!
//! It is repeated for ever, though seldom: a keepalived that was cut off from us, held the addresses there and stepped down when
//! it heard us has said nothing that we could have heard, and the neighbours still believe it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Moment;

/// After the first time.
const AGAIN: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];

/// And then always after so long.
const REFRESH: Duration = Duration::from_secs(5);

/// Between two that answer somebody else's claim.
const GAP: Duration = Duration::from_millis(50);

/// Before a claim of somebody else, or its return, is answered: if it has a right to the addresses, its advert or report is about
/// to arrive, and ours would be the last word, though a wrong one.
pub(crate) const HESITATION: Duration = Duration::from_millis(5);

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

    /// Somebody may have told the neighbours otherwise: begin again, after `wait` at the earliest. True: announce now.
    pub(crate) fn repair(&mut self, now: Moment, wait: Duration) -> bool {
        let begin = (now + wait).max(self.last + GAP);
        // What is due sooner is not put off: a storm of claims would do so for ever.
        let begin = self.next().map_or(begin, |next| next.min(begin));
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
        if self.pending.is_empty() {
            self.pending.push_back(now + REFRESH);
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
    fn made(repairs: &[u64], wait: Duration, end: u64) -> Vec<u64> {
        let mut all = Announcements::begun(at(0));
        let one = |now: u64| {
            let due = all.due(at(now));
            let repaired = repairs.contains(&now) && all.repair(at(now), wait);
            (due || repaired).then_some(now)
        };
        (1..=end).filter_map(one).collect()
    }

    #[test]
    fn they_are_repeated() {
        assert_eq!(made(&[], Duration::ZERO, 20_000), [50, 200, 1000, 5000, 10_000, 15_000, 20_000]);
    }

    #[test]
    fn a_claim_begins_them_anew() {
        let after = |wait| made(&[12_000], wait, 18_000);
        assert_eq!(
            after(Duration::ZERO),
            [50, 200, 1000, 5000, 10_000, 12_000, 12_050, 12_200, 13_000, 17_000]
        );
        assert_eq!(after(HESITATION), [50, 200, 1000, 5000, 10_000, 12_005, 12_055, 12_205, 13_005, 17_005]);
    }

    #[test]
    fn a_storm_of_claims_is_answered_twenty_times_a_second() {
        let storm: Vec<u64> = (1..10_000).collect();
        for wait in [Duration::ZERO, HESITATION] {
            let made = made(&storm, wait, 10_000);
            assert!((195..=205).contains(&made.len()), "{}", made.len());
        }
    }
}
