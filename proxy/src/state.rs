//! The read side of the process: what the admin interface shows.
//!
//! The control tasks, the listeners and the process's life write here through narrow doors; everybody else
//! reads. Nothing in here decides anything.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use pointsman_config::{ClusterName, Listener, ListenerName, NodeName, Target};
use pointsman_core::event::{Event, Loudness, Note, Witness};
use pointsman_core::status::ClusterStatus;
use pointsman_core::time::UnixMillis;
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use crate::backlog::{Backlog, Queues};
use crate::discovery::SourceStats;
use crate::engine::Cores;
use crate::metrics::Metrics;
use crate::sessions::Sessions;
use crate::stats::{Counter, ListenerStats};
use crate::timeline::Timeline;
use crate::vip::Vip;

/// A control task that has not described its cluster for so long is stuck: it does so every second.
pub const STUCK: Duration = Duration::from_secs(10);

/// Where the process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Life {
    /// Not every listener is up yet.
    Starting,
    /// Serving.
    Ready,
    /// No new sessions; the old ones finish.
    Draining,
    /// About to exit.
    Stopping,
}

impl Life {
    /// Every value, in the order of a life.
    pub const ALL: [Self; 4] = [Self::Starting, Self::Ready, Self::Draining, Self::Stopping];

    /// The word for answers and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
        }
    }
}

/// The result of the last SIGHUP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reload {
    /// When, RFC 3339.
    pub at: String,
    /// Whether the new configuration is in force.
    pub ok: bool,
    /// What was not taken over and needs a restart; or why the old configuration stays.
    pub text: String,
}

/// Everything that the admin interface reads.
#[derive(Debug)]
pub struct App {
    /// This host among the load balancers.
    pub node: NodeName,
    /// When the process started, monotonic.
    pub started: Instant,
    /// When the process started, by the wall clock.
    pub started_at: UnixMillis,
    /// Clusters and listeners as configured now; replaced as a whole by a reload.
    pub parts: ArcSwap<Parts>,
    /// Every live session.
    pub sessions: Arc<Sessions>,
    /// What happened.
    pub timeline: Timeline,
    /// What is measured besides the plain counters.
    pub metrics: Metrics,
    /// The virtual IP on this host.
    pub vip: Vip,
    /// Reloads that took effect.
    pub reloads_ok: Counter,
    /// Reloads that left the old configuration in force.
    pub reloads_failed: Counter,
    /// Times that an accept queue of this host overflowed, since the process started. Counted by the housekeeper.
    pub listen_overflows: Counter,
    cores: OnceLock<Cores>,
    life: watch::Sender<Life>,
    reload: Mutex<Option<Reload>>,
    log_lines_dropped: Arc<AtomicU64>,
}

/// What a configuration consists of.
#[derive(Debug, Default)]
pub struct Parts {
    /// By name.
    pub clusters: Vec<Arc<ClusterHandle>>,
    /// In the order of the file.
    pub listeners: Vec<Arc<ListenerHandle>>,
}

impl Parts {
    /// A cluster.
    pub fn cluster(&self, name: &str) -> Option<&Arc<ClusterHandle>> {
        self.clusters.iter().find(|cluster| cluster.name.as_str() == name)
    }

    /// The listeners of a cluster, in the order of the file.
    pub fn listeners_of<'a>(
        &'a self,
        cluster: &'a ClusterName,
    ) -> impl Iterator<Item = &'a Arc<ListenerHandle>> {
        self.listeners.iter().filter(move |listener| listener.cluster == *cluster)
    }
}

