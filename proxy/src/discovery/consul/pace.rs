//! A bound on how often Consul is asked, whatever it answers.

use std::time::Duration;

use tokio::time::Instant;

/// So many reads may follow each other at once.
const BURST: u32 = 100;
/// Then one each so often.
const EACH: Duration = Duration::from_millis(10);

/// Blocking queries pace themselves while Consul keeps to its own rules. A key that is written all the time, or an
/// index that always differs, must not make a loop without a pause.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the allowance would be full again.
    full_at: Instant,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { full_at: Instant::now() }
    }

    /// How long to wait before the next read, which is counted by this.
    pub(super) fn before_next(&mut self) -> Duration {
        let now = Instant::now();
        self.full_at = self.full_at.max(now) + EACH;
        (self.full_at - now).saturating_sub(EACH * BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_free_and_a_stream_is_paced() {
        let mut pace = Pace::new();
        assert!((0..BURST).all(|_| pace.before_next().is_zero()));
        assert_eq!(pace.before_next(), EACH);
        tokio::time::advance(EACH).await;
        assert_eq!(pace.before_next(), EACH);
        tokio::time::advance(EACH * BURST * 2).await;
        assert!((0..BURST).all(|_| pace.before_next().is_zero()));
    }
}
