//! The side thread: everything of `pointsman-vip` that may wait. HTTP for people and machines, the proxy's readiness, hooks, and
//! word to the proxy when an address has left.
//!
//! The router thread never waits for it. It has [`Ends`]: it shows its [`Status`] (the newest wins), tells [`Notice`]s through a
//! bounded queue (one that is full costs hooks, never time), and hears [`Command`]s and the proxy's state.
//!
//! * [`pages`], [`metrics`]: what is shown, and what an operator may do.
//! * [`readiness`]: how the proxy on this host is. [`farewell`]: telling it that an address has left.
//! * [`hooks`]: the programs that `notify` names.
//!
//! Tasks, all on one thread and owned by it: accept loops and answers of the [`Server`], the readings of the proxy, the listener to
//! what is told with its hooks, one farewell for each address that has left. Bounds: [`NOTICES`] notices, [`COMMANDS`] commands, one
//! hook at a time for each virtual router with one waiting of each kind, 64 addresses that the proxy is told of.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pointsman_config::{Config, VipName};
use pointsman_process::VIP;
use pointsman_process::bind::BindError;
use pointsman_process::logging;
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

use counters::Counters;

/// Notices that may wait for the side thread.
pub const NOTICES: usize = 256;

/// Commands that may wait for the router thread.
pub const COMMANDS: usize = 16;

/// States of the proxy that may wait for the router thread; there are few.
const PROXIES: usize = 16;

/// How long the end waits for hooks and for word to the proxy, and then for the thread.
const LAST_HOOKS: Duration = Duration::from_secs(2);
const LAST_FAREWELLS: Duration = Duration::from_millis(300);
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
pub enum Notice {
    /// Something that hooks are told, perhaps.
    Note(Note),
    /// These addresses were on this host, and are not any more: the proxy is told.
    Left {
        /// The virtual router.
        router: VipName,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// The addresses of this virtual router are here.
    Took {
        /// The virtual router.
        router: VipName,
    },
    /// This configuration is in force now. The socket and the addresses stay as they were bound.
    Configuration(Box<Config>),
    /// A new configuration was wrong, and the old one stays in force.
    BadConfiguration(String),
}

/// A description of the host, and when it was made.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) status: Arc<Status>,
    pub(crate) made: Instant,
}

impl Shown {
    fn new(status: Arc<Status>) -> Self {
        Self { status, made: Instant::now() }
    }

    /// With its ages as of now.
    pub(crate) fn now(&self) -> Status {
        self.status.aged(self.made.elapsed())
    }
}

/// The router thread's ends.
#[derive(Debug)]
pub struct Ends {
    /// What operators wish.
    pub commands: mpsc::Receiver<Command>,
    /// How the proxy is, when that changes.
    pub proxy: mpsc::Receiver<Proxy>,
    shown: watch::Sender<Shown>,
    notices: mpsc::Sender<Notice>,
    counters: Arc<Counters>,
}

impl Ends {
    /// This is the state of now: after each change, and at least once a second. Never waits.
    pub fn show(&self, status: Arc<Status>) {
        self.shown.send_replace(Shown::new(status));
    }

    /// Tells what happens. Never waits: what does not fit into the queue is dropped, and counted.
    pub fn tell(&self, notice: Notice) {
        if let Err(error) = self.notices.try_send(notice) {
            self.counters.notice_dropped();
            tracing::warn!(%error, "the side thread is behind: hooks or the proxy are not told of what has happened");
        }
    }
}