impl App {
    /// A process that is starting, without clusters and listeners.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            started: Instant::now(),
            started_at: wall_now(),
            parts: ArcSwap::default(),
            sessions: Arc::default(),
            timeline: Timeline::default(),
            metrics: Metrics::default(),
            reloads_ok: Counter::default(),
            reloads_failed: Counter::default(),
            listen_overflows: Counter::default(),
            cores: OnceLock::new(),
            life: watch::Sender::new(Life::Starting),
            vip: Vip::default(),
            reload: Mutex::new(None),
            log_lines_dropped: Arc::default(),
        }
    }

    /// Shows the lines that the log has dropped, too.
    #[must_use]
    pub fn with_log(self, log_lines_dropped: Arc<AtomicU64>) -> Self {
        Self { log_lines_dropped, ..self }
    }

    /// Where the process stands.
    pub fn life(&self) -> Life {
        *self.life.borrow()
    }

    /// Only the process's life calls this.
    pub fn set_life(&self, life: Life) {
        self.life.send_replace(life);
    }

    /// Tells of every change of [`App::life`].
    pub fn subscribe_life(&self) -> watch::Receiver<Life> {
        self.life.subscribe()
    }

    /// A note of a control task: into the log, the timeline and the metrics, in the same words.
    pub fn note(&self, at: UnixMillis, cluster: &ClusterName, note: &Note) {
        let entry = self.timeline.push(at, cluster, note);
        self.metrics.note(cluster, note);
        let (member, kind) = (entry.member.as_ref().map(tracing::field::display), entry.kind);
        match note.loudness {
            Loudness::Info => tracing::info!(%cluster, member, kind, "{}", entry.text),
            Loudness::Warn => tracing::warn!(%cluster, member, kind, "{}", entry.text),
        }
    }

    /// The result of the last reload, if there was one.
    pub fn reload(&self) -> Option<Reload> {
        self.reload.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records the result of a reload: what needs a restart (may be empty), or why the old one stays.
    pub fn set_reload(&self, result: Result<String, String>) {
        let (ok, text) = match result {
            Ok(text) => (true, text),
            Err(text) => (false, text),
        };
        if ok { &self.reloads_ok } else { &self.reloads_failed }.add(1);
        let reload = Reload { at: wall_now().to_string(), ok, text };
        *self.reload.lock().unwrap_or_else(PoisonError::into_inner) = Some(reload);
    }

    /// Names the cores of the relay engine, once they run.
    pub fn set_cores(&self, cores: Cores) {
        let _ = self.cores.set(cores); // there is one engine
    }

    /// The cores of the relay engine. `None`: not started yet.
    pub fn cores(&self) -> Option<&Cores> {
        self.cores.get()
    }

    /// Whether every core goes round, and every control task that has ever described its cluster still does. The watchdog asks.
    pub fn is_alive(&self) -> bool {
        self.cores.get().is_none_or(Cores::are_alive) && self.control_tasks_alive()
    }

    fn control_tasks_alive(&self) -> bool {
        let parts = self.parts.load();
        let ages = parts
            .clusters
            .iter()
            .filter_map(|cluster| cluster.status())
            .map(|described| described.made.elapsed());
        ages.max().is_none_or(|age| age < STUCK)
    }

    /// How many log lines were dropped because nobody took them in time.
    pub fn log_lines_dropped(&self) -> u64 {
        self.log_lines_dropped.load(Ordering::Relaxed)
    }
}

/// A cluster as it was described last.
#[derive(Debug)]
pub struct Described {
    /// The description. Its ages are those of the moment `made`.
    pub status: Arc<ClusterStatus>,
    /// When it was made.
    pub made: Instant,
    /// Since when no primary has been routed to. `None`: one is.
    unserved: Option<Instant>,
}

impl Described {
    /// The description with its ages as of now.
    pub fn now(&self) -> ClusterStatus {
        let mut status = aged(&self.status, self.made.elapsed());
        if status.primary.member.is_none() {
            // Nobody's state has an age; the time without a primary has.
            status.primary.since_ms = u64::try_from(self.without_primary().as_millis()).unwrap_or(u64::MAX);
        }
        status
    }

    /// For how long no primary has been routed to: through an election, and until the next one is confirmed.
    pub fn without_primary(&self) -> Duration {
        self.unserved.map(|since| since.elapsed()).unwrap_or_default()
    }
}

/// Questions to the members of one cluster that its control task has sent.
#[derive(Debug, Default)]
pub struct Questions {
    rest: Counter,
    sql: Counter,
    /// Probes of servers.
    pub probes: Counter,
}

impl Questions {
    /// Those to one kind of witness.
    pub fn to(&self, witness: Witness) -> &Counter {
        match witness {
            Witness::Rest => &self.rest,
            Witness::Sql => &self.sql,
        }
    }
}

