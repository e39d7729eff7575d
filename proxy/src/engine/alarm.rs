//! How a core is woken at the right moment, and by a system call only while it sleeps.
//!
//! The core clears `news` before it looks at anything, and goes to sleep in two steps: it says so (`asleep`), then looks at `news`
//! once more. Whoever has something to tell sets `news` first and looks at `asleep` after that. Whatever the order of these
//! four, one of the two sees the other: nothing is left lying. `make loom` walks through all orders (`proxy/loom`).
//!
//! Why every change is a read-modify-write: those of one word form a chain, in which each releases what its thread did before and
//! acquires what the others did. So whoever comes second sees the first one's news, without an order over everything (`SeqCst`).

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering};

/// One core sleeps and looks, everybody may ring.
#[derive(Debug)]
pub(super) struct Alarm {
    /// Something has happened since the core looked last.
    news: AtomicBool,
    /// The core waits in the kernel, or is about to.
    asleep: AtomicBool,
}

impl Alarm {
    pub(super) fn new() -> Self {
        Self { news: AtomicBool::new(false), asleep: AtomicBool::new(false) }
    }

    /// Something was put where the core looks. `true`: it has to be woken in the kernel, by the caller and nobody else.
    pub(super) fn ring(&self) -> bool {
        self.news.swap(true, Ordering::AcqRel);
        self.asleep.swap(false, Ordering::AcqRel)
    }

    /// The core is going to look. Whether there is something: what was put before it was rung for is seen.
    pub(super) fn look(&self) -> bool {
        self.has_news() && self.news.swap(false, Ordering::AcqRel)
    }

    /// Whether something has happened since the last look.
    pub(super) fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    /// The core is about to wait. `false`: it must not, there is news.
    pub(super) fn fall_asleep(&self) -> bool {
        self.asleep.swap(true, Ordering::AcqRel);
        if self.news.load(Ordering::Acquire) {
            self.awake();
            return false;
        }
        true
    }

    /// The core has woken up.
    pub(super) fn awake(&self) {
        self.asleep.swap(false, Ordering::AcqRel);
    }
}
