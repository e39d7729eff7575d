//! What a discovery source says about a cluster: a whole snapshot, never a delta.
//!
//! A [`ClusterView`] is what the store (or the members themselves) *claims*. Nothing in it is believed
//! before [`crate::topology`] has weighed it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::time::Moment;

/// The name of a member, unique in its cluster (Patroni: `name`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct MemberName(Arc<str>);

impl MemberName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for MemberName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A position in the write-ahead log, in bytes (PostgreSQL: `pg_lsn`; Patroni writes it as a number).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// How far `self` is behind `other`, in bytes; 0 if it is not.
    pub fn behind(self, other: Self) -> u64 {
        other.0.saturating_sub(self.0)
    }
}

impl fmt::Display for Lsn {
    /// As PostgreSQL prints it: `0/5066E70`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// A PostgreSQL timeline; it grows by one at each promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A revision of the store (etcd: `mod_revision`; Consul: `ModifyIndex`). It only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// Where a server is reached. The host is an IP address or a name to look up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// An IPv4 or IPv6 address without brackets, or a host name.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Where a member's Patroni answers (Patroni: `api_url`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ApiUrl {
    /// `https` if true, else `http`.
    pub tls: bool,
    /// Host and port.
    pub address: Address,
}

impl fmt::Display for ApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }
}

/// The role that a member says it plays (Patroni: `role`; `master` is an old word for `primary`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberRole {
    /// `primary`, `master`: not in recovery.
    Primary,
    /// `replica`: in recovery.
    Replica,
    /// `standby_leader`: leads a standby cluster; in recovery.
    StandbyLeader,
    /// `promoted`: on its way to primary.
    Promoted,
    /// `demoted`: on its way from primary to replica.
    Demoted,
    /// `uninitialized`: no data directory yet.
    Uninitialized,
    /// One of several that all take writes (a fixed list with `probe = "tcp"`: multi-master). No Patroni's word.
    Writable,
    /// A word that we do not know, or none.
    Unknown,
}

impl MemberRole {
    /// Every role, with the word that Patroni writes for it.
    const WORDS: [(&'static str, Self); 7] = [
        ("primary", Self::Primary),
        ("master", Self::Primary),
        ("replica", Self::Replica),
        ("standby_leader", Self::StandbyLeader),
        ("promoted", Self::Promoted),
        ("demoted", Self::Demoted),
        ("uninitialized", Self::Uninitialized),
    ];

    /// Reads Patroni's word.
    pub fn from_patroni(word: &str) -> Self {
        Self::WORDS.iter().find(|(known, _)| *known == word).map_or(Self::Unknown, |(_, role)| *role)
    }

    /// Patroni's word of today.
    pub fn as_str(self) -> &'static str {
        if self == Self::Writable {
            return "writable";
        }
        Self::WORDS.iter().find(|(_, role)| *role == self).map_or("unknown", |(word, _)| *word)
    }
}

impl fmt::Display for MemberRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of a member's PostgreSQL (Patroni: `state`, some fifteen words).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub enum MemberState {
    /// `running` (REST and store); `/cluster` says `streaming` for a running replica.
    Running,
    /// `starting`, `restarting`, `creating replica`, …: every other word, as written.
    Other(Arc<str>),
}

impl MemberState {
    /// Reads Patroni's word.
    pub fn from_patroni(word: &str) -> Self {
        if word == "running" { Self::Running } else { Self::Other(word.into()) }
    }

    /// Patroni's word.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Running => "running",
            Self::Other(word) => word,
        }
    }
}

