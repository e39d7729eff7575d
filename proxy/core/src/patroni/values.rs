//! One reader for the value of each key. An error is the end of a sentence about the key: "it is …".

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_config::ConnectTo;
use serde_json::{Map, Value};

use super::{MAX_VALUE, iso8601, url};
use crate::view::{
    Announcement, ClusterSettings, LeaderKey, Lsn, MemberName, MemberRole, MemberState, MemberView,
    Replication, Revision, SyncView, Tags, Timeline, TimelineSwitch,
};

/// No name that Patroni takes is longer; a longer one would only fill logs.
pub(super) const MAX_NAME: usize = 1024;

type Parsed<T> = Result<T, String>;

/// `leader`: the member's name, bare.
pub(super) fn leader(value: &[u8], revision: Revision) -> Parsed<LeaderKey> {
    let name = text(value)?;
    if name.trim().is_empty() {
        return Err("it is empty: no leader is named".to_owned());
    }
    if name.len() > MAX_NAME {
        return Err(format!("it is {} bytes long: no name of a member", name.len()));
    }
    Ok(LeaderKey { member: name.into(), revision })
}

/// `members/NAME`.
pub(super) fn member(
    name: &MemberName,
    value: &[u8],
    revision: Revision,
    connect_to: ConnectTo,
) -> Parsed<MemberView> {
    let fields = Fields(object(value)?);
    let conn_url = fields.text("conn_url")?.ok_or("it has no conn_url")?;
    let proxy_url = match connect_to {
        ConnectTo::ConnUrl => None, // nonsense in it is nobody's concern
        ConnectTo::ProxyUrl => fields.text("proxy_url")?,
    };
    let (key, url) = proxy_url.map_or(("conn_url", conn_url), |url| ("proxy_url", url));
    let addresses = url::conn_url(url).map_err(|why| format!("its {key} is of no use: {why}"))?;
    let api = fields.text("api_url")?.map(url::api_url).transpose();
    let role = MemberRole::from_patroni(fields.text("role")?.unwrap_or("unknown"));
    let position = fields.lsn("xlog_location")?;
    let (replayed, received) = (fields.lsn("replay_lsn")?, fields.lsn("receive_lsn")?);
    let says = replayed.is_some() || received.is_some();
    Ok(MemberView {
        name: name.clone(),
        addresses,
        api: api.map_err(|why| format!("its api_url is of no use: {why}"))?,
        role,
        state: MemberState::from_patroni(fields.text("state")?.unwrap_or("unknown")),
        version: fields.text("version")?.map(Arc::from),
        timeline: fields.timeline()?,
        position,
        replay: replayed.or(position),
        replication: replication(role, fields.text("replication_state")?, says),
        tags: tags(fields.object("tags")?),
        weight: 1,
        revision,
    })
}

/// How a member that writes this receives its log. `says`: its Patroni would write `streaming`.
pub(super) fn replication(role: MemberRole, state: Option<&str>, says: bool) -> Replication {
    match state {
        _ if role == MemberRole::Primary => Replication::Unknown,
        Some("streaming") => Replication::Streaming,
        Some(_) => Replication::NotStreaming,
        None if says => Replication::NotStreaming,
        None => Replication::Unknown,
    }
}

/// `tags` of a member, whatever their types.
pub(super) fn tags(tags: Option<&Map<String, Value>>) -> Tags {
    let Some(tags) = tags else { return Tags::default() };
    let all: BTreeMap<_, _> = tags.iter().map(|(key, value)| (key.clone(), tag_text(value))).collect();
    // Since 3.2 a failover_priority of 0 says the same as nofailover.
    let last = tags.get("failover_priority").and_then(number).is_some_and(|priority| priority == 0);
    Tags {
        noloadbalance: tags.get("noloadbalance").is_some_and(truth),
        nofailover: tags.get("nofailover").map_or(last, truth),
        all,
    }
}

fn tag_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}

