//! Where the members of a cluster and their roles are learned from.
//!
//! One source for each cluster: [`run`]. It owns its connections and spawns nothing; whoever runs it ends it
//! by dropping the future. What it learns goes into one bounded channel, whole snapshots, never deltas:
//! [`Event::View`] when something changed, [`Event::Store`] when the store shows life or is lost.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pointsman_config::{Cluster, Discovery};
use pointsman_core::event::{Answer, Event, StoreCondition};
use pointsman_core::patroni::Polls;
use pointsman_core::survey::Survey;
use pointsman_core::time::Moment;
use pointsman_core::view::{ClusterView, Revision};
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::stats::Counter;

mod backoff;
mod consul;
mod endpoints;
mod etcd;
mod fixed;
mod guard;
mod patroni;

/// Runs a cluster's source for ever. `stats` must be of the same cluster ([`SourceStats::new`]). `uneasy`: whether a
/// source that has to look by itself should look more often than in peace.
pub async fn run(
    cluster: &Cluster,
    stats: &SourceStats,
    events: Sender<Event>,
    uneasy: watch::Receiver<bool>,
    heritage: &Heritage,
) -> Infallible {
    let outlet = Outlet { cluster, stats, events, lost: false };
    match &cluster.discovery {
        Discovery::Etcd(etcd) => etcd::run(cluster, etcd, outlet).await,
        Discovery::Consul(consul) => consul::run(cluster, consul, outlet).await,
        Discovery::Patroni(rest) => patroni::run(cluster, rest, outlet, uneasy, heritage).await,
        Discovery::Static(members) => fixed::run(cluster, members, outlet, uneasy, heritage).await,
    }
}

/// What a source that is started anew takes over from the one before it. Sources that find out by themselves who leads must
/// not forget it when somebody changes their configuration.
#[derive(Debug, Default)]
pub struct Heritage {
    survey: Mutex<Option<Survey>>,
    polls: Mutex<Option<Polls>>,
}

/// Takes a copy of what is kept.
fn inherited<T: Clone>(kept: &Mutex<Option<T>>) -> Option<T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Keeps a copy.
fn bequeath<T: Clone>(kept: &Mutex<Option<T>>, value: &T) {
    *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(value.clone());
}

/// No endpoint answers.
const NOWHERE: usize = usize::MAX;
/// Somebody answers whom the file does not list.
const UNLISTED: usize = usize::MAX - 1;

/// What a source does, for metrics and the dashboard. Every number only grows, the endpoint excepted.
#[derive(Debug)]
pub struct SourceStats {
    clock: Clock,
    kind: &'static str,
    endpoints: Box<[Arc<str>]>,
    connected: AtomicUsize,
    reconnects: AtomicU64,
    watch_restarts: AtomicU64,
    views: AtomicU64,
    requests: Arc<Counter>,
    revision: AtomicU64,
    /// Milliseconds since the clock's start, plus one; 0: never.
    alive: AtomicU64,
}

impl SourceStats {
    /// All zero, for this cluster's endpoints.
    pub fn new(cluster: &Cluster, clock: Clock) -> Self {
        let endpoints = match &cluster.discovery {
            Discovery::Etcd(etcd) => etcd.endpoints.as_slice(),
            Discovery::Consul(consul) => consul.addresses.as_slice(),
            Discovery::Patroni(rest) => rest.members.as_slice(),
            Discovery::Static(_) => &[],
        };
        Self {
            clock,
            kind: cluster.discovery.as_str(),
            endpoints: endpoints.iter().map(|endpoint| endpoint.to_string().into()).collect(),
            connected: AtomicUsize::new(NOWHERE),
            reconnects: AtomicU64::new(0),
            watch_restarts: AtomicU64::new(0),
            views: AtomicU64::new(0),
            requests: Arc::default(),
            revision: AtomicU64::new(0),
            alive: AtomicU64::new(0),
        }
    }

    /// The kind of source: `etcd`, `consul`, `patroni`, `static`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The endpoint that answers, while one of those in the file does.
    pub fn connected(&self) -> Option<&str> {
        self.endpoints.get(self.connected.load(Ordering::Relaxed)).map(AsRef::as_ref)
    }

    /// Whether anybody answers now; none for a source that has no endpoints.
    pub fn answers(&self) -> Option<bool> {
        (!self.endpoints.is_empty()).then(|| self.connected.load(Ordering::Relaxed) != NOWHERE)
    }

    /// Connections tried after the first.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Watches that ended for any reason.
    pub fn watch_restarts(&self) -> u64 {
        self.watch_restarts.load(Ordering::Relaxed)
    }

    /// Snapshots sent.
    pub fn views(&self) -> u64 {
        self.views.load(Ordering::Relaxed)
    }

    /// What was asked of the source: reads, watches and questions for their progress, looks at members.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// The last revision that the store showed.
    pub fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Relaxed))
    }

    /// When the store showed its last sign of life.
    pub fn last_sign_of_life(&self) -> Option<Moment> {
        self.alive.load(Ordering::Relaxed).checked_sub(1).map(Moment::from_millis)
    }

    fn sign_of_life(&self, revision: Revision) {
        let millis = u64::try_from(self.clock.moment().since_start().as_millis()).unwrap_or(u64::MAX - 1);
        self.alive.store(millis.saturating_add(1), Ordering::Relaxed);
        self.revision.store(revision.0, Ordering::Relaxed);
    }
}

/// Where a source puts what it learned.
struct Outlet<'a> {
    cluster: &'a Cluster,
    stats: &'a SourceStats,
    events: Sender<Event>,
    lost: bool,
}

impl Outlet<'_> {
    /// Now.
    fn now(&self) -> Moment {
        self.stats.clock.moment()
    }

    /// A new snapshot; `read_at`: when the last of it was learned.
    async fn view(&mut self, mut view: ClusterView, read_at: Moment) {
        view.read_at = read_at;
        for (name, member) in &mut view.members {
            member.weight = u32::from(self.cluster.weight(name.as_str()).get());
        }
        self.stats.sign_of_life(view.revision);
        self.stats.views.fetch_add(1, Ordering::Relaxed);
        self.lost = false;
        self.send(Event::View(Box::new(view))).await;
    }

    /// A sign of life without news.
    async fn alive(&mut self, revision: Revision) {
        self.stats.sign_of_life(revision);
        self.lost = false;
        self.send(Event::Store(StoreCondition::Alive)).await;
    }

    /// A snapshot that is not of now: it says whom to ask, not where to route.
    async fn remembered(&mut self, view: ClusterView) {
        self.send(Event::Remembered(Box::new(view))).await;
    }

    /// What a member said of itself: worth as much as an answer to a question of the topology's own.
    async fn answer(&mut self, answer: Answer) {
        self.send(Event::Heard(answer)).await;
    }

    /// No endpoint works. Said once, until it works again.
    async fn lost(&mut self, error: String) {
        if !self.lost {
            self.lost = true;
            self.send(Event::Store(StoreCondition::Lost { error })).await;
        }
    }

    /// Waits for room, for as long as the control task lives: it is the one that reads. Without it there is
    /// nobody left to tell anything, and whoever owns this source will drop it.
    async fn send(&mut self, event: Event) {
        if self.events.send(event).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
