//! `/live`, `/ready`, `/primary`, `/replicas`: 200 or 503, for outer balancers and for the virtual IP.
//!
//! * `/live`: the process answers.
//! * `/ready`: *this host* can serve. A cluster without a primary does not make it unready, nor does a store
//!   that is silent for everybody: else every host would drop the virtual IP in the same fail-over. Only a
//!   host that reaches neither the store nor any member is cut off.
//! * `/primary`, `/replicas`: a session would be served, or held within the bounds of its listener.

use std::sync::Arc;
use std::time::Duration;

use hyper::{Method, StatusCode};
use pointsman_config::Target;
use pointsman_core::route::NoRoute;
use pointsman_core::status::{ClusterStatus, MemberStatus};
use pointsman_core::view::MemberRole;
use pointsman_process::answer::{self, Answer};
use serde::Serialize;

use crate::state::{App, ClusterHandle, Described, Life, ListenerHandle, Parts, STUCK};

/// What a health answer says.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    ok: bool,
    node: String,
    life: Life,
    /// All that is missing has just begun, and nobody can say yet whether it will come.
    starting: bool,
    /// Why it is not well; empty when it is.
    why: Vec<String>,
    /// What does not decide, but is worth knowing.
    remarks: Vec<String>,
}

impl Verdict {
    fn new(app: &App, why: Vec<String>, remarks: Vec<String>) -> Self {
        let starting = app.life() == Life::Starting;
        Self { ok: why.is_empty(), node: app.node.to_string(), life: app.life(), starting, why, remarks }
    }
}

/// 200 or 503; a question by OPTIONS is answered by the status alone, as Patroni does.
pub(super) fn answer(method: &Method, verdict: &Verdict) -> Answer {
    let status = if verdict.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if method == Method::OPTIONS {
        answer::of(status, "application/json", "")
    } else {
        answer::json(status, verdict)
    }
}

/// The process answers.
pub(super) fn live(app: &App) -> Verdict {
    Verdict::new(app, Vec::new(), Vec::new())
}

/// This host can serve. `Err`: there is no such cluster.
pub(super) fn ready(app: &App, cluster: Option<&str>) -> Result<Verdict, String> {
    let parts = app.parts.load();
    let mut why = serving(app);
    let mut remarks = Vec::new();
    // Reasons that are no more than that a cluster has just begun: a reload may have brought it.
    let mut new = 0;
    for cluster in chosen(&parts, cluster)? {
        for listener in parts.listeners_of(&cluster.name).filter(|listener| !listener.listening()) {
            why.push(format!("the listener {} does not accept connections", listener.name));
        }
        let before = why.len();
        match described(cluster) {
            Ok(described) => reach(&described.status, &mut why, &mut remarks),
            Err(sentence) => why.push(sentence),
        }
        if is_new(cluster) {
            new += why.len() - before;
        }
    }
    let all_new = new > 0 && new == why.len();
    let verdict = Verdict::new(app, why, remarks);
    Ok(Verdict { starting: verdict.starting || all_new, ..verdict })
}

/// Writes would be served, or held within bounds.
pub(super) fn primary(app: &App, cluster: Option<&str>) -> Result<Verdict, String> {
    serves(app, cluster, "primary", |target| target == Target::Primary)
}

/// Reads would be served, or held within bounds.
pub(super) fn replicas(app: &App, cluster: Option<&str>) -> Result<Verdict, String> {
    serves(app, cluster, "replicas", |target| target != Target::Primary)
}

fn serves(
    app: &App,
    cluster: Option<&str>,
    what: &str,
    wanted: fn(Target) -> bool,
) -> Result<Verdict, String> {
    let parts = app.parts.load();
    let mut why = serving(app);
    let mut remarks = Vec::new();
    for cluster in chosen(&parts, cluster)? {
        let (now, unserved) = match described(cluster) {
            Ok(described) => (described.now(), described.without_primary()),
            Err(sentence) => {
                why.push(sentence);
                continue;
            }
        };
        let mut asked =
            parts.listeners_of(&cluster.name).filter(|listener| wanted(listener.target)).peekable();
        if asked.peek().is_none() {
            why.push(format!("the cluster {} has no listener for {what}", cluster.name));
        }
        for listener in asked {
            match would_serve(&now, unserved, listener) {
                Ok(Some(remark)) => remarks.push(remark),
                Ok(None) => {}
                Err(sentence) => why.push(sentence),
            }
        }
    }
    Ok(Verdict::new(app, why, remarks))
}

