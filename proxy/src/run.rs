//! The story of a process: everything is built, then bound, then started; signals are heard until one of
//! them ends it; sessions are drained under a deadline.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pointsman_config::{ClusterName, Config};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::life::{self, Signal, Signals};
use crate::listener::{Context, Listener, Listeners, Settings};
use crate::logging::Logging;
use crate::state::{App, Life, ListenerHandle, Parts};
use crate::stats::ListenerStats;

/// The running parts of a process.
pub(crate) struct Process {
    pub(crate) path: PathBuf,
    pub(crate) config: Config,
    pub(crate) app: Arc<App>,
    pub(crate) clock: Clock,
    pub(crate) clusters: BTreeMap<ClusterName, Cluster>,
    pub(crate) listeners: Listeners,
    pub(crate) logging: Logging,
    /// Drains of listeners that a reload took away.
    pub(crate) retired: JoinSet<()>,
}

/// Runs until a signal ends it. `path` is read again on SIGHUP.
pub async fn run(path: PathBuf, config: Config, logging: Logging) -> anyhow::Result<ExitCode> {
    life::prepare_descriptors(&config);
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let app = Arc::new(App::new(config.node.clone()).with_log(logging.dropped_lines()));
    let admin = Admin::bind(&config.admin)?;
    let mut process = Process::start(path, config, Arc::clone(&app), logging)?;
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    serving.spawn(admin.serve(Arc::clone(&app), stop.clone()));
    serving.spawn(life::keep_systemd_informed(Arc::clone(&app), stop.clone()));
    app.set_life(Life::Ready);
    tracing::info!(
        node = %process.config.node,
        clusters = process.clusters.len(),
        listeners = process.config.listeners.len(),
        "ready"
    );
    loop {
        match signals.next().await {
            Signal::Reload => process.reload().await,
            Signal::Terminate => {
                process.drain(&mut signals).await;
                break;
            }
            Signal::Interrupt => {
                process.stop(Duration::ZERO).await;
                break;
            }
        }
    }
    app.set_life(Life::Stopping);
    stop.cancel();
    while serving.join_next().await.is_some() {}
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

impl Process {
    fn start(path: PathBuf, config: Config, app: Arc<App>, logging: Logging) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let mut process = Self {
            path,
            app,
            clock,
            clusters: BTreeMap::new(),
            listeners: Listeners::default(),
            logging,
            retired: JoinSet::new(),
            config,
        };
        for cluster in process.config.clusters.clone() {
            process.start_cluster(cluster);
        }
        let listeners = process.config.listeners.clone();
        let bound: Vec<Listener> =
            listeners.iter().map(|listener| process.bind(listener, Arc::default())).collect::<Result<_, _>>()?;
        for listener in bound {
            process.start_listener(listener)?;
        }
        process.show();
        Ok(process)
    }

    pub(crate) fn start_cluster(&mut self, cluster: pointsman_config::Cluster) {
        let name = cluster.name.clone();
        let cluster = Cluster::start(cluster, &self.config.listeners, &self.app, self.clock.clone());
        self.clusters.insert(name, cluster);
    }

    /// Binds a listener's addresses. Its cluster runs.
    pub(crate) fn bind(
        &self,
        listener: &pointsman_config::Listener,
        stats: Arc<ListenerStats>,
    ) -> anyhow::Result<Listener> {
        let cluster = self.clusters.get(&listener.cluster).context("a listener without a cluster")?;
        let settings = self.settings(listener, cluster);
        let context = Context {
            routes: Arc::clone(cluster.routes()),
            sessions: Arc::clone(&self.app.sessions),
            stats,
            reports: cluster.reports().clone(),
        };
        Ok(Listener::bind(settings, context)?)
    }

    pub(crate) fn settings(&self, listener: &pointsman_config::Listener, cluster: &Cluster) -> Settings {
        Settings {
            listener: listener.clone(),
            balancers: cluster.config().balancers,
            log_sessions: self.config.log.sessions,
        }
    }

    pub(crate) fn start_listener(&mut self, mut listener: Listener) -> anyhow::Result<()> {
        listener.start()?;
        for address in listener.addresses() {
            tracing::info!(listener = %listener.name(), %address, "listening");
        }
        self.listeners.add(listener);
        Ok(())
    }

    /// Shows the parts as they are now to the admin interface.
    pub(crate) fn show(&self) {
        let clusters = self.config.clusters.iter().filter_map(|cluster| self.clusters.get(&cluster.name));
        let listeners = self.listeners.iter().map(|listener| {
            let handle = ListenerHandle::new(&listener.settings().listener, Arc::clone(listener.stats()));
            handle.set_listening(listener.is_accepting());
            Arc::new(handle)
        });
        let parts =
            Parts { clusters: clusters.map(|cluster| Arc::clone(cluster.handle())).collect(), listeners: listeners.collect() };
        self.app.parts.store(Arc::new(parts));
    }

    /// SIGTERM: unready, no new sessions, old ones may finish; a second signal cuts the wait short.
    async fn drain(&mut self, signals: &mut Signals) {
        let patience = self.config.shutdown.drain;
        let sessions = self.app.sessions.len();
        tracing::info!(sessions, patience = ?patience, "draining");
        tokio::select! {
            () = self.stop(patience) => {}
            () = signals.end() => tracing::info!("a second signal: the drain is cut short"),
        }
        self.stop(Duration::ZERO).await;
    }

    /// Stops accepting, waits for sessions, cuts the rest.
    async fn stop(&mut self, patience: Duration) {
        self.app.set_life(Life::Draining);
        self.retired.abort_all();
        let cut = self.listeners.drain(Instant::now() + patience).await;
        self.show();
        if cut > 0 {
            tracing::info!(sessions = cut, "cut at the end of the drain");
        }
    }
}
