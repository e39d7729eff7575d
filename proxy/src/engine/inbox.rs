//! How other threads reach a core: a queue of messages, and a wake-up that costs a system call only while the core
//! sleeps.
//!
//! That no message is left lying is the business of [`Alarm`].
//!
//! Bounds: new connections that other cores hand over (each core accepts in small batches and hands over only to one that is less
//! loaded), and one message for each session at most from everybody else.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::accept::{Accepted, Listening};
use super::alarm::Alarm;
use super::driver::Key;

/// What a core is told from outside.
pub(super) enum Message {
    /// A connection that another core has accepted.
    Accepted(Accepted),
    /// Accept from this socket.
    Listen(Arc<Listening>),
    /// No longer.
    Unlisten(Arc<Listening>),
    /// A fence was raised: find its sessions.
    Sweep,
    /// Somebody has asked this session to end.
    Look(Key),
    /// End.
    Stop,
}

/// One core as the other threads see it.
#[derive(Debug)]
pub(super) struct Inbox {
    messages: Mutex<Vec<Message>>,
    alarm: Alarm,
    /// Wakes the core in the kernel.
    bell: Arc<OwnedFd>,
    /// Sessions of the core: those being started, too.
    pub(super) load: AtomicUsize,
    /// Established sessions of the core.
    pub(super) sessions: AtomicUsize,
    /// Sockets of the core, those being closed included.
    pub(super) sockets: AtomicUsize,
    /// Pipes that its splices hold.
    pub(super) pipes: AtomicUsize,
    /// Rounds of its loop.
    pub(super) rounds: AtomicU64,
    made: Instant,
    /// When the last round began, in milliseconds since `made`: a sign of life.
    lived: AtomicU64,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Self::Accepted(_) => "Accepted",
            Self::Listen(_) => "Listen",
            Self::Unlisten(_) => "Unlisten",
            Self::Sweep => "Sweep",
            Self::Look(_) => "Look",
            Self::Stop => "Stop",
        };
        f.write_str(name)
    }
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            messages: Mutex::default(),
            alarm: Alarm::new(),
            bell: Arc::new(bell),
            load: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            sockets: AtomicUsize::new(0),
            pipes: AtomicUsize::new(0),
            rounds: AtomicU64::new(0),
            made: Instant::now(),
            lived: AtomicU64::new(0),
        })
    }

    /// A round of the core begins. Only the core calls this, and nobody else writes its numbers.
    pub(super) fn lives(&self, now: Instant) {
        self.rounds.store(self.rounds.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let millis = u64::try_from(now.saturating_duration_since(self.made).as_millis()).unwrap_or(u64::MAX);
        self.lived.store(millis, Ordering::Relaxed);
    }

    /// How long ago the last round began. A core begins one each second if nothing else makes it.
    pub(super) fn silence(&self) -> Duration {
        self.made.elapsed().saturating_sub(Duration::from_millis(self.lived.load(Ordering::Relaxed)))
    }

    /// Tells the core.
    pub(super) fn post(&self, message: Message) {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        self.ring();
    }

    /// Has the core look around.
    pub(super) fn ring(&self) {
        if self.alarm.ring() {
            // It fails only when the counter is full: then the core is awake already.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// The core has woken up: it looks around from now on.
    pub(super) fn awake(&self) {
        self.alarm.awake();
    }

    /// Takes the messages, and says whether anything has happened. Whatever is told after this makes the core look again.
    pub(super) fn take(&self, messages: &mut Vec<Message>) -> bool {
        if !self.alarm.look() {
            return false;
        }
        messages.append(&mut self.messages.lock().unwrap_or_else(PoisonError::into_inner));
        true
    }

    /// Whether something has happened since the last look.
    pub(super) fn has_news(&self) -> bool {
        self.alarm.has_news()
    }

    /// The core is about to wait. `false`: it must not, there is news.
    pub(super) fn fall_asleep(&self) -> bool {
        self.alarm.fall_asleep()
    }

    /// What becomes readable when the core is woken.
    pub(super) fn bell(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.bell)
    }

    /// Stops the bell.
    pub(super) fn still(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]); // nothing to read: silent already
    }
}

/// Wakes the executor of the core: a task of it can go on.
impl Wake for Inbox {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}
