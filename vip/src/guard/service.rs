//! What systemd is told (`sd_notify(3)`).
//!
//! Its socket can be full, and whoever sends then waits; so a thread of its own sends, and the guard never waits for it.
//!
//! * Thread: `notify`. Bound: [`WAITING`] messages; more are dropped.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

const WAITING: usize = 32;

/// News for systemd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    Ready,
    Reloading,
    Stopping,
    Status(String),
    Alive,
}

/// The way to systemd; nothing happens where there is none.
#[derive(Debug)]
pub(super) struct Service {
    news: Option<SyncSender<News>>,
    watchdog: Option<Watchdog>,
}

#[derive(Debug)]
struct Watchdog {
    every: Duration,
    next: Instant,
}

impl Service {
    pub(super) fn start() -> Self {
        let watchdog =
            sd_notify::watchdog_enabled().map(|limit| Watchdog { every: limit / 2, next: Instant::now() });
        let (news, queue) = sync_channel(WAITING);
        let thread = thread::Builder::new().name("notify".to_owned()).spawn(move || {
            let mut failed = false;
            while let Ok(news) = queue.recv() {
                let result = send(&news);
                if let (Err(error), false) = (&result, failed) {
                    tracing::warn!("systemd cannot be told how things are: {error}");
                }
                failed = result.is_err();
            }
        });
        Self { news: thread.ok().map(|_| news), watchdog }
    }

    pub(super) fn tell(&self, news: News) {
        if let Some(queue) = &self.news {
            // Full: systemd does not read. It will ask by killing us (the watchdog), if it is set up to.
            let _ = queue.try_send(news);
        }
    }

    /// To be called at every turn of the guard's loop: that it turns is what the watchdog wants to know. Answers when to call
    /// again at the latest.
    pub(super) fn turn(&mut self, now: Instant) -> Option<Duration> {
        let watchdog = self.watchdog.as_mut()?;
        if now >= watchdog.next {
            watchdog.next = now + watchdog.every;
            self.tell(News::Alive);
        }
        self.watchdog.as_ref().map(|watchdog| watchdog.next.saturating_duration_since(now))
    }
}

fn send(news: &News) -> io::Result<()> {
    match news {
        News::Ready => sd_notify::notify(&[NotifyState::Ready]),
        News::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
        News::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
        News::Status(line) => sd_notify::notify(&[NotifyState::Status(line)]),
        News::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
    }
}
