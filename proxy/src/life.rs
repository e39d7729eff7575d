//! The process as the system sees it: signals, descriptors, the service manager.
//!
//! Tasks: [`keep_systemd_informed`]. Everything here works, and does nothing, without systemd.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::Config;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::state::{App, Life};

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

    /// The next signal that ends the process. Cancel-safe.
    pub async fn end(&mut self) {
        tokio::select! {
            Some(()) = self.interrupt.recv() => {}
            Some(()) = self.terminate.recv() => {}
            else => std::future::pending().await,
        }
    }
}

/// Descriptors beyond those of sessions: store, Patroni, admin connections, the log, the runtime, splice.
const RESERVE: u64 = 512;

/// The limit of open descriptors, and what the configuration may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The limit now. `None`: there is none.
    pub limit: Option<u64>,
    /// What every listener full would take.
    pub need: u64,
}

impl Descriptors {
    /// What to tell the operator, if the limit may be reached.
    pub fn warning(&self) -> Option<String> {
        let limit = self.limit.filter(|limit| *limit < self.need)?;
        Some(format!(
            "{limit} descriptors are allowed, and full listeners would need {need}: clients would be refused \
             before max_connections is reached. Set LimitNOFILE={need} in the systemd unit (ulimit -n {need} \
             in a shell), or lower max_connections and max_held",
            need = self.need,
        ))
    }
}

/// Raises the limit of descriptors, and warns when full listeners would reach it.
pub fn prepare_descriptors(config: &Config) {
    if let Some(warning) = raise_descriptors(config).warning() {
        tracing::warn!("{warning}");
    }
}

/// Raises the limit of descriptors as far as it goes without privileges, and says what would be needed.
pub fn raise_descriptors(config: &Config) -> Descriptors {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) =
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit of descriptors cannot be raised");
    }
    Descriptors { limit: getrlimit(Resource::Nofile).current, need: descriptors_needed(config) }
}

/// Two for each session (client and server), one for each held one, one for each address, and a reserve.
fn descriptors_needed(config: &Config) -> u64 {
    let listeners = config.listeners.iter().map(|listener| {
        2 * u64::from(listener.max_connections) + u64::from(listener.max_held) + listener.bind.len() as u64
    });
    listeners.fold(RESERVE, u64::saturating_add)
}

/// How often the line of `systemctl status` is looked at.
const STATUS_EVERY: Duration = Duration::from_secs(2);

/// While draining, systemd is told to wait for so much longer, again and again.
const DRAIN_STEP: Duration = Duration::from_secs(10);

/// Tells the service manager that the configuration is being read anew; that it was follows when
/// [`App::set_reload`] is called.
pub fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]), // Type=notify-reload wants both together
        Err(error) => tracing::warn!(%error, "the service manager was not told of the reload"),
    }
}

/// Tells the service manager what becomes of the process, one line of its state, and that it is not stuck,
/// until `stop`.
pub async fn keep_systemd_informed(app: Arc<App>, stop: CancellationToken) {
    let (mut life, mut reload) = (app.subscribe_life(), app.subscribe_reload());
    let mut status = interval(STATUS_EVERY);
    let mut watchdog = watchdog();
    let mut said = String::new();
    tell(&app, *life.borrow_and_update(), &mut said);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Ok(()) = life.changed() => {
                let now = *life.borrow_and_update();
                tell(&app, now, &mut said);
            }
            Ok(()) = reload.changed() => tell(&app, app.life(), &mut said),
            _ = status.tick() => say(&app, &mut said),
            () = beat(&mut watchdog) => prove_life(&app),
        }
    }
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// What a new stage of life means to the service manager.
fn tell(app: &App, life: Life, said: &mut String) {
    match life {
        Life::Starting => {}
        Life::Ready => notify(&[NotifyState::Ready]),
        Life::Draining | Life::Stopping => notify(&[NotifyState::Stopping]),
    }
    said.clear();
    say(app, said);
}

/// The line of `systemctl status`, when it has changed.
fn say(app: &App, said: &mut String) {
    if app.life() == Life::Draining {
        let micros = u32::try_from(DRAIN_STEP.as_micros()).unwrap_or(u32::MAX);
        notify(&[NotifyState::ExtendTimeoutUsec(micros)]);
    }
    let line = status_line(app);
    if line != *said {
        notify(&[NotifyState::Status(&line)]);
        *said = line;
    }
}

fn status_line(app: &App) -> String {
    let mut line = format!("{}, {} sessions", app.life().as_str(), app.sessions.len());
    for cluster in &app.parts.load().clusters {
        let primary = cluster.status().map(|described| described.status.primary.clone());
        let (member, state) = match &primary {
            Some(primary) => (primary.member.as_ref(), primary.state),
            None => (None, "not looked at yet"),
        };
        let member = member.map(|member| format!("{member} ")).unwrap_or_default();
        line = format!("{line}; {}: primary {member}{state}", cluster.name);
    }
    line
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// Twice the pace that systemd's watchdog wants, if there is one.
fn watchdog() -> Option<Interval> {
    let wanted = sd_notify::watchdog_enabled()?;
    let mut beat = interval((wanted / 2).max(Duration::from_millis(1)));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Some(beat)
}

/// The next beat; never, without a watchdog. Cancel-safe.
async fn beat(watchdog: &mut Option<Interval>) {
    match watchdog {
        Some(interval) => drop::<Instant>(interval.tick().await),
        None => std::future::pending().await,
    }
}

fn prove_life(app: &App) {
    if app.control_tasks_alive() {
        notify(&[NotifyState::Watchdog]);
    } else {
        tracing::error!("a control task is stuck: the watchdog is not told that the process lives");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_suffices_is_no_warning() {
        assert_eq!(Descriptors { limit: Some(20_512), need: 20_512 }.warning(), None);
        assert_eq!(Descriptors { limit: None, need: 20_512 }.warning(), None);
    }

    #[test]
    fn a_limit_that_is_too_low_is_told_with_the_remedy() {
        let warning = Descriptors { limit: Some(1024), need: 20_512 }.warning().unwrap();
        assert!(warning.starts_with("1024 descriptors are allowed, and full listeners would need 20512"));
        assert!(warning.contains("LimitNOFILE=20512"));
    }

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
