//! The shapes of `/api/v1/...`: what the dashboard, the command line and scripts read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::{ClusterName, ListenerName, Target};
use pointsman_core::status::{ClusterStatus, MemberStatus};
use pointsman_core::view::MemberName;
use serde::Serialize;

use crate::backlog::{Backlog, Queues};
use crate::metrics::process;
use crate::sessions::{Granted, Login, Phase, SessionId};
use crate::state::{App, ClusterHandle, Life, ListenerHandle, Parts, Reload, wall_now};
use crate::stats::{ListenerStats, ServerStats};
use crate::timeline::Entry;

/// How many sessions are listed unless asked otherwise.
pub(super) const SESSIONS: u64 = 1000;

/// `/api/v1/status`: everything but single sessions.
#[derive(Serialize)]
pub(super) struct StatusDoc {
    process: Process,
    clusters: Vec<Cluster>,
    listeners: Vec<Listener>,
    /// The number of the newest entry of the timeline.
    timeline: u64,
}

#[derive(Serialize)]
struct Process {
    version: &'static str,
    node: String,
    pid: u32,
    life: Life,
    now: String,
    started_at: String,
    uptime_ms: u64,
    sessions: usize,
    open_descriptors: Option<usize>,
    max_descriptors: Option<u64>,
    log_lines_dropped: u64,
    /// Times that an accept queue of this host was full, since the process started.
    listen_overflows: u64,
    reload: Option<Reload>,
}

