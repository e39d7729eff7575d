//! Waiting for a condition, with a deadline, and saying what was waited for.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::Ended;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Asks `condition` until it answers `Ok`, for at most `deadline`.
///
/// Its error is what is seen instead, at the latest look; the error of this function says `what` was waited for, how
/// long, and that. One look may not take longer than what is left of the deadline. When it finds that the server itself
/// has [`Ended`], there is nothing left to wait for.
pub async fn until<T>(
    what: impl Display,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    let mut seen = String::from("no answer");
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        match tokio::time::timeout(left, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if error.is::<Ended>() => return Err(error.context(format!("waited for {what}"))),
            Ok(Err(error)) => seen = format!("{error:#}"),
            Err(_) => {}
        }
        if started.elapsed() + INTERVAL >= deadline {
            bail!("waited {:.1} s for {what}; the last look: {seen}", started.elapsed().as_secs_f64());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
