//! Time as a value: the core has no clock, whoever calls it says what time it is.

use std::ops::Add;
use std::time::Duration;

/// A point of monotonic time: the time passed since an arbitrary start, the same one for the whole process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Moment(Duration);

impl Moment {
    /// The arbitrary start itself.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// The moment `offset` after the start.
    pub const fn from_start(offset: Duration) -> Self {
        Self(offset)
    }

    /// The time passed since `earlier`; zero when `earlier` is in fact later.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}