#[derive(Serialize)]
struct Cluster {
    name: ClusterName,
    source: &'static str,
    /// The endpoint of the store that is being watched.
    endpoint: Option<String>,
    store_reconnects: u64,
    /// The age of the status itself; its own ages are up to date.
    described_ms: Option<u64>,
    status: Option<ClusterStatus>,
    /// By member: sessions now and bytes since the start, over all listeners.
    traffic: BTreeMap<String, Traffic>,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Traffic {
    sessions: u64,
    sessions_total: u64,
    dial_errors: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// A listener with its route and its counters.
#[derive(Serialize)]
pub(super) struct Listener {
    name: ListenerName,
    cluster: ClusterName,
    target: Target,
    bind: Vec<SocketAddr>,
    /// The accept queue of each address that is listened on.
    backlog: Vec<Backlog>,
    listening: bool,
    /// `open` (new sessions are routed), `held` (they wait), `refusing` (they are turned away), `down`.
    state: &'static str,
    /// Why it is not open.
    why: Option<String>,
    candidates: Vec<MemberName>,
    hold_ms: u64,
    max_held: u32,
    max_connections: u32,
    accepted: u64,
    sessions: u64,
    held: u64,
    held_total: u64,
    held_ms_mean: Option<u64>,
    held_ms_max: u64,
    bytes_in: u64,
    bytes_out: u64,
    accept_errors: u64,
    cancels: u64,
    closes: BTreeMap<&'static str, u64>,
    servers: Vec<Server>,
}

#[derive(Serialize)]
struct Server {
    member: MemberName,
    sessions: u64,
    sessions_total: u64,
    dial_errors: u64,
    cut: u64,
    dial_ms_mean: Option<f64>,
    dial_ms_max: f64,
    bytes_in: u64,
    bytes_out: u64,
}

/// `/api/v1/members`.
#[derive(Serialize)]
pub(super) struct Member {
    cluster: ClusterName,
    #[serde(flatten)]
    status: MemberStatus,
    #[serde(flatten)]
    traffic: Traffic,
}

/// `/api/v1/sessions`.
#[derive(Serialize)]
pub(super) struct SessionsDoc {
    total: usize,
    sessions: Vec<Session>,
}

#[derive(Serialize)]
struct Session {
    id: SessionId,
    cluster: ClusterName,
    listener: ListenerName,
    client: SocketAddr,
    local: SocketAddr,
    phase: Phase,
    age_ms: u64,
    bytes_in: u64,
    bytes_out: u64,
    granted: Option<Arc<Granted>>,
    login: Option<Arc<Login>>,
}

/// `/api/v1/timeline`.
#[derive(Serialize)]
pub(super) struct TimelineDoc {
    last: u64,
    entries: Vec<Arc<Entry>>,
}

pub(super) fn status(app: &App) -> StatusDoc {
    let parts = app.parts.load();
    StatusDoc {
        process: about(app),
        clusters: parts.clusters.iter().map(|handle| cluster(&parts, handle)).collect(),
        listeners: listeners(app),
        timeline: app.timeline.last(),
    }
}

fn about(app: &App) -> Process {
    Process {
        version: env!("CARGO_PKG_VERSION"),
        node: app.node.to_string(),
        pid: std::process::id(),
        life: app.life(),
        now: wall_now().to_string(),
        started_at: app.started_at.to_string(),
        uptime_ms: millis(app.started.elapsed()),
        sessions: app.sessions.len(),
        open_descriptors: process::open_descriptors(),
        max_descriptors: process::max_descriptors(),
        log_lines_dropped: app.log_lines_dropped(),
        listen_overflows: app.listen_overflows.get(),
        reload: app.reload(),
    }
}

fn cluster(parts: &Parts, handle: &ClusterHandle) -> Cluster {
    let described = handle.status();
    let traffic = traffic(parts, &handle.name);
    let source = handle.source_stats();
    Cluster {
        name: handle.name.clone(),
        source: handle.source(),
        endpoint: source.as_ref().and_then(|source| source.connected().map(str::to_owned)),
        store_reconnects: source.map_or(0, |source| source.reconnects()),
        described_ms: described.as_ref().map(|described| millis(described.made.elapsed())),
        status: described.map(|described| described.now()),
        traffic: traffic.into_iter().map(|(member, sum)| (member.to_string(), sum)).collect(),
    }
}

/// What every listener of a cluster counted, by member.
fn traffic(parts: &Parts, cluster: &ClusterName) -> BTreeMap<MemberName, Traffic> {
    let mut sums = BTreeMap::<_, Traffic>::new();
    for listener in parts.listeners_of(cluster) {
        for (member, server) in listener.stats.servers() {
            let sum = sums.entry(member).or_default();
            sum.sessions += server.sessions.get();
            sum.sessions_total += server.sessions_total.get();
            sum.dial_errors += server.dial_errors.get();
            sum.bytes_in += server.bytes_in.get();
            sum.bytes_out += server.bytes_out.get();
        }
    }
    sums
}

pub(super) fn members(app: &App) -> Vec<Member> {
    let parts = app.parts.load();
    let mut all = Vec::new();
    for handle in &parts.clusters {
        let traffic = traffic(&parts, &handle.name);
        for status in handle.status().map(|described| described.now().members).unwrap_or_default() {
            let traffic = traffic.get(&status.name).copied().unwrap_or_default();
            all.push(Member { cluster: handle.name.clone(), status, traffic });
        }
    }
    all
}

pub(super) fn listeners(app: &App) -> Vec<Listener> {
    let parts = app.parts.load();
    let queues = Queues::read();
    parts.listeners.iter().map(|handle| listener(&parts, handle, &queues)).collect()
}

fn listener(parts: &Parts, handle: &ListenerHandle, queues: &Queues) -> Listener {
    let counters: &ListenerStats = &handle.stats;
    let status = parts.cluster(handle.cluster.as_str()).and_then(|cluster| cluster.status());
    let route = status
        .as_ref()
        .and_then(|described| described.status.routes.iter().find(|route| route.listener == handle.name));
    let candidates = route.map(|route| route.candidates.clone()).unwrap_or_default();
    let (state, why) = match route {
        _ if !handle.listening() => ("down", Some("it does not accept connections".to_owned())),
        Some(_) if !candidates.is_empty() => ("open", None),
        _ => {
            let reason = route.and_then(|route| route.why_not.as_ref());
            let reason = reason
                .map_or_else(|| "the cluster has not been looked at yet".to_owned(), ToString::to_string);
            (if handle.hold.is_zero() { "refusing" } else { "held" }, Some(reason))
        }
    };
    Listener {
        name: handle.name.clone(),
        cluster: handle.cluster.clone(),
        target: handle.target,
        bind: handle.bind.clone(),
        backlog: handle.backlog(queues),
        listening: handle.listening(),
        state,
        why,
        candidates,
        hold_ms: millis(handle.hold),
        max_held: handle.max_held,
        max_connections: handle.max_connections,
        accepted: counters.accepted.get(),
        sessions: counters.sessions.get(),
        held: counters.held.get(),
        held_total: counters.held_total.get(),
        held_ms_mean: mean(counters.held_for.sum(), counters.held_for.count()).map(millis),
        held_ms_max: millis(counters.held_for.max()),
        bytes_in: counters.bytes_in.get(),
        bytes_out: counters.bytes_out.get(),
        accept_errors: counters.accept_errors.get(),
        cancels: counters.cancels.get(),
        closes: counters.closes(),
        servers: counters.servers().into_iter().map(|(member, server)| serving(member, &server)).collect(),
    }
}

fn serving(member: MemberName, stats: &ServerStats) -> Server {
    let millis = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    Server {
        member,
        sessions: stats.sessions.get(),
        sessions_total: stats.sessions_total.get(),
        dial_errors: stats.dial_errors.get(),
        cut: stats.cut.get(),
        dial_ms_mean: mean(stats.dialled_in.sum(), stats.dialled_in.count()).map(millis),
        dial_ms_max: millis(stats.dialled_in.max()),
        bytes_in: stats.bytes_in.get(),
        bytes_out: stats.bytes_out.get(),
    }
}

pub(super) fn sessions(app: &App, limit: u64) -> SessionsDoc {
    let all = app.sessions.list();
    let shown = all.iter().take(usize::try_from(limit).unwrap_or(usize::MAX)).map(|session| Session {
        id: session.id,
        cluster: session.cluster().clone(),
        listener: session.listener().clone(),
        client: session.client(),
        local: session.local(),
        phase: session.phase(),
        age_ms: millis(session.age()),
        bytes_in: session.bytes_in(),
        bytes_out: session.bytes_out(),
        granted: session.granted(),
        login: session.login(),
    });
    SessionsDoc { total: all.len(), sessions: shown.collect() }
}

pub(super) fn timeline(app: &App, since: u64) -> TimelineDoc {
    let entries = app.timeline.since(since);
    TimelineDoc { last: app.timeline.last(), entries }
}

fn mean(sum: Duration, count: u64) -> Option<Duration> {
    sum.checked_div(u32::try_from(count).unwrap_or(u32::MAX))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
