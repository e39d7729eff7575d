//! Models of what threads share in the relay engine, for loom: each test runs its body in every order that the memory model allows, with
//! up to three preemptions. `make loom` runs them; without `--cfg loom` this crate is empty.
#![cfg(all(loom, test))]

#[path = "../../src/engine/alarm.rs"]
mod alarm;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;

use self::alarm::Alarm;

/// A core with what others put down for it, and the bell that wakes it, as in `engine::inbox`.
struct Inbox {
    alarm: Alarm,
    /// Written without a lock, as the state of a task is.
    put: [AtomicBool; 2],
    bell: Notify,
}

impl Inbox {
    fn new() -> Arc<Self> {
        let put = [AtomicBool::new(false), AtomicBool::new(false)];
        Arc::new(Self { alarm: Alarm::new(), put, bell: Notify::new() })
    }

    fn post(&self, number: usize) {
        self.put[number].store(true, Ordering::Relaxed);
        if self.alarm.ring() {
            self.bell.notify();
        }
    }

    /// Rounds of the core until it has seen everything. It looks only when there is news, and its wait in the kernel has no limit: a wake-up
    /// that is lost is a deadlock, which loom reports.
    fn run(&self) {
        let mut seen = [false; 2];
        loop {
            if self.alarm.look() {
                for (seen, put) in seen.iter_mut().zip(&self.put) {
                    *seen |= put.load(Ordering::Relaxed);
                }
            }
            if seen == [true; 2] {
                return;
            }
            if self.alarm.fall_asleep() {
                self.bell.wait();
            }
            self.alarm.awake();
        }
    }
}

fn in_every_order(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn what_two_threads_put_down_is_found() {
    in_every_order(|| {
        let inbox = Inbox::new();
        let posters = [0, 1].map(|number| {
            let inbox = Arc::clone(&inbox);
            thread::spawn(move || inbox.post(number))
        });
        inbox.run();
        for poster in posters {
            poster.join().unwrap();
        }
    });
}

#[test]
fn what_one_thread_puts_down_twice_is_found() {
    in_every_order(|| {
        let inbox = Inbox::new();
        let other = Arc::clone(&inbox);
        let poster = thread::spawn(move || {
            other.post(0);
            other.post(1);
        });
        inbox.run();
        poster.join().unwrap();
    });
}
