//! The side thread: everything of `pointsman-vip` that may wait. HTTP for people and machines, the proxy's readiness, hooks, the
//! log of what happens, and word to the proxy when an address has left.
//!
//! The router thread never waits for it. It has [`Ends`]: it shows its [`Status`] (the newest wins), tells [`Note`]s through a
//! bounded queue (one that is full costs hooks, never time), and hears [`Command`]s and the proxy's state.
//!
//! * [`pages`], [`metrics`]: what is shown, and what an operator may do.
//! * [`readiness`]: how the proxy on this host is. [`farewell`]: telling it that an address has left.
//! * [`hooks`]: the programs that `notify` names. [`words`]: the log.
//!
//! Tasks, all on one thread and owned by it: accept loops and answers of the [`Server`], the readings of the proxy, the listener to
//! what is told with its hooks, one farewell for each address that has left. Bounds: [`TOLD`] notes, [`COMMANDS`] commands, one
//! hook at a time for each virtual router with one waiting of each kind, 64 addresses that the proxy is told of.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use pointsman_config::{Config, VipName};
use pointsman_process::VIP;
use pointsman_process::bind::BindError;
use pointsman_process::server::Server;
use pointsman_vrrp::event::Proxy;
use pointsman_vrrp::note::Note;
use pointsman_vrrp::status::Status;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod counters;
mod farewell;
mod hooks;
mod metrics;
mod pages;
mod readiness;
#[cfg(test)]
mod tests;
mod words;

pub use counters::{Counters, HookOutcome};

/// Notes that may wait for the side thread.
pub const TOLD: usize = 256;

/// Commands that may wait for the router thread.
pub const COMMANDS: usize = 16;

/// States of the proxy that may wait for the router thread; there are few.
const PROXIES: usize = 16;

/// How long the end waits for hooks and for word to the proxy, and then for the thread.
const LAST_HOOKS: Duration = Duration::from_secs(2);
const LAST_JOIN: Duration = Duration::from_millis(3500);

/// Why the side thread cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SideError {
    /// The socket or an address is not to be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The system gives no thread, or no runtime.
    #[error("the side thread cannot be started: {0}")]
    Thread(std::io::Error),
}

/// What an operator wishes. Answered when the router has been told.
#[derive(Debug)]
pub enum Command {
    /// Hand the addresses over.
    Yield {
        /// One virtual router, or all.
        router: Option<VipName>,
        /// Where the answer goes.
        answer: oneshot::Sender<()>,
    },
    /// The end of that.
    Resume {
        /// One virtual router, or all.
        router: Option<VipName>,
        /// Where the answer goes.
        answer: oneshot::Sender<()>,
    },
}

/// What the router thread tells.
#[derive(Debug)]
pub(crate) enum Told {
    /// Something that people are told.
    Note(Note),
    /// These addresses were on this host, and are not any more.
    Left(Vec<IpAddr>),
}

/// A description of the host, and when it was made.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) status: Arc<Status>,
    pub(crate) made: Instant,
}

impl Shown {
    fn new(status: Status) -> Self {
        Self { status: Arc::new(status), made: Instant::now() }
    }

    /// With its ages as of now.
    pub(crate) fn now(&self) -> Status {
        self.status.aged(self.made.elapsed())
    }
}

/// The router thread's ends.
#[derive(Debug)]
pub struct Ends {
    /// Where it shows its state: after each change, and at least once a second.
    pub show: Show,
    /// Where it tells what happens.
    pub tell: Tell,
    /// What operators wish.
    pub commands: mpsc::Receiver<Command>,
    /// How the proxy is, when that changes.
    pub proxy: mpsc::Receiver<Proxy>,
}

/// Shows the state of the host. Never waits.
#[derive(Debug)]
pub struct Show(watch::Sender<Shown>);

impl Show {
    /// This is the state of now.
    pub fn status(&self, status: Status) {
        self.0.send_replace(Shown::new(status));
    }
}

/// Tells what happens. Never waits.
#[derive(Clone, Debug)]
pub struct Tell {
    told: mpsc::Sender<Told>,
    counters: Arc<Counters>,
}

impl Tell {
    /// For the log and the hooks. If the side thread is so far behind that its queue is full, the log gets the line
    /// from here; hooks do without.
    pub fn note(&self, note: Note) {
        use mpsc::error::TrySendError::{Closed, Full};
        match self.told.try_send(Told::Note(note)) {
            Ok(()) => {}
            Err(Full(told) | Closed(told)) => {
                self.counters.notes_dropped();
                if let Told::Note(note) = told {
                    words::log(&note);
                }
            }
        }
    }

    /// These addresses were on this host and have been removed: the proxy is told.
    pub fn left(&self, addresses: Vec<IpAddr>) {
        if self.told.try_send(Told::Left(addresses)).is_err() {
            self.counters.notes_dropped();
            tracing::warn!("the side thread is behind: the proxy is not told that addresses have left");
        }
    }
}

