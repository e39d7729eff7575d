//! A discovery source under observation.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pointsman::clock::Clock;
use pointsman::discovery::{self, Heritage, SourceStats};
use pointsman_config::{Cluster, Config};
use pointsman_core::event::{Event, StoreCondition};
use pointsman_core::view::ClusterView;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::etcd::SOON;

pub(crate) struct Source {
    events: mpsc::Receiver<Event>,
    pub(crate) stats: Arc<SourceStats>,
    /// Tells the source to look more often.
    pub(crate) uneasy: watch::Sender<bool>,
    _task: JoinSet<()>,
}

/// The cluster `demo` of a configuration with this discovery.
pub(crate) fn cluster(discovery: &str) -> Cluster {
    cluster_with(&format!("discovery = {{ etcd = {{ {discovery} }} }}"))
}

/// The cluster `demo` with these settings.
fn cluster_with(settings: &str) -> Cluster {
    let text = format!(
        "[clusters.demo]\n{settings}\n[[listeners]]\nbind = \"127.0.0.1:5000\"\ntarget = \"primary\"\n"
    );
    let config = Config::parse(&text, "test.toml", Path::new("/")).unwrap_or_else(|wrong| panic!("{wrong}"));
    config.clusters.into_iter().next().unwrap()
}

impl Source {
    /// On etcd.
    pub(crate) fn start(discovery: &str) -> Self {
        Self::of(cluster(discovery))
    }

    /// On Consul.
    pub(crate) fn start_consul(discovery: &str) -> Self {
        Self::start_in(&format!("discovery = {{ consul = {{ {discovery} }} }}"))
    }

    /// Of a cluster with these settings.
    pub(crate) fn start_in(settings: &str) -> Self {
        Self::of(cluster_with(settings))
    }

    fn of(cluster: Cluster) -> Self {
        let stats = Arc::new(SourceStats::new(&cluster, Clock::start()));
        let (sender, events) = mpsc::channel(64);
        let (uneasy, peace) = watch::channel(false);
        let mut task = JoinSet::new();
        let shared = Arc::clone(&stats);
        task.spawn(async move {
            discovery::run(&cluster, &shared, sender, peace, &Heritage::default()).await;
        });
        Self { events, stats, uneasy, _task: task }
    }

    async fn next_by(&mut self, deadline: Instant) -> Event {
        let event = timeout_at(deadline, self.events.recv()).await;
        event.expect("an event comes in time").expect("the source lives")
    }

    /// The first view that satisfies a condition, from now on.
    pub(crate) async fn view(&mut self, wanted: impl Fn(&ClusterView) -> bool) -> ClusterView {
        let deadline = Instant::now() + SOON;
        loop {
            let event = self.next_by(deadline).await;
            if let Event::View(view) = event
                && wanted(&view)
            {
                return *view;
            }
        }
    }

    /// Waits until the leader key names this member.
    pub(crate) async fn leader(&mut self, name: &str) -> ClusterView {
        self.view(|view| view.leader.as_ref().is_some_and(|leader| leader.member.as_str() == name)).await
    }

    /// Waits for a sign of life of an established watch.
    pub(crate) async fn alive(&mut self) {
        let deadline = Instant::now() + SOON;
        while self.next_by(deadline).await != Event::Store(StoreCondition::Alive) {}
    }

    /// Waits until the source says that the store is lost, and why.
    pub(crate) async fn lost(&mut self) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            if let Event::Store(StoreCondition::Lost { error }) = self.next_by(deadline).await {
                return error;
            }
        }
    }

    /// Waits until the source says that the store is lost; what it remembers, and why it is lost.
    pub(crate) async fn remembered(&mut self) -> (ClusterView, String) {
        let deadline = Instant::now() + SOON;
        let (mut memory, mut lost) = (None, None);
        loop {
            let event = self.next_by(deadline).await;
            if let Event::Remembered(view) = event {
                memory = Some(*view);
            } else if let Event::Store(StoreCondition::Lost { error }) = event {
                lost = Some(error);
            }
            if let (Some(memory), Some(error)) = (&memory, &lost) {
                return (memory.clone(), error.clone());
            }
        }
    }

    /// Fails if the store is said to be lost within this time; returns how many signs of life came.
    pub(crate) async fn stays_for(&mut self, time: Duration) -> usize {
        let end = Instant::now() + time;
        let mut alive = 0;
        while let Ok(event) = timeout_at(end, self.events.recv()).await {
            let event = event.expect("the source lives");
            let life = matches!(event, Event::Store(StoreCondition::Alive) | Event::View(_));
            assert!(life, "{event:?}");
            alive += 1;
        }
        alive
    }
}
