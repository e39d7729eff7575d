//! Which endpoint is tried next, and when.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
/// A store that comes back is noticed within this: long before the leases in it matter.
const LONGEST: Duration = Duration::from_secs(2);

/// The order of endpoints: the one that works is kept, a failed one makes room for the next.
#[derive(Debug)]
pub(super) struct Rota {
    endpoints: usize,
    index: usize,
    /// Moves since an endpoint proved itself.
    moves: u32,
    /// Endpoints that failed since one worked.
    failed: usize,
}

impl Rota {
    pub(super) fn new(endpoints: usize) -> Self {
        Self { endpoints, index: 0, moves: 0, failed: 0 }
    }

    /// The endpoint to try now.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// How often every endpoint has been tried since one proved itself.
    pub(super) fn round(&self) -> usize {
        usize::try_from(self.moves).unwrap_or(usize::MAX) / self.endpoints.max(1)
    }

    /// The endpoint answered: it is not down.
    pub(super) fn answered(&mut self) {
        self.failed = 0;
    }

    /// The endpoint has answered for a while: the next move comes without a pause again.
    pub(super) fn proved(&mut self) {
        self.failed = 0;
        self.moves = 0;
    }

    /// Moves on. Returns how long to wait first: not at all for the first move, then ever longer.
    pub(super) fn next(&mut self, jitter: f64) -> Duration {
        self.index = (self.index + 1) % self.endpoints.max(1);
        let pause = match self.moves.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => LONGEST.min(FIRST * (1 << doublings.min(10))).mul_f64(0.5 + jitter / 2.0),
        };
        self.moves = self.moves.saturating_add(1);
        pause
    }

    /// Counts a failed endpoint. True when every one of them has failed since one worked.
    pub(super) fn fail(&mut self) -> bool {
        self.failed = self.failed.saturating_add(1);
        self.failed >= self.endpoints
    }
}

/// A number from 0 to 1, different for each call and each process, so that balancers do not retry in step.
#[expect(clippy::cast_precision_loss, reason = "53 of 64 random bits are random enough")]
pub(super) fn jitter() -> f64 {
    RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_move_is_immediate_and_pauses_grow_to_a_bound() {
        let mut rota = Rota::new(3);
        let pauses: Vec<_> = (0..9).map(|_| rota.next(1.0).as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 2000, 2000, 2000]);
        rota.proved();
        assert_eq!(rota.next(1.0), Duration::ZERO);
        assert_eq!(rota.next(0.0), FIRST / 2);
        (0..100).for_each(|_| assert!(rota.next(jitter()) <= LONGEST));
    }

    #[test]
    fn endpoints_take_turns_and_a_full_round_is_noticed() {
        let mut rota = Rota::new(2);
        assert!(!rota.fail());
        rota.next(0.5);
        assert_eq!(rota.index(), 1);
        rota.answered();
        assert!(!rota.fail());
        assert_eq!(rota.round(), 0);
        rota.next(0.5);
        assert_eq!((rota.index(), rota.round()), (0, 1));
        assert!(rota.fail());
    }
}