/// The side thread. Dropping it ends it.
#[derive(Debug)]
pub struct Side {
    config: watch::Sender<Arc<Config>>,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

/// What everything on the side thread shares.
#[derive(Clone, Debug)]
struct Shared {
    config: watch::Receiver<Arc<Config>>,
    shown: watch::Receiver<Shown>,
    counters: Arc<Counters>,
    /// Lines that the log has dropped.
    log_lines_dropped: Arc<AtomicU64>,
}

impl Side {
    /// Binds the socket and the addresses of `[vrrp]`, and starts the thread. Call it from the process's first thread when that has
    /// given up its capabilities: hooks inherit what it has.
    pub fn start(config: Arc<Config>, log_lines_dropped: Arc<AtomicU64>) -> Result<(Self, Ends), SideError> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(SideError::Thread)?;
        let server = {
            let _entered = runtime.enter();
            let vrrp = config.vrrp.as_ref();
            let socket = vrrp.map_or_else(|| VIP.socket.as_ref(), |vrrp| vrrp.socket.as_path());
            Server::bind(VIP, vrrp.map_or(&[], |vrrp| &vrrp.bind), socket)?
        };
        let (show, shown) = watch::channel(Shown::new(Status::new(config.node.clone())));
        let (told, listening) = mpsc::channel(TOLD);
        let (wishes, commands) = mpsc::channel(COMMANDS);
        let (proxies, proxy) = mpsc::channel(PROXIES);
        let (config, configured) = watch::channel(config);
        let counters = Arc::new(Counters::default());
        let tell = Tell { told, counters: Arc::clone(&counters) };
        let shared = Shared { config: configured, shown, counters, log_lines_dropped };
        let stop = CancellationToken::new();
        let work = Work { shared, server, listening, wishes, proxies, stop: stop.clone() };
        let thread = thread::Builder::new()
            .name("side".to_owned())
            .spawn(move || run(runtime, work))
            .map_err(SideError::Thread)?;
        let ends = Ends { show: Show(show), tell, commands, proxy };
        Ok((Self { config, stop, thread: Some(thread) }, ends))
    }

    /// Takes a new configuration. The socket and the addresses stay as they were bound.
    pub fn reconfigure(&self, config: Arc<Config>) {
        self.config.send_replace(config);
    }
}

impl Drop for Side {
    /// What was told before is still logged, and has its hooks for two seconds; then they are left to themselves.
    fn drop(&mut self) {
        self.stop.cancel();
        let deadline = Instant::now() + LAST_JOIN;
        let Some(thread) = self.thread.take() else { return };
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() && thread.join().is_err() {
            tracing::error!("the side thread has panicked");
        }
    }
}

/// What the thread works with.
struct Work {
    shared: Shared,
    server: Server,
    listening: mpsc::Receiver<Told>,
    wishes: mpsc::Sender<Command>,
    proxies: mpsc::Sender<Proxy>,
    stop: CancellationToken,
}

fn run(runtime: Runtime, work: Work) {
    let Work { shared, server, listening, wishes, proxies, stop } = work;
    for address in server.addresses() {
        tracing::info!(%address, "status and metrics");
    }
    runtime.block_on(async {
        let tasks = TaskTracker::new();
        let readiness = readiness::follow(shared.clone(), proxies);
        tasks.spawn(stop.clone().run_until_cancelled_owned(readiness));
        let pages = pages::Pages::new(shared.clone(), wishes);
        tokio::join!(server.serve(pages, tasks, stop.clone()), listen(shared, listening, stop));
    });
    // Hooks that are not over by now are not waited for; nothing here blocks.
    runtime.shutdown_background();
}

/// Hears what the router thread tells, until that has ended or the process does; then there are two more seconds for the hooks.
async fn listen(shared: Shared, mut listening: mpsc::Receiver<Told>, stop: CancellationToken) {
    let mut hooks = hooks::Hooks::new(shared.clone());
    let mut farewells = farewell::Farewells::new(shared);
    let hear = |told, hooks: &mut hooks::Hooks, farewells: &mut farewell::Farewells| match told {
        Told::Note(note) => {
            words::log(&note);
            hooks.note(&note);
        }
        Told::Left(addresses) => farewells.begin(addresses),
    };
    loop {
        tokio::select! {
            told = listening.recv() => match told {
                Some(told) => hear(told, &mut hooks, &mut farewells),
                None => break,
            },
            () = hooks.progress() => {}
            () = farewells.progress() => {}
            () = stop.cancelled() => break,
        }
    }
    while let Ok(told) = listening.try_recv() {
        hear(told, &mut hooks, &mut farewells);
    }
    let rest = async { tokio::join!(hooks.finish(), farewells.finish()) };
    if tokio::time::timeout(LAST_HOOKS, rest).await.is_err() {
        tracing::warn!(
            "hooks or farewells were not over at the end of the process, and are left to themselves"
        );
    }
}
