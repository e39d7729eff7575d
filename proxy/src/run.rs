//! The story of a process: everything is built, then bound, then started; signals are heard until one of
//! them ends it; sessions are drained under a deadline.
//!
//! Tasks: the admin interface, the housekeeper ([`keep_house`]) and the watchdog are owned by [`run`]; each
//! cluster owns its source and its control task, each listener its accept loops and sessions; drains of
//! listeners that a reload took away are owned by [`Process`].

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pointsman_config::{ClusterName, Config, Relay};
use pointsman_process::logging::Logging;
use pointsman_process::service::{self, Signal, Signals};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::backlog::{self, Overflows, Queues};
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::engine::{Cores, Engine};
use crate::life;
use crate::listener::{Context, Listener, Listeners, Settings, Sockets};
use crate::shard;
use crate::state::{App, Life, ListenerHandle, Parts};

/// How often the status line of the service manager is refreshed.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

/// What everything runs on: as many loops as the configuration says, else one for each core.
pub fn runtime(relay: &Relay) -> std::io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if let Some(threads) = relay.threads {
        builder.worker_threads(usize::from(threads.get()));
    }
    builder.enable_all().build()
}

/// How many cores relay: as the configuration says, else one for each processor.
fn cores(relay: Relay) -> usize {
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    relay.threads.map_or_else(processors, |threads| usize::from(threads.get()))
}

/// Runs until a signal ends it. `file` is read anew on SIGHUP.
pub async fn run(config: Config, file: &Path, logging: &Logging) -> anyhow::Result<()> {
    shard::fix(cores(config.relay));
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let descriptors = life::raise_descriptors(&config);
    if let Some(warning) = descriptors.warning() {
        tracing::warn!("{warning}");
    }
    let app = Arc::new(App::new(config.node.clone()).with_log(logging.dropped_lines()));
    app.sessions.set_room(descriptors.room());
    let admin = Admin::bind(&config.admin)?;
    let engine = Engine::start(&config.relay)?;
    app.set_cores(engine.cores().clone());
    let mut process = Process::start(file.to_owned(), config, Arc::clone(&app), engine.cores().clone())?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    tasks.spawn(admin.serve(Arc::clone(&app), stop.clone()));
    tasks.spawn(stop.clone().run_until_cancelled_owned(watchdog(Arc::clone(&app))));
    tasks.spawn(stop.clone().run_until_cancelled_owned(keep_house(Arc::clone(&app))));
    app.set_life(Life::Ready);
    service::notify_ready(&status_line(&app));
    tracing::info!(node = %app.node, version = env!("CARGO_PKG_VERSION"), "ready");

    loop {
        match signals.next().await {
            Signal::Reload => {
                service::notify_reloading();
                process.reload(logging).await;
                service::notify_ready(&status_line(&app));
            }
            Signal::Terminate => break process.drain(&mut signals).await,
            Signal::Interrupt => break process.stop(Duration::ZERO).await,
        }
    }

    app.set_life(Life::Stopping);
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    tracing::info!("stopped");
    Ok(())
}

async fn watchdog(app: Arc<App>) -> Infallible {
    service::watchdog(|| app.is_alive(), "a control task or a core of the relay engine is stuck").await
}

/// Keeps the line of `systemctl status` true, forgets the counters of members that are gone, and tells when the kernel
/// drops connections because nobody accepts them.
async fn keep_house(app: Arc<App>) -> Infallible {
    let mut beat = tokio::time::interval(HOUSEKEEPING);
    let mut overflows = backlog::Watch::start();
    loop {
        beat.tick().await;
        service::notify_status(&status_line(&app));
        forget_members(&app);
        if let Some(grown) = overflows.grown() {
            app.listen_overflows.add(grown.overflows);
            warn_of_overflows(&app, grown);
        }
    }
}

/// The counters are the host's, the queues shown are ours: an overflow may be another program's.
fn warn_of_overflows(app: &App, grown: Overflows) {
    let queues = Queues::read();
    let parts = app.parts.load();
    let ours = parts.listeners.iter().flat_map(|listener| listener.backlog(&queues));
    let fullest = ours.max_by_key(|queue| queue.waiting);
    let Overflows { overflows, drops } = grown;
    tracing::warn!(
        overflows,
        drops,
        fullest = fullest.map(|queue| tracing::field::display(queue.address)),
        waiting = fullest.map(|queue| queue.waiting),
        limit = fullest.map(|queue| queue.limit),
        "the kernel dropped connections: an accept queue on this host was full, and those clients wait and try again"
    );
}

/// Members come and go; what was counted for them must not pile up, nor stay in the metrics for ever.
fn forget_members(app: &App) {
    let parts = app.parts.load();
    for cluster in &parts.clusters {
        let Some(described) = cluster.status() else { continue };
        for listener in parts.listeners_of(&cluster.name) {
            listener
                .stats
                .forget_servers(|name| described.status.members.iter().any(|member| member.name == *name));
        }
    }
}

/// `ready; 3 sessions; main: pg1 confirmed`.
fn status_line(app: &App) -> String {
    let sessions = app.sessions.len();
    let plural = if sessions == 1 { "" } else { "s" };
    let mut line = format!("{}; {sessions} session{plural}", app.life().as_str());
    for cluster in &app.parts.load().clusters {
        let Some(described) = cluster.status() else { continue };
        let primary = &described.status.primary;
        let member = primary.member.as_ref().map_or("nobody", |member| member.as_str());
        let _ = write!(line, "; {}: {member} {}", cluster.name, primary.state); // a String takes everything
    }
    line
}

