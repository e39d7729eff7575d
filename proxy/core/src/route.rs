//! What the topology publishes: for each listener either candidates or the reason why there are none.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use pointsman_config::{ListenerName, Target};
use serde::Serialize;

use crate::view::{Address, MemberName};

/// One member's uninterrupted standing as a candidate of one listener.
///
/// Terms are never used twice. A revocation names a term: it ends all sessions that were granted under
/// it, and none of those that came before or after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Term(pub u64);

/// The part that a member is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrantRole {
    /// The one confirmed primary, for writes.
    Primary,
    /// A replica, for reads.
    Replica,
    /// The primary, standing in for replicas that are missing (`fallback = "primary"`).
    Fallback,
    /// Any member (`target = "any"`).
    Any,
}

impl GrantRole {
    /// The word for logs, metrics and the dashboard.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Fallback => "fallback",
            Self::Any => "any",
        }
    }
}

impl fmt::Display for GrantRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A member that a listener may send new sessions to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// Who.
    pub member: MemberName,
    /// Where: tried in order.
    pub addresses: Arc<[Address]>,
    /// As what.
    pub role: GrantRole,
    /// Under which term. Sessions hold it; a revocation names it.
    pub term: Term,
    /// Its part of new sessions; 0 takes none.
    pub weight: u32,
}

/// Why a listener has no candidate now. Absence has a reason, and the reason has a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum NoRoute {
    /// Nothing has been learned of the cluster yet.
    Discovering,
    /// The source has answered, and the cluster has never had a leader.
    NoLeaderYet,
    /// The leader key is gone: an election is going on.
    LeaderKeyGone {
        /// Who held it.
        last: Option<MemberName>,
    },
    /// The named leader has not been confirmed writable yet.
    Pending {
        /// The member that is being asked.
        leader: MemberName,
    },
    /// The leader key names a member whose address is not known.
    LeaderUnknown {
        /// The name in the leader key.
        leader: MemberName,
    },
    /// A switchover has been announced; new sessions wait for the next primary.
    SwitchoverAnnounced {
        /// The leader that gives way.
        leader: MemberName,
    },
    /// Neither the source nor the leader itself has confirmed the leader for a ttl.
    Stale {
        /// The last known leader.
        leader: MemberName,
    },
    /// This cluster follows another one: it has no primary.
    StandbyCluster,
    /// An operator has taken the only candidate out.
    Maintenance {
        /// The member that was taken out.
        member: MemberName,
    },
    /// No replica is fit to serve, and there is nothing to fall back on.
    NoReplica,
    /// No synchronous standby is fit to serve, and there is nothing to fall back on.
    NoSyncStandby,
    /// No member at all is fit to serve.
    NoMember,
}

impl NoRoute {
    /// Every label that [`NoRoute::label`] can return: metrics start at zero for each.
    pub const LABELS: [&'static str; 12] = [
        "discovering",
        "no-leader-yet",
        "leader-key-gone",
        "pending",
        "leader-unknown",
        "switchover-announced",
        "stale",
        "standby-cluster",
        "maintenance",
        "no-replica",
        "no-sync-standby",
        "no-member",
    ];

    /// A finite word for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Discovering => "discovering",
            Self::NoLeaderYet => "no-leader-yet",
            Self::LeaderKeyGone { .. } => "leader-key-gone",
            Self::Pending { .. } => "pending",
            Self::LeaderUnknown { .. } => "leader-unknown",
            Self::SwitchoverAnnounced { .. } => "switchover-announced",
            Self::Stale { .. } => "stale",
            Self::StandbyCluster => "standby-cluster",
            Self::Maintenance { .. } => "maintenance",
            Self::NoReplica => "no-replica",
            Self::NoSyncStandby => "no-sync-standby",
            Self::NoMember => "no-member",
        }
    }

    /// Whether waiting is in vain: nothing that happens by itself will bring a candidate.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::StandbyCluster)
    }

    /// What a person can do about it: the HINT of the error that a client gets.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Discovering => {
                "Pointsman has learned nothing of the cluster since it started; see its log."
            }
            Self::NoLeaderYet | Self::LeaderKeyGone { .. } => {
                "There is no primary now; `pointsman members` shows what is known of each member."
            }
            Self::Pending { .. } | Self::SwitchoverAnnounced { .. } => {
                "A change of primary is under way; try again in some seconds."
            }
            Self::LeaderUnknown { .. } => {
                "The leader is named without a usable address: with Patroni, look at its conn_url."
            }
            Self::Stale { .. } => {
                "Neither the source nor the leader itself answers this load balancer; \
                 stale_primary = \"route\" would go on regardless."
            }
            Self::StandbyCluster => {
                "A standby cluster takes no writes; connect to the cluster that it follows."
            }
            Self::Maintenance { .. } => {
                "An operator took the member out; `pointsman ready CLUSTER/MEMBER` takes it back."
            }
            Self::NoReplica | Self::NoSyncStandby | Self::NoMember => {
                "`pointsman members` says for each member why it is not used."
            }
        }
    }
}

impl fmt::Display for NoRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discovering => write!(f, "nothing has been learned of the cluster yet"),
            Self::NoLeaderYet => write!(f, "the cluster has no leader yet"),
            Self::LeaderKeyGone { last: Some(last) } => {
                write!(f, "there is no leader; the last one was {last}")
            }
            Self::LeaderKeyGone { last: None } => write!(f, "there is no leader"),
            Self::Pending { leader } => {
                write!(f, "the leader {leader} has not been confirmed as a writable primary yet")
            }
            Self::LeaderUnknown { leader } => write!(f, "the address of the leader {leader} is not known"),
            Self::SwitchoverAnnounced { leader } => write!(f, "a switchover away from {leader} is under way"),
            Self::Stale { leader } => {
                write!(f, "the leader {leader} has not been confirmed by anybody for too long")
            }
            Self::StandbyCluster => write!(f, "this is a standby cluster: it has no primary"),
            Self::Maintenance { member } => write!(f, "{member} was taken out by an operator"),
            Self::NoReplica => write!(f, "no replica is fit to serve"),
            Self::NoSyncStandby => write!(f, "no synchronous standby is fit to serve"),
            Self::NoMember => write!(f, "no member is fit to serve"),
        }
    }
}

/// Where one listener's new sessions go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// What the listener asked for.
    pub target: Target,
    /// Candidates, never an empty list, or why there are none.
    pub candidates: Result<Arc<[Candidate]>, NoRoute>,
}

/// The whole decision of one instant, for one cluster. Immutable once published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteTable {
    /// Grows by one with each publication.
    pub generation: u64,
    /// A route for every listener of the cluster.
    pub routes: BTreeMap<ListenerName, Route>,
}

/// Why a term ended while sessions held it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevokeReason {
    /// Another member was named leader.
    LeaderChanged,
    /// The member itself says that it is no longer a primary.
    Demoted,
    /// The replica was promoted, and the listener says `on_promote = "cut"`.
    Promoted,
    /// The listener no longer exists, or its target has changed.
    Reconfigured,
}

/// The end of a term: every session that was granted under it is cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Revocation {
    /// The term that ended.
    pub term: Term,
    /// Whose it was.
    pub member: MemberName,
    /// Why it ended.
    pub reason: RevokeReason,
}