impl From<MemberState> for String {
    fn from(state: MemberState) -> Self {
        state.as_str().to_owned()
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a replica receives its log (Patroni: `replication_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replication {
    /// `streaming`.
    Streaming,
    /// The member would say so if it streamed, and does not (`in archive recovery`, or a Patroni that
    /// writes `replay_lsn` but no `replication_state`).
    NotStreaming,
    /// Its Patroni is too old to say (3.0).
    Unknown,
}

/// A member's tags (Patroni: `tags`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tags {
    /// Never balanced to (`noloadbalance`).
    pub noloadbalance: bool,
    /// Never promoted by itself (`nofailover`).
    pub nofailover: bool,
    /// Every tag as text, these two included: what a listener's `tags = { zone = "a" }` is matched with.
    pub all: BTreeMap<String, String>,
}

impl Tags {
    /// Whether every wanted tag is present with the wanted value.
    pub fn match_all(&self, wanted: &BTreeMap<String, String>) -> bool {
        wanted.iter().all(|(key, value)| self.all.get(key) == Some(value))
    }
}

/// A member as its key in the store tells it (`members/NAME`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberView {
    /// The last part of its key.
    pub name: MemberName,
    /// Where its sessions go: PostgreSQL (`conn_url`), or with `connect_to = "proxy_url"` the pooler beside it (`proxy_url`).
    /// One address, or several to try in order. Never empty.
    pub addresses: Arc<[Address]>,
    /// Where Patroni answers (`api_url`).
    pub api: Option<ApiUrl>,
    /// `role`.
    pub role: MemberRole,
    /// `state`.
    pub state: MemberState,
    /// Patroni's `version`.
    pub version: Option<Arc<str>>,
    /// `timeline`.
    pub timeline: Option<Timeline>,
    /// `xlog_location`: written position of a primary, received or replayed position of a replica.
    /// A primary that is about to stop writes its key without it.
    pub position: Option<Lsn>,
    /// `replay_lsn`; for a Patroni that does not write it, `xlog_location`.
    pub replay: Option<Lsn>,
    /// `replication_state`.
    pub replication: Replication,
    /// `tags`.
    pub tags: Tags,
    /// Its part of new sessions; 1 unless the configuration of a static cluster says otherwise.
    pub weight: u32,
    /// The revision that wrote the key as shown here.
    pub revision: Revision,
}

/// The leader key (`leader`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeaderKey {
    /// The member that it names.
    pub member: MemberName,
    /// The revision that wrote it. A lease is renewed without writing, so this changes with the leader
    /// (or when the same leader takes the key anew).
    pub revision: Revision,
}

/// A switchover or fail-over that somebody asked for (`failover`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Announcement {
    /// The leader that shall give way; none: whoever it is.
    pub leader: Option<MemberName>,
    /// The member that shall take over; none: Patroni chooses.
    pub candidate: Option<MemberName>,
    /// When, in milliseconds since 1970, by the clock of whoever wrote it; none: now.
    pub scheduled_at: Option<u64>,
    /// The revision that wrote the key.
    pub revision: Revision,
}

/// The synchronous standbys (`sync`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SyncView {
    /// The leader that wrote it.
    pub leader: Option<MemberName>,
    /// `sync_standby`: empty for some seconds after every change.
    pub standbys: BTreeSet<MemberName>,
}

/// What we use of the cluster's dynamic configuration (`config`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of Patroni's own")]
pub struct ClusterSettings {
    /// `ttl` of the leader key, in seconds; Patroni's default is 30.
    pub ttl: u32,
    /// `loop_wait`, in seconds; Patroni's default is 10.
    pub loop_wait: u32,
    /// `pause`: nobody fails over by itself.
    pub paused: bool,
    /// `standby_cluster` is set: this cluster follows another one and has no primary.
    pub standby_cluster: bool,
    /// `synchronous_mode` is on or `quorum`.
    pub synchronous: bool,
    /// `failsafe_mode`: a leader may outlive the store.
    pub failsafe: bool,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            ttl: 30,
            loop_wait: 10,
            paused: false,
            standby_cluster: false,
            synchronous: false,
            failsafe: false,
        }
    }
}

/// One line of `history`: where a timeline ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TimelineSwitch {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// The position of its end.
    pub end: Lsn,
}

/// Something in the store that could not be understood. It is shown and logged once; the last good value
/// of that key stays in use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Complaint {
    /// The key, without namespace and scope: `members/n1`.
    pub key: String,
    /// What is wrong with it, in a sentence that names the field.
    pub problem: String,
}

/// A whole snapshot of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClusterView {
    /// When its source learned the last of it.
    #[serde(skip)]
    pub read_at: Moment,
    /// The store's revision that this snapshot shows.
    pub revision: Revision,
    /// The leader key, if it exists. It may name a member that `members` does not have.
    pub leader: Option<LeaderKey>,
    /// Every member with a usable key.
    pub members: BTreeMap<MemberName, MemberView>,
    /// The leader's written position (`status.optime`), with the revision that wrote it.
    pub optime: Option<(Lsn, Revision)>,
    /// A switchover or fail-over that was asked for and not cleared yet.
    pub announcement: Option<Announcement>,
    /// The synchronous standbys, where the cluster has the key.
    pub sync: Option<SyncView>,
    /// Dynamic configuration.
    pub settings: ClusterSettings,
    /// Ends of timelines, oldest first.
    pub history: Vec<TimelineSwitch>,
    /// The cluster's system identifier (`initialize`), if written.
    pub system_id: Option<Arc<str>>,
    /// What could not be understood.
    pub complaints: Vec<Complaint>,
}
