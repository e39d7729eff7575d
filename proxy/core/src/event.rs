//! What goes into [`crate::topology::Topology`] and what comes out of it.

use std::sync::Arc;
use std::time::Duration;
use std::{collections::BTreeMap, fmt};

use pointsman_config::{Bytes, Fallback, ListenerName, OnPromote, StalePrimary, Target};
use serde::Serialize;

use crate::route::{NoRoute, Revocation, RevokeReason, RouteTable};
use crate::time::Moment;
use crate::view::{
    Address, ApiUrl, ClusterView, Lsn, MemberName, MemberRole, MemberState, Replication, Timeline,
};

mod words;

pub use words::{Span, confirmed_by};

/// What one listener wants of the topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerPolicy {
    /// Its name.
    pub name: ListenerName,
    /// What it routes to.
    pub target: Target,
    /// A replica further behind than this is drained.
    pub max_lag: Option<Bytes>,
    /// What happens to sessions on a replica that is promoted.
    pub on_promote: OnPromote,
    /// Who serves when nobody else is fit.
    pub fallback: Fallback,
    /// Only members with these tags.
    pub tags: BTreeMap<String, String>,
}

/// What the topology has to know of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Every listener of this cluster.
    pub listeners: Vec<ListenerPolicy>,
    /// What happens when nothing has confirmed the leader for a ttl.
    pub stale_primary: StalePrimary,
    /// There are credentials to ask the servers over SQL.
    pub sql: bool,
}

/// Whose word an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Witness {
    /// The member's Patroni: the body of `GET /patroni`.
    Rest,
    /// The server itself: `pg_is_in_recovery()`. Where both speak, its word outranks Patroni's.
    Sql,
}

impl Witness {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Rest, Self::Sql];

    /// The word for logs, metrics and the dashboard.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Sql => "sql",
        }
    }
}

/// Whom to ask for a member's status, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Its Patroni.
    Rest(ApiUrl),
    /// Its server: the addresses are tried in order.
    Sql(Arc<[Address]>),
}

impl Question {
    /// Whose word the answer will be.
    pub fn witness(&self) -> Witness {
        match self {
            Self::Rest(_) => Witness::Rest,
            Self::Sql(_) => Witness::Sql,
        }
    }
}

/// Why a question to a member brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AskError {
    /// The connection was refused or reset: nobody listens.
    Refused,
    /// No answer before the deadline.
    TimedOut,
    /// Any other failure to connect (no route, name not found, TLS).
    Unreachable,
    /// An answer came that makes no sense (not JSON, a field missing).
    Nonsense,
    /// The answer is another cluster's or another member's (`patroni.scope`, `patroni.name`).
    Stranger,
    /// The server does not let us in: a wrong password, no line in `pg_hba.conf`, no such database.
    Denied,
    /// The server answers that it is starting up, shutting down or in recovery (57P03, 57P01, 57P02).
    NotReady,
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connection refused",
            Self::TimedOut => "no answer in time",
            Self::Unreachable => "unreachable",
            Self::Nonsense => "an answer that makes no sense",
            Self::Stranger => "the answer of another member or cluster",
            Self::Denied => "it does not let us in",
            Self::NotReady => "it is starting up, shutting down or in recovery",
        })
    }
}

/// What a member says of itself at this moment: the body of `GET /patroni`, or an SQL probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// From a live `pg_is_in_recovery()`.
    pub role: MemberRole,
    /// `running`, `stopping`, …
    pub state: MemberState,
    /// Timeline.
    pub timeline: Option<Timeline>,
    /// Written position of a primary (`xlog.location`), replayed position of a replica.
    pub position: Option<Lsn>,
    /// Whether a replica streams.
    pub replication: Replication,
    /// When its Patroni last saw the store (`dcs_last_seen`, epoch seconds by *its* clock: compare only
    /// with an earlier answer of the same member).
    pub dcs_last_seen: Option<u64>,
    /// `failsafe_mode_is_active`: it may lead without the store.
    pub failsafe_active: bool,
}

impl Status {
    /// Whether this is the word of a server that takes writes now.
    pub fn writable(&self) -> bool {
        self.role == MemberRole::Primary && self.state == MemberState::Running
    }
}

/// The answer to one question ([`Effect::Ask`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who was asked.
    pub member: MemberName,
    /// Whose word it is.
    pub by: Witness,
    /// When the question was sent. An answer proves nothing of a time after it.
    pub asked_at: Moment,
    /// What it said.
    pub outcome: Result<Status, AskError>,
}

/// The condition of the discovery source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum StoreCondition {
    /// It answers. Sent at each sign of life too: it refreshes the store's age.
    Alive,
    /// It does not answer.
    Lost {
        /// Why, for people.
        error: String,
    },
}

/// What happened to a connection to a server (passive health).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DialOutcome {
    /// The server sent its first byte.
    Served,
    /// Nobody listens.
    Refused,
    /// No connection, or no first byte, before the deadline.
    TimedOut,
    /// Any other failure (no route, reset, closed before the first byte).
    Failed,
    /// The server answered that it is starting up, shutting down or in recovery (57P03, 57P01).
    NotReady,
}

/// What an operator wants of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminMode {
    /// Use it as its condition allows.
    #[default]
    Ready,
    /// No new sessions; the old ones finish.
    Drain,
    /// No new sessions; not probed either.
    Maint,
}

