//! The hold queue: in peace everybody passes, after a change everybody waits for the turn.
#![expect(clippy::unwrap_used, reason = "made-up values are right, or the benchmark is wrong")]

use std::time::Duration;

use pointsman_core::hold::{HoldLimits, HoldQueue};
use pointsman_core::time::Moment;

use crate::{Micro, Run, micro, repeat};

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn all() -> Vec<Micro> {
    vec![micro("hold/pass", 10_000, pass), micro("hold/wait-and-release", 1000, wait_and_release)]
}

fn queue() -> HoldQueue<u64> {
    HoldQueue::new(HoldLimits::new(10_000, 500.try_into().unwrap(), 1.try_into().unwrap()))
}

/// A route that has been there for long.
fn pass() -> Run {
    let mut queue = queue();
    queue.route(Moment::from_millis(0), true);
    let mut now = Moment::from_millis(60_000);
    queue.poll(now);
    repeat(move |turn| {
        now += Duration::from_micros(10);
        queue.arrive(now, turn, now + PATIENCE)
    })
}

/// One comes and one is let through, while 1,000 wait.
fn wait_and_release() -> Run {
    let mut queue = queue();
    let mut now = Moment::from_millis(1000);
    for waiting in 0..1000 {
        queue.arrive(now, u64::MAX - waiting, now + 1000 * PATIENCE);
    }
    queue.route(now, true);
    repeat(move |turn| {
        now += Duration::from_millis(2);
        let arrival = queue.arrive(now, turn, now + 1000 * PATIENCE);
        (arrival, queue.poll(now))
    })
}