/// Whether a setting is on: a boolean, or what people write for one.
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(word) => !["", "0", "false", "no", "off"].contains(&word.to_ascii_lowercase().as_str()),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Whether a switch of the dynamic configuration is on. Patroni takes a word that it does not know for off.
fn is_on(value: &Value) -> bool {
    match value {
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_u64() == Some(1),
        Value::String(word) => ["on", "true", "yes", "1"].contains(&word.to_ascii_lowercase().as_str()),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// `status`: `{"optime": N, …}`; a bare number in old clusters.
pub(super) fn status(value: &[u8], revision: Revision) -> Parsed<Option<(Lsn, Revision)>> {
    let value = json(value)?;
    let optime = match number(&value) {
        Some(bare) => Some(Lsn(bare)),
        None => Fields(into_object(value)?).lsn("optime")?,
    };
    Ok(optime.map(|lsn| (lsn, revision)))
}

/// `failover`: `{}` or nothing when there is none.
pub(super) fn failover(value: &[u8], revision: Revision) -> Parsed<Option<Announcement>> {
    if value.is_empty() {
        return Ok(None);
    }
    let fields = Fields(object(value)?);
    let (leader, candidate) = (fields.name("leader")?, fields.name("member")?);
    let scheduled = fields.text("scheduled_at")?;
    let scheduled_at = match scheduled {
        None => None,
        Some(text) => Some(iso8601::unix_millis(text).ok_or("its scheduled_at is no time with an offset")?),
    };
    let asked = leader.is_some() || candidate.is_some();
    Ok(asked.then_some(Announcement { leader, candidate, scheduled_at, revision }))
}

/// `sync`.
pub(super) fn sync(value: &[u8]) -> Parsed<Option<SyncView>> {
    if value.is_empty() {
        return Ok(None);
    }
    let fields = Fields(object(value)?);
    let names = fields.text("sync_standby")?.unwrap_or_default();
    let standbys = names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(MemberName::from);
    Ok(Some(SyncView { leader: fields.name("leader")?, standbys: standbys.collect() }))
}

/// `config`: the dynamic configuration.
pub(super) fn config(value: &[u8]) -> Parsed<ClusterSettings> {
    let fields = Fields(object(value)?);
    let default = ClusterSettings::default();
    let on = |key| fields.0.get(key).is_some_and(is_on);
    // As Patroni has it: a section that names nobody to follow is none.
    let follows =
        |key| fields.0.get("standby_cluster").and_then(|section| section.get(key)).is_some_and(truth);
    let quorum = fields.0.get("synchronous_mode").and_then(Value::as_str);
    Ok(ClusterSettings {
        ttl: fields.seconds("ttl")?.unwrap_or(default.ttl),
        loop_wait: fields.seconds("loop_wait")?.unwrap_or(default.loop_wait),
        paused: on("pause"),
        standby_cluster: ["host", "port", "restore_command"].into_iter().any(follows),
        synchronous: on("synchronous_mode") || quorum.is_some_and(|word| word.eq_ignore_ascii_case("quorum")),
        failsafe: on("failsafe_mode"),
    })
}

/// `history`: `[[timeline, end, reason, time, new leader], …]`.
pub(super) fn history(value: &[u8]) -> Parsed<Vec<TimelineSwitch>> {
    let value = json(value)?;
    if value.is_null() {
        return Ok(Vec::new());
    }
    let lines = value.as_array().ok_or("it is not a list")?;
    let line = |line: &Value| {
        let timeline = line.get(0).and_then(number).and_then(|number| u32::try_from(number).ok())?;
        Some(TimelineSwitch { timeline: Timeline(timeline), end: Lsn(line.get(1).and_then(number)?) })
    };
    let parsed = lines.iter().map(line).collect::<Option<Vec<_>>>();
    parsed.ok_or_else(|| "a line does not begin with a timeline and a position".to_owned())
}

/// `initialize`: the system identifier; empty while the cluster is being created.
pub(super) fn initialize(value: &[u8]) -> Parsed<Option<Arc<str>>> {
    let id = text(value)?.trim();
    if id.len() > 20 || !id.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{} is no system identifier", excerpt(id)));
    }
    Ok((!id.is_empty()).then(|| id.into()))
}

/// A text from outside, short enough to be shown, in quotes.
pub(crate) fn excerpt(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
}

fn text(value: &[u8]) -> Parsed<&str> {
    if value.len() > MAX_VALUE {
        return Err(format!("it is {} bytes long; no more than {MAX_VALUE} are read", value.len()));
    }
    std::str::from_utf8(value).map_err(|_| "it is not UTF-8 text".to_owned())
}

fn json(value: &[u8]) -> Parsed<Value> {
    serde_json::from_str(text(value)?).map_err(|error| format!("it is not JSON: {error}"))
}

fn object(value: &[u8]) -> Parsed<Map<String, Value>> {
    into_object(json(value)?)
}

fn into_object(value: Value) -> Parsed<Map<String, Value>> {
    if let Value::Object(map) = value { Ok(map) } else { Err("it is not a JSON object".to_owned()) }
}

/// A number, or digits in quotes.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let digits = value.as_str().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse().ok()
    })
}

/// The fields of an object. `null` is as good as absent; a field of another type is an error that names it.
pub(super) struct Fields(pub(super) Map<String, Value>);

impl Fields {
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn wrong(key: &str, wanted: &str) -> String {
        format!("its {key} is not {wanted}")
    }

    pub(super) fn text(&self, key: &str) -> Parsed<Option<&str>> {
        let value = self.get(key).map(|value| value.as_str().ok_or_else(|| Self::wrong(key, "a text")));
        value.transpose()
    }

    pub(super) fn name(&self, key: &str) -> Parsed<Option<MemberName>> {
        Ok(self.text(key)?.filter(|name| !name.is_empty()).map(MemberName::from))
    }

    pub(super) fn number(&self, key: &str) -> Parsed<Option<u64>> {
        let value =
            self.get(key).map(|value| number(value).ok_or_else(|| Self::wrong(key, "a whole number")));
        value.transpose()
    }

    pub(super) fn lsn(&self, key: &str) -> Parsed<Option<Lsn>> {
        Ok(self.number(key)?.map(Lsn))
    }

    /// `timeline`; 0 is written for "not known".
    pub(super) fn timeline(&self) -> Parsed<Option<Timeline>> {
        let number = self.number("timeline")?.filter(|number| *number != 0);
        let timeline =
            number.map(|number| u32::try_from(number).map_err(|_| Self::wrong("timeline", "a timeline")));
        Ok(timeline.transpose()?.map(Timeline))
    }

    fn seconds(&self, key: &str) -> Parsed<Option<u32>> {
        let wrong = || Self::wrong(key, "a number of seconds from 1 to 1000000");
        let in_range = |number| u32::try_from(number).ok().filter(|n| (1..=1_000_000).contains(n));
        self.number(key).map_err(|_| wrong())?.map(|number| in_range(number).ok_or_else(wrong)).transpose()
    }

    pub(super) fn object(&self, key: &str) -> Parsed<Option<&Map<String, Value>>> {
        let value = self.get(key).map(|value| value.as_object().ok_or_else(|| Self::wrong(key, "an object")));
        value.transpose()
    }

    pub(super) fn on(&self, key: &str) -> bool {
        self.get(key).is_some_and(truth)
    }
}