/// The side thread. Dropping it ends it.
#[derive(Debug)]
pub struct Side {
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

/// What everything on the side thread shares.
#[derive(Clone, Debug)]
struct Shared {
    config: watch::Receiver<Arc<Config>>,
    /// What came of the last reload, if there was one.
    reload: watch::Receiver<Option<Reload>>,
    shown: watch::Receiver<Shown>,
    counters: Arc<Counters>,
}

/// What came of a reload.
#[derive(Clone, Debug, serde::Serialize)]
struct Reload {
    ok: bool,
    /// What is wrong with the file.
    text: String,
}

/// Binds the socket and the addresses of `[vrrp]`, and starts the thread. To be called when the process has given up its
/// capabilities: hooks have what the thread that calls this has.
pub fn start(config: &Config) -> Result<(Ends, Side), SideError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(SideError::Thread)?;
    let server = {
        let _entered = runtime.enter();
        let vrrp = config.vrrp.as_ref();
        let socket = vrrp.map_or_else(|| VIP.socket.as_ref(), |vrrp| vrrp.socket.as_path());
        Server::bind(VIP, vrrp.map_or(&[], |vrrp| &vrrp.bind), socket)?
    };
    let (shown, show) = watch::channel(Shown::new(Arc::new(Status::new(config.node.clone()))));
    let (notices, listening) = mpsc::channel(NOTICES);
    let (wishes, commands) = mpsc::channel(COMMANDS);
    let (proxies, proxy) = mpsc::channel(PROXIES);
    let (set_config, configured) = watch::channel(Arc::new(config.clone()));
    let (set_reload, reload) = watch::channel(None);
    let counters = Arc::new(Counters::default());
    let shared = Shared { config: configured, reload, shown: show, counters: Arc::clone(&counters) };
    let stop = CancellationToken::new();
    let heard = Heard { listening, set_config, set_reload };
    let work = Work { shared, server, heard, wishes, proxies, stop: stop.clone() };
    let thread = thread::Builder::new()
        .name("side".to_owned())
        .spawn(move || run(runtime, work))
        .map_err(SideError::Thread)?;
    let ends = Ends { commands, proxy, shown, notices, counters };
    Ok((ends, Side { stop, thread: Some(thread) }))
}

impl Side {
    /// Ends it. What was told before still has its hooks for two seconds; then they are left to themselves.
    pub fn end(self) {
        drop(self);
    }
}

impl Drop for Side {
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

/// What the router thread's notices change.
struct Heard {
    listening: mpsc::Receiver<Notice>,
    set_config: watch::Sender<Arc<Config>>,
    set_reload: watch::Sender<Option<Reload>>,
}

/// What the thread works with.
struct Work {
    shared: Shared,
    server: Server,
    heard: Heard,
    wishes: mpsc::Sender<Command>,
    proxies: mpsc::Sender<Proxy>,
    stop: CancellationToken,
}

fn run(runtime: Runtime, work: Work) {
    let Work { shared, server, heard, wishes, proxies, stop } = work;
    for address in server.addresses() {
        tracing::info!(%address, "status and metrics");
    }
    runtime.block_on(async {
        let tasks = TaskTracker::new();
        let readiness = readiness::follow(shared.clone(), proxies);
        tasks.spawn(stop.clone().run_until_cancelled_owned(readiness));
        let pages = pages::Pages::new(shared.clone(), wishes);
        tokio::join!(server.serve(pages, tasks, stop.clone()), Listener::new(shared, heard).listen(stop));
    });
    // Hooks that are not over by now are not waited for; nothing here blocks.
    runtime.shutdown_background();
}

/// Hears what the router thread tells.
struct Listener {
    heard: Heard,
    hooks: hooks::Hooks,
    farewells: farewell::Farewells,
}

impl Listener {
    fn new(shared: Shared, heard: Heard) -> Self {
        let hooks = hooks::Hooks::new(shared.clone());
        Self { heard, hooks, farewells: farewell::Farewells::new(shared) }
    }

    /// Until the router thread has ended or the process does; then there are two more seconds for hooks and farewells.
    async fn listen(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                notice = self.heard.listening.recv() => match notice {
                    Some(notice) => self.hear(notice),
                    None => break,
                },
                () = self.hooks.progress() => {}
                () = self.farewells.progress() => {}
                () = stop.cancelled() => break,
            }
        }
        while let Ok(notice) = self.heard.listening.try_recv() {
            self.hear(notice);
        }
        // A proxy that is there answers at once; one that is not has no sessions.
        let farewells = tokio::time::timeout(LAST_FAREWELLS, self.farewells.finish());
        let rest = async { tokio::join!(self.hooks.finish(), farewells) };
        if tokio::time::timeout(LAST_HOOKS, rest).await.is_err() {
            tracing::warn!("hooks were not over at the end of the process, and are left to themselves");
        }
    }

    fn hear(&mut self, notice: Notice) {
        match notice {
            Notice::Note(note) => self.hooks.note(&note),
            Notice::Left { router, addresses } => self.farewells.begin(&router, addresses),
            Notice::Took { router } => self.farewells.take_back(&router),
            Notice::Configuration(config) => {
                logging::set_level(config.log.level);
                self.heard.set_config.send_replace(Arc::new(*config));
                self.heard.set_reload.send_replace(Some(Reload { ok: true, text: String::new() }));
            }
            Notice::BadConfiguration(text) => {
                self.heard.set_reload.send_replace(Some(Reload { ok: false, text }));
            }
        }
    }
}
