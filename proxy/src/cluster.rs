//! One cluster as it runs: its source, its control task, and the way to both.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pointsman_config::{Discovery, Listener};
use pointsman_core::event::{Event, ListenerPolicy, Policy};
use pointsman_core::topology::Topology;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::ask::Asker;
use crate::clock::Clock;
use crate::control::{Control, EVENTS};
use crate::discovery::{self, Heritage, SourceStats};
use crate::listener::Reports;
use crate::memory::Memory;
use crate::probe::Prober;
use crate::routes::Routes;
use crate::state::{App, ClusterHandle};

/// A running cluster. Dropping it ends its tasks; the routes stay as they were published last.
#[derive(Debug)]
pub struct Cluster {
    config: pointsman_config::Cluster,
    clock: Clock,
    routes: Arc<Routes>,
    handle: Arc<ClusterHandle>,
    reports: Reports,
    events: mpsc::Sender<Event>,
    uneasy: watch::Receiver<bool>,
    heritage: Arc<Heritage>,
    state_dir: PathBuf,
    source: JoinSet<()>,
    /// Ends the memory's task when dropped.
    memory: JoinSet<()>,
    /// Ends the control task when dropped.
    _control: JoinSet<()>,
}

impl Cluster {
    /// Starts the tasks. Within a tokio runtime.
    pub fn start(
        config: pointsman_config::Cluster,
        listeners: &[Listener],
        app: &Arc<App>,
        clock: Clock,
        state_dir: &Path,
    ) -> Self {
        let (events, received) = mpsc::channel(EVENTS);
        let routes = Arc::new(Routes::default());
        let handle =
            Arc::new(ClusterHandle::new(config.name.clone(), config.discovery.as_str(), events.clone()));
        let questions = TaskTracker::new();
        let (uneasy, told) = watch::channel(true);
        let seed = RandomState::new().hash_one(config.name.as_str()); // three load balancers must not ask in step
        let control = Control {
            topology: Topology::new(config.name.clone(), policy(&config, listeners), seed),
            routes: Arc::clone(&routes),
            handle: Arc::clone(&handle),
            app: Arc::clone(app),
            asker: Asker::new(&config, clock, events.clone(), questions.clone()),
            prober: Prober::new(events.clone(), questions),
            clock,
            uneasy,
            events: received,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { match control.run().await {} });
        let mut cluster = Self {
            reports: Reports::new(events.clone(), Arc::clone(&handle.reports_dropped)),
            config,
            clock,
            routes,
            handle,
            events,
            uneasy: told,
            heritage: Arc::default(),
            state_dir: state_dir.to_owned(),
            source: JoinSet::new(),
            memory: JoinSet::new(),
            _control: tasks,
        };
        cluster.start_source();
        cluster
    }

    /// Starts the source, or starts it anew: dropping the old set ends the old one.
    fn start_source(&mut self) {
        let stats = Arc::new(SourceStats::new(&self.config, self.clock));
        self.handle.set_source(Arc::clone(&stats));
        self.source = JoinSet::new();
        let (config, events, uneasy) = (self.config.clone(), self.events.clone(), self.uneasy.clone());
        let heritage = Arc::clone(&self.heritage);
        self.source
            .spawn(async move { match discovery::run(&config, &stats, events, uneasy, &heritage).await {} });
        self.memory = JoinSet::new();
        // A fixed list is its own memory.
        if !matches!(self.config.discovery, Discovery::Static(_)) {
            let memory = Memory::new(&self.state_dir, &self.config.name, &self.config.scope);
            let (handle, events) = (Arc::clone(&self.handle), self.events.clone());
            self.memory.spawn(async move { match memory.run(handle, events).await {} });
        }
    }

    /// Its part of the configuration.
    pub fn config(&self) -> &pointsman_config::Cluster {
        &self.config
    }

    /// Where its routes are published.
    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// Its read side.
    pub fn handle(&self) -> &Arc<ClusterHandle> {
        &self.handle
    }

    /// The way for sessions to report what happens to servers.
    pub fn reports(&self) -> &Reports {
        &self.reports
    }

    /// Takes over what can change while it runs: listeners, `stale_primary`, weights, and the source, which is
    /// started anew if it changed. Waits for room in the control task's channel.
    pub async fn reconfigure(&mut self, config: pointsman_config::Cluster, listeners: &[Listener]) {
        let policy = policy(&config, listeners);
        // The source gives the members their addresses and weights.
        let patience_changed = matches!(config.discovery, Discovery::Static(_))
            && config.stale_primary != self.config.stale_primary;
        let source_changed = patience_changed
            || config.discovery != self.config.discovery
            || config.connect_to != self.config.connect_to
            || config.weights != self.config.weights;
        self.config = config;
        let _ = self.events.send(Event::Policy(policy)).await; // fails only when the control task has ended
        if source_changed {
            self.start_source();
        }
    }
}

/// What the topology has to know of the configuration.
fn policy(cluster: &pointsman_config::Cluster, listeners: &[Listener]) -> Policy {
    let ours = listeners.iter().filter(|listener| listener.cluster == cluster.name);
    let policy = |listener: &Listener| ListenerPolicy {
        name: listener.name.clone(),
        target: listener.target,
        max_lag: listener.max_lag,
        on_promote: listener.on_promote,
        fallback: listener.fallback,
        tags: listener.tags.clone(),
    };
    Policy {
        listeners: ours.map(policy).collect(),
        stale_primary: cluster.stale_primary,
        sql: cluster.sql.is_some(),
    }
}
