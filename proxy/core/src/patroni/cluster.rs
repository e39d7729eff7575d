//! The bodies of `GET /cluster`, `GET /config` and `GET /history`.
//!
//! Patroni makes the answer to `/cluster` of the store's keys at that moment, so it has what a view needs, except
//! positions that can be compared, a switchover that was not scheduled, and the settings.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::values::{self, Fields, MAX_NAME};
use super::{iso8601, url};
use crate::event::AskError;
use crate::view::{
    Announcement, ClusterSettings, MemberName, MemberRole, MemberState, MemberView, Replication, Revision,
    TimelineSwitch,
};

/// More members than this are no cluster of Patroni's.
const MAX_MEMBERS: usize = 1000;

/// Why an entry for a member is of no use: a sentence about it.
pub type Sick = String;

/// One answer to `GET /cluster`. Revisions are 0: an answer has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterAnswer {
    /// Who holds the leader key, if anybody does (role `leader` or `standby_leader`).
    pub leader: Option<MemberName>,
    /// The leader leads a standby cluster (role `standby_leader`).
    pub standby_cluster: bool,
    /// Every member that has a key, or what is wrong with its entry. Positions are not given.
    pub members: BTreeMap<MemberName, Result<MemberView, Sick>>,
    /// Members with the role `sync_standby` or `quorum_standby`.
    pub standbys: BTreeSet<MemberName>,
    /// A switchover with a time (`scheduled_switchover`). Others are not told.
    pub scheduled: Option<Announcement>,
    /// `pause`.
    pub paused: bool,
}

/// Reads an answer to `GET /cluster`, and makes sure that it is of the cluster that was meant (Patroni 3.0 does not say).
/// The error carries a sentence for people.
pub fn parse_cluster(body: &[u8], scope: &str) -> Result<ClusterAnswer, (AskError, String)> {
    let nonsense = |why: String| (AskError::Nonsense, why);
    let fields = match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Fields(map),
        Ok(_) => return Err(nonsense("the answer is not a JSON object".to_owned())),
        Err(error) => return Err(nonsense(format!("the answer is not JSON: {error}"))),
    };
    let in_answer = |why: String| nonsense(format!("in the answer, {why}"));
    if let Some(found) = fields.text("scope").map_err(in_answer)?.filter(|found| *found != scope) {
        let found = values::excerpt(found);
        return Err((AskError::Stranger, format!("scope {found} answers where {scope:?} is expected")));
    }
    answer(&fields).map_err(in_answer)
}

/// Reads an answer to `GET /config`: the dynamic configuration. The error is the end of a sentence: "it is …".
pub fn parse_config(body: &[u8]) -> Result<ClusterSettings, String> {
    values::config(body)
}

/// Reads an answer to `GET /history`: ends of timelines, oldest first. The error is the end of a sentence: "it is …".
pub fn parse_history(body: &[u8]) -> Result<Vec<TimelineSwitch>, String> {
    values::history(body)
}

fn answer(fields: &Fields) -> Result<ClusterAnswer, String> {
    let entries = fields.get("members").ok_or("its members are missing")?;
    let entries = entries.as_array().ok_or("its members are not a list")?;
    if entries.len() > MAX_MEMBERS {
        return Err(format!("it has {} members", entries.len()));
    }
    let mut all = ClusterAnswer { paused: fields.on("pause"), ..ClusterAnswer::default() };
    all.scheduled =
        fields.object("scheduled_switchover")?.map(|map| scheduled(&Fields(map.clone()))).transpose()?;
    for entry in entries {
        let Value::Object(entry) = entry else { return Err("a member is not an object".to_owned()) };
        all.take(&Fields(entry.clone()))?;
    }
    Ok(all)
}

impl ClusterAnswer {
    fn take(&mut self, entry: &Fields) -> Result<(), String> {
        let name = entry.name("name")?.filter(|name| name.as_str().len() <= MAX_NAME);
        let name = name.ok_or("a member has no name")?;
        let role = entry.text("role")?.unwrap_or_default();
        match role {
            "leader" | "standby_leader" => {
                if let Some(other) = self.leader.replace(name.clone()) {
                    return Err(format!("both {other} and {name} lead"));
                }
                self.standby_cluster = role == "standby_leader";
            }
            "sync_standby" | "quorum_standby" => {
                self.standbys.insert(name.clone());
            }
            _ => {}
        }
        if self.members.insert(name.clone(), member(&name, role, entry)).is_some() {
            return Err(format!("{name} is there twice"));
        }
        Ok(())
    }
}

fn member(name: &MemberName, role: &str, fields: &Fields) -> Result<MemberView, Sick> {
    let port = fields.number("port")?.map(|port| u16::try_from(port).ok().filter(|port| *port != 0));
    let port = port.map(|port| port.ok_or("its port is not a number from 1 to 65535")).transpose()?;
    let host = fields.text("host")?.ok_or("it has no host: its conn_url is missing or of no use")?;
    let api = fields.text("api_url")?.map(url::api_url).transpose();
    let role = role_of(role);
    let (state, replication) = state(role, fields)?;
    Ok(MemberView {
        name: name.clone(),
        addresses: url::hosts(host, port).map_err(|why| format!("its host is of no use: {why}"))?,
        api: api.map_err(|why| format!("its api_url is of no use: {why}"))?,
        role,
        state,
        version: None,
        timeline: fields.timeline()?,
        position: None,
        replay: None,
        replication,
        tags: values::tags(fields.object("tags")?),
        weight: 1,
        revision: Revision(0),
    })
}

/// The words of `/cluster` are about the leader key and the sync key, not about what the server does.
fn role_of(word: &str) -> MemberRole {
    match word {
        "leader" => MemberRole::Primary,
        "sync_standby" | "quorum_standby" => MemberRole::Replica,
        _ => MemberRole::from_patroni(word),
    }
}

/// `state`: how a running replica receives its log, where Patroni knows it (from 3.1 on), else the server's state.
fn state(role: MemberRole, fields: &Fields) -> Result<(MemberState, Replication), String> {
    let word = fields.text("state")?.unwrap_or("unknown");
    Ok(match word {
        "streaming" => (MemberState::Running, Replication::Streaming),
        "in archive recovery" => (MemberState::Running, Replication::NotStreaming),
        // A Patroni that tells receive_lsn would have said `streaming`.
        "running" if role == MemberRole::Replica && fields.get("receive_lsn").is_some() => {
            (MemberState::Running, Replication::NotStreaming)
        }
        word => (MemberState::from_patroni(word), Replication::Unknown),
    })
}

fn scheduled(fields: &Fields) -> Result<Announcement, String> {
    let at = fields.text("at")?.ok_or("its scheduled_switchover has no time")?;
    let at =
        iso8601::unix_millis(at).ok_or("the time of its scheduled_switchover is no time with an offset")?;
    Ok(Announcement {
        leader: fields.name("from")?,
        candidate: fields.name("to")?,
        scheduled_at: Some(at),
        revision: Revision(0),
    })
}

#[cfg(test)]
mod tests;
