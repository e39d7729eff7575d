//! The one clock of the process. The core never reads it: it is told what time it is.

use std::time::SystemTime;

use pointsman_core::time::{Moment, Now, UnixMillis};
use tokio::time::Instant;

/// Counts monotonic time from its start. Copies count from the same start.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that begins at [`Moment::ZERO`] now. One for each process.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The present on the monotonic clock.
    pub fn moment(&self) -> Moment {
        Moment::from_start(self.start.elapsed())
    }

    /// The present on both clocks.
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let wall = UnixMillis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
        Now { mono: self.moment(), wall }
    }

    /// The instant of a moment, for the runtime's timers; `None` for one that never comes.
    pub fn instant(&self, moment: Moment) -> Option<Instant> {
        self.start.checked_add(moment.since_start())
    }
}