/// Whether a new session would be served (nothing to say), held (a remark) or refused (an error).
fn would_serve(
    status: &ClusterStatus,
    waited: Duration,
    listener: &ListenerHandle,
) -> Result<Option<String>, String> {
    let name = &listener.name;
    if !listener.listening() {
        return Err(format!("the listener {name} does not accept connections"));
    }
    let Some(route) = status.routes.iter().find(|route| route.listener == *name) else {
        return Err(format!("the listener {name} has no route yet"));
    };
    if !route.candidates.is_empty() {
        return Ok(None);
    }
    let reason = route.why_not.as_ref().map_or_else(|| "no candidate".to_owned(), NoRoute::to_string);
    let held = listener.stats.held.get();
    if listener.hold.is_zero() || route.why_not == Some(NoRoute::StandbyCluster) {
        Err(format!("the listener {name} refuses: {reason}"))
    } else if held >= u64::from(listener.max_held) {
        Err(format!("the listener {name} holds as many sessions as it may ({held}): {reason}"))
    } else if listener.target == Target::Primary && waited > listener.hold {
        Err(format!("there has been no primary for longer than the listener {name} holds: {reason}"))
    } else {
        Ok(Some(format!("the listener {name} holds new sessions ({held} now): {reason}")))
    }
}

/// Why no session at all is served now.
fn serving(app: &App) -> Vec<String> {
    match app.life() {
        Life::Ready => Vec::new(),
        Life::Starting => vec!["pointsman is starting".to_owned()],
        Life::Draining => vec!["pointsman is draining: it takes no new sessions".to_owned()],
        Life::Stopping => vec!["pointsman is stopping".to_owned()],
    }
}

/// Whether this host reaches anything of the cluster.
fn reach(status: &ClusterStatus, why: &mut Vec<String>, remarks: &mut Vec<String>) {
    let name = &status.cluster;
    let lost: Vec<_> = status.members.iter().filter(|m| unreachable(m)).map(|m| m.name.as_str()).collect();
    // A fixed list where every member takes writes is its own source, and tells nothing of what can be reached.
    let fixed = status.members.iter().all(|member| member.role == MemberRole::Writable);
    let store_alive = status.store.state == "alive" && (status.members.is_empty() || !fixed);
    let error = status.store.error.as_deref().unwrap_or("it has not been reached yet");
    if !store_alive && lost.len() == status.members.len() {
        why.push(format!("neither the source nor any member of the cluster {name} is within reach: {error}"));
        return;
    }
    if !store_alive {
        remarks.push(format!("the source of the cluster {name} does not answer: {error}"));
    }
    if !lost.is_empty() {
        remarks.push(format!("members of the cluster {name} out of reach: {}", lost.join(", ")));
    }
}

/// Nothing has answered yet, and nothing has failed.
fn is_new(cluster: &ClusterHandle) -> bool {
    cluster.status().is_none_or(|described| {
        let status = &described.status;
        status.store.age_ms.is_none() && status.store.error.is_none() && status.members.is_empty()
    })
}

fn unreachable(member: &MemberStatus) -> bool {
    let no_answer = member.answer.as_ref().is_none_or(|answer| answer.error.is_some());
    member.health == "down" || (member.health == "unknown" && no_answer)
}

fn described(cluster: &ClusterHandle) -> Result<Arc<Described>, String> {
    let Some(described) = cluster.status() else {
        return Err(format!("the cluster {} has not been looked at yet", cluster.name));
    };
    let age = described.made.elapsed();
    if age > STUCK {
        return Err(format!("the cluster {} has not been looked at for {} s", cluster.name, age.as_secs()));
    }
    Ok(described)
}

/// The cluster of this name, or all.
fn chosen<'a>(parts: &'a Parts, name: Option<&str>) -> Result<Vec<&'a Arc<ClusterHandle>>, String> {
    let Some(name) = name else { return Ok(parts.clusters.iter().collect()) };
    parts.cluster(name).map(|cluster| vec![cluster]).ok_or_else(|| {
        let known: Vec<_> = parts.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        format!("there is no such cluster; there is {}", known.join(", "))
    })
}