/// One cluster.
#[derive(Debug)]
pub struct ClusterHandle {
    /// Its name.
    pub name: ClusterName,
    /// What sessions had to say about servers, and the control task had no room for.
    pub reports_dropped: Arc<Counter>,
    /// What its members were asked.
    pub questions: Questions,
    /// The source that it started with.
    kind: &'static str,
    store: ArcSwapOption<SourceStats>,
    status: ArcSwapOption<Described>,
    events: mpsc::Sender<Event>,
}

impl ClusterHandle {
    /// `events` leads to the control task: an operator's wishes go there. `kind`: of its source, until that is started.
    pub fn new(name: ClusterName, kind: &'static str, events: mpsc::Sender<Event>) -> Self {
        let (store, status) = (ArcSwapOption::empty(), ArcSwapOption::empty());
        let questions = Questions::default();
        Self { name, reports_dropped: Arc::default(), questions, kind, store, status, events }
    }

    /// Where its members are learned from: `etcd`, `consul`, `patroni`, `static`. A reload may change it.
    pub fn source(&self) -> &'static str {
        self.store.load().as_ref().map_or(self.kind, |stats| stats.kind())
    }

    /// Whoever starts the source calls this, before it runs.
    pub fn set_source(&self, stats: Arc<SourceStats>) {
        self.store.store(Some(stats));
    }

    /// What the source counts. `None`: it has not been started.
    pub fn source_stats(&self) -> Option<Arc<SourceStats>> {
        self.store.load_full()
    }

    /// Only the control task calls this: after each change, and at least every second.
    pub fn describe(&self, status: ClusterStatus) {
        let made = Instant::now();
        let before = self.status().and_then(|described| described.unserved);
        let began = made.checked_sub(Duration::from_millis(status.primary.since_ms)).unwrap_or(made);
        let unserved = (status.primary.state != "confirmed").then(|| before.unwrap_or(began));
        self.status.store(Some(Arc::new(Described { status: Arc::new(status), made, unserved })));
    }

    /// The last description. `None`: the control task has not made any yet.
    pub fn status(&self) -> Option<Arc<Described>> {
        self.status.load_full()
    }

    /// Passes an operator's wish on. `false`: the control task's queue is full or gone.
    pub fn wish(&self, event: Event) -> bool {
        self.events.try_send(event).is_ok()
    }
}

/// One listener.
#[derive(Debug)]
pub struct ListenerHandle {
    /// Its name.
    pub name: ListenerName,
    /// The cluster that it routes to.
    pub cluster: ClusterName,
    /// What it routes to.
    pub target: Target,
    /// Its addresses.
    pub bind: Vec<SocketAddr>,
    /// How long a session may be held.
    pub hold: Duration,
    /// How many sessions may be held at once.
    pub max_held: u32,
    /// How many sessions it takes at once.
    pub max_connections: u32,
    /// Its counters.
    pub stats: Arc<ListenerStats>,
    listening: AtomicBool,
}

impl ListenerHandle {
    /// A listener as configured, with its counters (kept over a reload), not listening yet.
    pub fn new(listener: &Listener, stats: Arc<ListenerStats>) -> Self {
        Self {
            name: listener.name.clone(),
            cluster: listener.cluster.clone(),
            target: listener.target,
            bind: listener.bind.clone(),
            hold: listener.hold,
            max_held: listener.max_held,
            max_connections: listener.max_connections,
            stats,
            listening: AtomicBool::new(false),
        }
    }

    /// The accept queues of its addresses.
    pub fn backlog(&self, queues: &Queues) -> Vec<Backlog> {
        self.bind.iter().filter_map(|address| queues.of(*address)).collect()
    }

    /// Whether all of its addresses are bound and accept.
    pub fn listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed)
    }

    /// Only the listener itself calls this.
    pub fn set_listening(&self, listening: bool) {
        self.listening.store(listening, Ordering::Relaxed);
    }
}

/// The wall clock, for people.
pub fn wall_now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The same description `by` later: only ages differ.
fn aged(status: &ClusterStatus, by: Duration) -> ClusterStatus {
    let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
    let add = |age: &mut u64| *age = age.saturating_add(by);
    let mut status = status.clone();
    status.store.age_ms.iter_mut().for_each(add);
    add(&mut status.primary.since_ms);
    status.primary.confirmed_ms.iter_mut().for_each(add);
    status
        .members
        .iter_mut()
        .filter_map(|member| member.answer.as_mut())
        .for_each(|answer| add(&mut answer.age_ms));
    status
}
