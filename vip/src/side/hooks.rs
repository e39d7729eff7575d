//! Hooks: the program that `notify` names is told what becomes of a virtual router.
//!
//! Outside the hot path, one at a time for each virtual router, and the newest state wins: a state that was superseded while
//! another hook ran is not told any more. A hook that takes longer than [`PATIENCE`] is killed with its process group. What it
//! prints goes to the log.
//!
//! The program gets keepalived's four arguments, `INSTANCE NAME STATE PRIORITY`, with the states of RFC 9568 (`ACTIVE`, `BACKUP`), `FAULT`,
//! `STOP` and `CLAIM`; and everything else in its environment.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::{Config, Vip, VipName};
use pointsman_vrrp::event::State;
use pointsman_vrrp::note::{Note, Reason, Repair, Transition};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use super::counters::HookOutcome;

/// How long a hook may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the last words of a hook are waited for when it has ended: a child of its may hold the pipe open.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How much of what a hook prints is logged.
const OUTPUT: u64 = 16 << 10;
const LINES: usize = 50;

/// What a hook is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    BecomeActive,
    BecomeBackup,
    Fault,
    Stop,
    Claim,
}

impl Event {
    /// `POINTSMAN_EVENT`.
    const fn as_str(self) -> &'static str {
        match self {
            Self::BecomeActive => "become-active",
            Self::BecomeBackup => "become-backup",
            Self::Fault => "fault",
            Self::Stop => "stop",
            Self::Claim => "claim",
        }
    }

    /// The third argument.
    const fn argument(self) -> &'static str {
        match self {
            Self::BecomeActive => "ACTIVE",
            Self::BecomeBackup => "BACKUP",
            Self::Fault => "FAULT",
            Self::Stop => "STOP",
            Self::Claim => "CLAIM",
        }
    }

    const fn of(transition: &Transition) -> Self {
        match (transition.to, &transition.reason) {
            (State::Active, _) => Self::BecomeActive,
            (State::Backup, _) => Self::BecomeBackup,
            (State::Initialize, Reason::Stopped { .. } | Reason::Reconfigured) => Self::Stop,
            (State::Initialize, _) => Self::Fault,
        }
    }
}

/// One run of a hook.
#[derive(Clone, Debug)]
struct Call {
    program: PathBuf,
    router: VipName,
    event: Event,
    state: State,
    priority: u8,
    reason: String,
    environment: Vec<(&'static str, String)>,
}

/// What one virtual router has to tell.
#[derive(Debug, Default)]
struct Line {
    running: bool,
    /// The newest state that was not told yet.
    state: Option<Call>,
    /// The newest claim that was not told yet: a state is told before it.
    claim: Option<Call>,
}

/// The hooks of all virtual routers.
#[derive(Debug)]
pub(super) struct Hooks {
    shared: Shared,
    lines: BTreeMap<VipName, Line>,
    running: JoinSet<(VipName, HookOutcome)>,
}

impl Hooks {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared, lines: BTreeMap::new(), running: JoinSet::new() }
    }

    /// Something has happened: perhaps a hook is to be run.
    pub(super) fn note(&mut self, note: &Note) {
        let Some(call) = self.call(note) else { return };
        let router = call.router.clone();
        let line = self.lines.entry(router.clone()).or_default();
        let place = if call.event == Event::Claim { &mut line.claim } else { &mut line.state };
        if place.replace(call).is_some() {
            self.shared.counters.hook(&router, HookOutcome::Superseded);
        }
        self.start(&router);
    }

    /// What is to be run, if anything is.
    fn call(&self, note: &Note) -> Option<Call> {
        let config = Arc::clone(&self.shared.config.borrow());
        let (router, event, state, priority, reason) = match note {
            Note::Transition(change) => {
                (&change.router, Event::of(change), change.to, change.priority, change.reason.to_string())
            }
            Note::Repaired { router, by: by @ (Repair::Advert | Repair::Neighbour | Repair::Report) } => {
                let shown = Arc::clone(&self.shared.shown.borrow().status);
                let found = shown.routers.iter().find(|found| found.name == *router)?;
                (router, Event::Claim, found.state, found.priority, claim(*by).to_owned())
            }
            Note::Repaired { .. } | Note::Alarm { .. } | Note::AlarmOver { .. } | Note::Peer { .. } => {
                return None;
            }
        };
        let vip = config.vips.iter().find(|vip| vip.name == *router)?;
        let program = vip.notify.clone()?;
        let environment = environment(&config, vip);
        Some(Call { program, router: router.clone(), event, state, priority, reason, environment })
    }

    /// Starts what waits, unless a hook of this virtual router runs.
    fn start(&mut self, router: &VipName) {
        let Some(line) = self.lines.get_mut(router).filter(|line| !line.running) else { return };
        let Some(call) = line.state.take().or_else(|| line.claim.take()) else { return };
        line.running = true;
        self.running.spawn(run(call));
    }

    /// Takes note of hooks that have ended. Waits for ever while none runs. Cancel-safe.
    pub(super) async fn progress(&mut self) {
        match self.running.join_next().await {
            Some(Ok((router, outcome))) => {
                self.shared.counters.hook(&router, outcome);
                if let Some(line) = self.lines.get_mut(&router) {
                    line.running = false;
                }
                self.start(&router);
            }
            Some(Err(error)) => tracing::error!(%error, "the task of a hook has failed"),
            None => std::future::pending().await,
        }
    }

    /// Runs what is left.
    pub(super) async fn finish(&mut self) {
        while !self.running.is_empty() {
            self.progress().await;
        }
    }
}