pub(crate) fn say_listening(listener: &Listener) {
    for address in listener.addresses() {
        tracing::info!(listener = %listener.name(), %address, "listening");
    }
}

/// The running parts of a process.
pub(crate) struct Process {
    pub(crate) file: PathBuf,
    pub(crate) config: Config,
    pub(crate) app: Arc<App>,
    pub(crate) clusters: BTreeMap<ClusterName, Cluster>,
    pub(crate) listeners: Listeners,
    /// Listeners that a reload took away, for as long as they have sessions.
    pub(crate) retired: Vec<Arc<Listener>>,
    /// Their drains.
    pub(crate) drains: JoinSet<()>,
    cores: Cores,
    clock: Clock,
}

impl Process {
    fn start(file: PathBuf, config: Config, app: Arc<App>, cores: Cores) -> anyhow::Result<Self> {
        let mut process = Self {
            file,
            config,
            app,
            clusters: BTreeMap::new(),
            listeners: Listeners::default(),
            retired: Vec::new(),
            drains: JoinSet::new(),
            cores,
            clock: Clock::start(),
        };
        for cluster in process.config.clusters.clone() {
            process.start_cluster(cluster);
        }
        let listeners = process.config.listeners.clone();
        let bound: Vec<Listener> = listeners
            .iter()
            .map(|listener| process.bind(listener, &mut Sockets::default()))
            .collect::<Result<_, _>>()?;
        for listener in bound {
            process.start_listener(listener);
        }
        process.show();
        Ok(process)
    }

    pub(crate) fn start_cluster(&mut self, cluster: pointsman_config::Cluster) {
        let name = cluster.name.clone();
        let cluster =
            Cluster::start(cluster, &self.config.listeners, &self.app, self.clock, &self.config.state_dir);
        self.clusters.insert(name, cluster);
    }

    /// Binds a listener's addresses, as far as their sockets are not there yet. Its cluster runs.
    pub(crate) fn bind(
        &self,
        listener: &pointsman_config::Listener,
        sockets: &mut Sockets,
    ) -> anyhow::Result<Listener> {
        let cluster = self.clusters.get(&listener.cluster).context("a listener without a cluster")?;
        let settings = self.settings(listener, cluster);
        let context = Context {
            routes: Arc::clone(cluster.routes()),
            sessions: Arc::clone(&self.app.sessions),
            stats: Arc::default(),
            reports: cluster.reports().clone(),
            cores: self.cores.clone(),
        };
        Ok(Listener::bind(settings, context, sockets)?)
    }

    pub(crate) fn settings(&self, listener: &pointsman_config::Listener, cluster: &Cluster) -> Settings {
        Settings {
            listener: listener.clone(),
            balancers: cluster.config().balancers,
            log_sessions: self.config.log.sessions,
        }
    }

    pub(crate) fn start_listener(&mut self, mut listener: Listener) {
        listener.start();
        say_listening(&listener);
        self.listeners.add(listener);
    }

    /// Shows the parts as they are now to the admin interface.
    pub(crate) fn show(&self) {
        let clusters = self.config.clusters.iter().filter_map(|cluster| self.clusters.get(&cluster.name));
        let listeners = self.listeners.iter().map(|listener| {
            let mut handle = ListenerHandle::new(&listener.settings().listener, Arc::clone(listener.stats()));
            handle.bind = listener.addresses().to_vec(); // with the ports that the kernel chose
            handle.set_listening(listener.is_accepting());
            Arc::new(handle)
        });
        let parts = Parts {
            clusters: clusters.map(|cluster| Arc::clone(cluster.handle())).collect(),
            listeners: listeners.collect(),
        };
        self.app.parts.store(Arc::new(parts));
        self.app.vip.set_socket(&self.config);
    }

    /// SIGTERM: unready, no new sessions, old ones may finish; a second signal cuts the wait short.
    async fn drain(&mut self, signals: &mut Signals) {
        let patience = self.config.shutdown.drain;
        tracing::info!(sessions = self.app.sessions.len(), ?patience, "draining");
        let ended = async {
            let second = async { while signals.next().await == Signal::Reload {} };
            tokio::select! {
                () = self.stop(patience) => return,
                () = second => tracing::info!("a second signal: the drain is cut short"),
            }
            self.stop(Duration::ZERO).await;
        };
        tokio::select! {
            biased;
            never = service::ask_for_time("draining") => match never {},
            () = ended => {}
        }
    }

    /// Stops accepting, waits for sessions, cuts the rest.
    async fn stop(&mut self, patience: Duration) {
        self.app.set_life(Life::Draining);
        let deadline = Instant::now() + patience;
        let retired = async {
            let mut cut = 0;
            for listener in &self.retired {
                cut += listener.drain(deadline).await;
            }
            cut
        };
        let (cut, of_retired) = tokio::join!(self.listeners.drain(deadline), retired);
        let cut = cut + of_retired;
        self.show();
        if cut > 0 {
            tracing::info!(sessions = cut, "cut at the end of the drain");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use pointsman_config::Engine;

    use super::*;

    #[test]
    fn the_configuration_says_how_many_loops_there_are() {
        let workers = |threads| {
            let relay = Relay { engine: Engine::Auto, threads: NonZeroU16::new(threads) };
            runtime(&relay).unwrap().metrics().num_workers()
        };
        assert_eq!((workers(1), workers(3)), (1, 3));
        assert!(workers(0) >= 1);
    }
}
