//! Waiting for a condition in a thread: as [`crate::wait`], without tasks.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::Ended;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// Asks `condition` until it answers `Ok`, for at most `deadline`. Its latest error is part of ours. When it finds that a
/// daemon has [`Ended`], there is nothing left to wait for.
pub fn until<T>(
    what: impl Display,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<T>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        let seen = match condition() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if begun.elapsed() >= deadline || seen.is::<Ended>() {
            bail!("waited {:.1} s for {what}; the last look: {seen:#}", begun.elapsed().as_secs_f64());
        }
        thread::sleep(INTERVAL);
    }
}

/// Asks `condition` all the time for as long as `length`, and fails as soon as it does.
pub fn throughout(
    what: impl Display,
    length: Duration,
    mut condition: impl FnMut() -> Result<()>,
) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < length {
        if let Err(error) = condition() {
            bail!("{what} was over after {:.3} s: {error:#}", begun.elapsed().as_secs_f64());
        }
        thread::sleep(INTERVAL);
    }
    Ok(())
}
