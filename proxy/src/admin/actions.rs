//! What an operator may change. Reached through the UNIX socket only.

use std::net::IpAddr;

use hyper::StatusCode;
use pointsman_core::close::CloseReason;
use pointsman_core::event::{AdminMode, Event};
use pointsman_core::view::MemberName;
use pointsman_process::answer::{self, Answer};
use serde::Serialize;

use crate::sessions::SessionId;
use crate::state::App;

#[derive(Serialize)]
struct Done {
    done: String,
    /// How many sessions were asked to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<usize>,
}

fn done(sentence: String, sessions: Option<usize>) -> Answer {
    answer::json(StatusCode::OK, &Done { done: sentence, sessions })
}

/// `POST /api/v1/members/CLUSTER/MEMBER/ready|drain|maint|kill`.
pub(super) fn member(app: &App, cluster: &str, member: &str, action: &str) -> Answer {
    let mode = match action {
        "ready" => Some(AdminMode::Ready),
        "drain" => Some(AdminMode::Drain),
        "maint" => Some(AdminMode::Maint),
        "kill" => None,
        _ => return answer::problem(StatusCode::NOT_FOUND, "the actions are ready, drain, maint and kill"),
    };
    let parts = app.parts.load();
    let Some(handle) = parts.cluster(cluster) else {
        return answer::problem(StatusCode::NOT_FOUND, &format!("there is no cluster {cluster:?}"));
    };
    let known = handle
        .status()
        .is_some_and(|described| described.status.members.iter().any(|found| found.name.as_str() == member));
    if !known {
        let sentence = format!("the cluster {cluster} has no member {member:?}");
        return answer::problem(StatusCode::NOT_FOUND, &sentence);
    }
    let Some(mode) = mode else { return kill_on(app, cluster, member) };
    if !handle.wish(Event::Admin { member: MemberName::from(member), mode }) {
        let sentence = "the cluster's control task is busy or gone; try again, then see the log";
        return answer::problem(StatusCode::SERVICE_UNAVAILABLE, sentence);
    }
    tracing::info!(cluster, member, mode = mode.as_str(), "an operator's wish");
    done(format!("{cluster}/{member} is set to {mode}"), None)
}

/// Ends every session that a member serves.
fn kill_on(app: &App, cluster: &str, member: &str) -> Answer {
    let sessions = app.sessions.list();
    let of_member = sessions.iter().filter(|session| {
        session.cluster().as_str() == cluster
            && session.granted().is_some_and(|granted| granted.member.as_str() == member)
    });
    let count = of_member.map(|session| session.kill(CloseReason::Killed)).count();
    tracing::warn!(cluster, member, sessions = count, "an operator ended the sessions of a member");
    let sessions = if count == 1 { "session ends" } else { "sessions end" };
    done(format!("{count} {sessions} now on {cluster}/{member}"), Some(count))
}

/// `POST /api/v1/sessions/ID/kill`.
pub(super) fn kill(app: &App, id: &str) -> Answer {
    let Ok(number) = id.parse() else {
        return answer::problem(StatusCode::BAD_REQUEST, "a session is named by its number");
    };
    let Some(session) = app.sessions.get(SessionId(number)) else {
        return answer::problem(StatusCode::NOT_FOUND, &format!("there is no session {number} (any more)"));
    };
    session.kill(CloseReason::Killed);
    tracing::warn!(session = number, client = %session.client(), "an operator ended a session");
    done(format!("session {number} ends now"), Some(1))
}

/// `POST /api/v1/addresses/left?address=IP`: this address was on this host, and is on another one now. What its clients still send goes
/// there, so their sessions here are over, and what they hold on the servers must not stay locked.
pub(super) fn left(app: &App, address: Option<&str>) -> Answer {
    let Some(address) = address.and_then(|text| text.parse::<IpAddr>().ok()) else {
        let sentence = "name the address that has left, as in ?address=192.168.60.110";
        return answer::problem(StatusCode::BAD_REQUEST, sentence);
    };
    let count = app.sessions.end_at(address, &CloseReason::VipMoved);
    if let Some(cores) = app.cores() {
        cores.sweep();
    }
    tracing::info!(%address, sessions = count, "an address has left this host: its sessions end");
    let sessions = if count == 1 { "session ends" } else { "sessions end" };
    done(format!("{address} has left: {count} {sessions} now"), Some(count))
}