/// Everything that can happen to a cluster. The only input of the topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new snapshot from the discovery source. It also says that the source is alive.
    View(Box<ClusterView>),
    /// A snapshot that is not of now: from our disk, or from a store that has lost its quorum. While nothing better is
    /// known it says whom to *ask*; it never says where to route.
    Remembered(Box<ClusterView>),
    /// The discovery source came to life or fell silent.
    Store(StoreCondition),
    /// A member answered a question, or did not.
    Answer(Answer),
    /// A member answered a question of the discovery source's own. As good an answer, but not the one that is owed to us.
    Heard(Answer),
    /// A session's connection to a server came about or failed.
    Dial {
        /// The server.
        member: MemberName,
        /// How it went.
        outcome: DialOutcome,
    },
    /// A server ended an established session of its own accord.
    ServerClosed {
        /// The server.
        member: MemberName,
    },
    /// The result of [`Effect::Probe`].
    Probe {
        /// The server.
        member: MemberName,
        /// How it went ([`DialOutcome::Served`]: it answered our encryption request).
        outcome: DialOutcome,
    },
    /// An operator's wish.
    Admin {
        /// The member.
        member: MemberName,
        /// The wish.
        mode: AdminMode,
    },
    /// The configuration was read anew.
    Policy(Policy),
    /// Time has passed: [`crate::topology::Topology::poll_timeout`] was reached.
    Tick,
}

/// What the shell has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make this the table that every new session reads.
    Publish(Arc<RouteTable>),
    /// Cut every session of a term. Always after the `Publish` that ended the term.
    Revoke(Revocation),
    /// Ask a member for its status. At most one question of each kind to a member is out at a time; every
    /// question is answered by one [`Event::Answer`], at the latest after `deadline`.
    Ask {
        /// Whom.
        member: MemberName,
        /// Of whom, and where.
        question: Question,
        /// How long an answer may take.
        deadline: Duration,
    },
    /// Connect to the server, send a `GSSENCRequest`, await one byte, close. Answered by one [`Event::Probe`].
    Probe {
        /// Whom.
        member: MemberName,
        /// Where: tried in order.
        addresses: Arc<[Address]>,
        /// How long it may take in all.
        deadline: Duration,
    },
    /// Something that a person may want to know: the log, the dashboard's timeline, `pointsman events`.
    Note(Note),
}

/// How loudly a note is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loudness {
    /// A state changed.
    Info,
    /// Somebody should look.
    Warn,
}

/// One entry of the cluster's timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Info or warn.
    pub loudness: Loudness,
    /// The member that it is about, if it is about one.
    pub member: Option<MemberName>,
    /// What happened.
    pub what: What,
}

/// What can happen, for people. [`fmt::Display`] makes a sentence of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum What {
    /// The leader key names this member now.
    LeaderNamed,
    /// The leader key is gone.
    LeaderKeyGone,
    /// The leader is confirmed as a writable primary; `after_ms` since it was named or doubted.
    PrimaryConfirmed {
        /// Who said so: `rest`, `sql` or `member-key`.
        by: &'static str,
        /// Milliseconds since the doubt began.
        after_ms: u64,
    },
    /// The leader is doubted: new sessions are held until it is confirmed again.
    PrimaryDoubted {
        /// Why.
        why: &'static str,
    },
    /// The member itself says that it is not a primary.
    PrimaryDemoted,
    /// A switchover was announced: new sessions are held from now on.
    SwitchoverAnnounced {
        /// The chosen successor, if one was named.
        candidate: Option<MemberName>,
    },
    /// An announced switchover did not happen: the leader serves again.
    SwitchoverAbandoned {
        /// Why we believe so.
        why: &'static str,
    },
    /// The sessions of one or more terms were cut.
    Revoked {
        /// Why.
        reason: RevokeReason,
    },
    /// The member became a candidate for new sessions, and does not lead.
    ReplicaIn,
    /// The member takes no new sessions, and does not lead.
    ReplicaOut {
        /// Why.
        why: String,
    },
    /// A listener lost its last candidate.
    NoRoute {
        /// Which listener.
        listener: ListenerName,
        /// Why.
        why: NoRoute,
    },
    /// The store does not answer; the last routes stay.
    StoreLost {
        /// Why, for people.
        error: String,
    },
    /// The store answers again.
    StoreBack {
        /// How long it was silent, in milliseconds.
        after_ms: u64,
    },
    /// While the store was silent, the members showed that another one leads.
    FollowedMembers {
        /// Its timeline.
        timeline: u32,
    },
    /// Two sources contradict each other.
    Contradiction {
        /// In a sentence.
        text: String,
    },
    /// Something in the store could not be understood, or a source says that a person should look.
    Nonsense {
        /// The key; empty if it is about the cluster as a whole.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// The cluster was paused or resumed.
    Paused {
        /// Paused, or resumed.
        paused: bool,
    },
    /// The cluster became a standby cluster, or ceased to be one.
    StandbyCluster {
        /// Became, or ceased.
        standby: bool,
    },
    /// A server does not answer connections, or does again.
    Health {
        /// It answers.
        up: bool,
        /// Why not.
        why: &'static str,
    },
    /// A member joined, left, or moved to another address.
    Membership {
        /// `joined`, `left`, `moved`.
        change: &'static str,
    },
    /// An operator took a member out or back.
    Admin {
        /// What was wished.
        mode: AdminMode,
    },
}