/// What does not depend on the event.
fn environment(config: &Config, vip: &Vip) -> Vec<(&'static str, String)> {
    let addresses: Vec<_> = vip.addresses.iter().map(ToString::to_string).collect();
    vec![
        ("POINTSMAN_NODE", config.node.to_string()),
        ("POINTSMAN_INTERFACE", vip.interface.clone()),
        ("POINTSMAN_ROUTER_ID", vip.router_id.to_string()),
        ("POINTSMAN_ADDRESSES", addresses.join(" ")),
    ]
}

/// What somebody did that made us tell the neighbours anew.
const fn claim(by: Repair) -> &'static str {
    match by {
        Repair::Advert => "another host sent an advert of lower priority",
        Repair::Neighbour => "another host told the neighbours that it has the addresses",
        Repair::Return => "a host is back that may have held the addresses",
        Repair::Report => "another host reported that it was active",
        Repair::Restored => "the addresses were removed from the interface, and put back",
    }
}

/// Runs one hook to its end.
async fn run(call: Call) -> (VipName, HookOutcome) {
    let (router, event) = (call.router.clone(), call.event.as_str());
    let program = call.program.display();
    let began = Instant::now();
    let mut child = match spawn(&call) {
        Ok(child) => child,
        Err(error) => {
            tracing::warn!(%router, event, %program, "the hook cannot be started: {error}");
            return (router, HookOutcome::NotStarted);
        }
    };
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let ended = wait(&mut child, &router, event, began + PATIENCE).await;
    let took = began.elapsed();
    let outcome = match ended {
        Some(Ok(status)) if status.success() => {
            tracing::debug!(%router, event, ?took, "the hook is done");
            HookOutcome::Ok
        }
        Some(Ok(status)) => {
            tracing::warn!(%router, event, %program, ?took, "the hook has failed: {status}");
            HookOutcome::Failed
        }
        Some(Err(error)) => {
            tracing::warn!(%router, event, %program, "nobody knows how the hook ended: {error}");
            HookOutcome::Failed
        }
        None => {
            // The group is there for as long as its first process is not reaped, so its number is nobody else's.
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL); // it may just have ended
            }
            let _ = timeout(LAST_WORDS, child.wait()).await;
            tracing::warn!(%router, event, %program, "the hook was killed: it took longer than {} s", PATIENCE.as_secs());
            HookOutcome::Timeout
        }
    };
    (router, outcome)
}

fn spawn(call: &Call) -> io::Result<Child> {
    Command::new(&call.program)
        .args(["INSTANCE", call.router.as_str(), call.event.argument(), &call.priority.to_string()])
        .envs(call.environment.iter().map(|(name, value)| (name, value)))
        .env("POINTSMAN_EVENT", call.event.as_str())
        .env("POINTSMAN_STATE", call.state.as_str())
        .env("POINTSMAN_ROUTER", call.router.as_str())
        .env("POINTSMAN_PRIORITY", call.priority.to_string())
        .env("POINTSMAN_REASON", &call.reason)
        .env_remove("NOTIFY_SOCKET") // what it told systemd would be taken for our word
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Waits for the end, and passes on what is printed meanwhile. `None`: it was not over in time.
async fn wait(
    child: &mut Child,
    router: &VipName,
    event: &'static str,
    deadline: Instant,
) -> Option<io::Result<ExitStatus>> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut printed, mut complained) = (Vec::new(), Vec::new());
    let ended = {
        let reading = async {
            tokio::join!(read(stdout, &mut printed), read(stderr, &mut complained));
        };
        let mut reading = std::pin::pin!(reading);
        let mut all_read = false;
        let ending = async {
            loop {
                tokio::select! {
                    status = child.wait() => break status,
                    // A program that closes its outputs and goes on is waited for just the same.
                    () = reading.as_mut(), if !all_read => all_read = true,
                }
            }
        };
        let ended = timeout_at(deadline, ending).await.ok();
        if ended.is_some() && !all_read {
            // What it wrote before its end is in the pipe.
            let _ = timeout(LAST_WORDS, reading).await;
        }
        ended
    };
    for (output, text) in [("stdout", &printed), ("stderr", &complained)] {
        for line in String::from_utf8_lossy(text).lines().take(LINES) {
            tracing::info!(%router, event, output, "hook: {line}");
        }
    }
    ended
}

/// Reads to the end; only the beginning is kept.
async fn read<R: AsyncRead + Unpin>(from: Option<R>, into: &mut Vec<u8>) {
    let Some(from) = from else { return };
    let mut beginning = from.take(OUTPUT);
    if beginning.read_to_end(into).await.is_ok() {
        // The rest is read and forgotten: a pipe that nobody empties would hold the hook up.
        let _ = tokio::io::copy(&mut beginning.into_inner(), &mut tokio::io::sink()).await;
    }
}
