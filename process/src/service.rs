//! The process and the service manager: signals, and what systemd is told.
//!
//! Tasks: the watchdog's, if systemd asks for one. Everything here works, and does nothing, without systemd.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

pub use sd_notify::NotifyState;
use tokio::signal::unix::{self, SignalKind};

/// What somebody asks of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: drain, then end.
    Terminate,
    /// SIGINT: end now.
    Interrupt,
    /// SIGHUP: read the configuration anew.
    Reload,
}

/// The signals of the process, from the moment of its making.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    reload: unix::Signal,
}

impl Signals {
    /// Takes the signals over: from now on none of them ends the process by itself.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            reload: unix::signal(SignalKind::hangup())?,
        })
    }

    /// The next signal. Cancel-safe. When several wait, the one that ends the process sooner comes first.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            biased;
            Some(()) = self.interrupt.recv() => Signal::Interrupt,
            Some(()) = self.terminate.recv() => Signal::Terminate,
            Some(()) = self.reload.recv() => Signal::Reload,
            else => std::future::pending().await, // the runtime ends
        }
    }
}

/// Tells the service manager that the process serves. Also ends a reload.
pub fn notify_ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells the service manager that the configuration is being read anew; [`notify_ready`] follows.
pub fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]), // Type=notify-reload wants both together
        Err(error) => tracing::warn!(%error, "the service manager was not told of the reload"),
    }
}

/// How often a process that drains asks for time, and how much. What is left of it when the drain is over is for the
/// cutting, the last answers and the last lines of the log.
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_FOR: Duration = Duration::from_secs(30);

/// Tells the service manager that the process ends, and asks for time for as long as it is polled. Again and again: what is
/// asked for counts from the message on, does not add up (`sd_notify(3)`), and a drain may take hours.
pub async fn ask_for_time(status: &str) -> Infallible {
    let micros = u32::try_from(ASK_FOR.as_micros()).unwrap_or(u32::MAX);
    loop {
        notify(&[NotifyState::Stopping, NotifyState::Status(status), NotifyState::ExtendTimeoutUsec(micros)]);
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// One line for `systemctl status`.
pub fn notify_status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// Tells the service manager, if there is one; nobody waits for it.
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// Tells the watchdog of systemd that the process lives, as long as `alive` says so; at twice the pace that
/// it wants; while it does not, the log says `stuck`. Without a watchdog it waits for ever.
pub async fn watchdog(mut alive: impl FnMut() -> bool, stuck: &str) -> Infallible {
    let Some(interval) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut beat = tokio::time::interval((interval / 2).max(Duration::from_millis(1)));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        if alive() {
            notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("{stuck}: the watchdog is not told that the process lives");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn signals_arrive_as_values() {
        let mut signals = Signals::new().unwrap();
        let me = rustix::process::getpid();
        for (signal, value) in [
            (rustix::process::Signal::HUP, Signal::Reload),
            (rustix::process::Signal::TERM, Signal::Terminate),
            (rustix::process::Signal::INT, Signal::Interrupt),
        ] {
            rustix::process::kill_process(me, signal).unwrap();
            assert_eq!(signals.next().await, value);
        }
    }
}
