//! When the worker counts as hung.
//!
//! Time is counted in the guard's own wake-ups: a pause of the guard itself, which mostly is a pause of the whole host and so
//! of the worker, too, counts as one of them, however long it was.

use std::time::Duration;

/// The shortest silence that is a hang.
const SHORTEST: Duration = Duration::from_millis(100);
/// While nothing is held, a hang harms nobody, and a restart would cost what the worker knows of the others.
const IDLE: Duration = Duration::from_secs(2);
/// How long a new worker may take for its first heartbeat.
const START: Duration = Duration::from_secs(30);
/// A silence is this many wake-ups.
const STEPS: u32 = 5;

/// Watches over one worker.
#[derive(Debug)]
pub(super) struct Vigil {
    /// `None`: there was no heartbeat yet.
    every: Option<Duration>,
    silent: Duration,
}

impl Vigil {
    pub(super) fn new() -> Self {
        Self { every: None, silent: Duration::ZERO }
    }

    /// It lives, and says so again within `every`.
    pub(super) fn heard(&mut self, every: Duration) {
        self.every = Some(every);
        self.silent = Duration::ZERO;
    }

    /// How much silence is too much.
    fn limit(&self, holds: bool) -> Duration {
        let Some(every) = self.every else { return START };
        let limit = every.saturating_mul(3).max(SHORTEST);
        if holds { limit } else { limit.max(IDLE) }
    }

    /// When to wake up again, if nothing is heard.
    pub(super) fn step(&self, holds: bool) -> Duration {
        self.limit(holds) / STEPS
    }

    /// The guard has woken up after so long, and has heard nothing. True: that is a hang.
    pub(super) fn is_hung_after(&mut self, passed: Duration, holds: bool) -> bool {
        self.silent += passed.min(self.step(holds));
        self.silent >= self.limit(holds)
    }

    /// How long nothing was heard, as far as it counts.
    pub(super) fn silent(&self) -> Duration {
        self.silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_millis(30);

    #[test]
    fn three_missing_heartbeats_and_a_hundred_milliseconds_are_a_hang() {
        let mut vigil = Vigil::new();
        vigil.heard(BEAT);
        let step = vigil.step(true);
        assert_eq!(step * STEPS, SHORTEST);
        for _ in 1..STEPS {
            assert!(!vigil.is_hung_after(step, true));
        }
        assert!(vigil.is_hung_after(step, true));
        vigil.heard(Duration::from_secs(1));
        assert_eq!(vigil.step(true) * STEPS, Duration::from_secs(3));
    }

    #[test]
    fn a_pause_of_the_guard_does_not_blame_the_worker() {
        let mut vigil = Vigil::new();
        vigil.heard(BEAT);
        assert!(!vigil.is_hung_after(Duration::from_secs(3600), true));
        assert!(!vigil.is_hung_after(Duration::from_secs(3600), true));
        vigil.heard(BEAT);
        assert_eq!(vigil.silent(), Duration::ZERO);
    }

    #[test]
    fn a_worker_that_starts_or_holds_nothing_has_more_time() {
        let mut vigil = Vigil::new();
        assert_eq!(vigil.step(true) * STEPS, START);
        vigil.heard(BEAT);
        assert_eq!(vigil.step(false) * STEPS, IDLE);
    }
}
