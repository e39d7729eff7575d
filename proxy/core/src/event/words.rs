//! Notes as sentences: what the log, the dashboard's timeline and `pointsman events` print.

use std::fmt;

use super::{AdminMode, Loudness, Note, What};
use crate::route::RevokeReason;

#[cfg(test)]
mod tests;

impl AdminMode {
    /// The word of the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

impl fmt::Display for AdminMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Loudness {
    /// The word for logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
        }
    }
}

impl RevokeReason {
    /// The word for logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LeaderChanged => "leader-changed",
            Self::Demoted => "demoted",
            Self::Promoted => "promoted",
            Self::Reconfigured => "reconfigured",
        }
    }
}

impl fmt::Display for RevokeReason {
    /// The end of a sentence that starts with "because".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeaderChanged => "another member leads now",
            Self::Demoted => "it says itself that it is no longer a primary",
            Self::Promoted => "it was promoted",
            Self::Reconfigured => "the configuration of the listener has changed",
        })
    }
}

impl What {
    /// Every label that [`What::label`] can return: metrics start at zero for each.
    pub const LABELS: [&'static str; 20] = [
        "leader-named",
        "leader-key-gone",
        "primary-confirmed",
        "primary-doubted",
        "primary-demoted",
        "switchover-announced",
        "switchover-abandoned",
        "revoked",
        "replica-in",
        "replica-out",
        "no-route",
        "store-lost",
        "store-back",
        "followed-members",
        "contradiction",
        "nonsense",
        "paused",
        "standby-cluster",
        "health",
        "other",
    ];

    /// A finite word for metrics. (Membership and an operator's wishes are `other`: they are not failures.)
    pub fn label(&self) -> &'static str {
        match self {
            Self::LeaderNamed => "leader-named",
            Self::LeaderKeyGone => "leader-key-gone",
            Self::PrimaryConfirmed { .. } => "primary-confirmed",
            Self::PrimaryDoubted { .. } => "primary-doubted",
            Self::PrimaryDemoted => "primary-demoted",
            Self::SwitchoverAnnounced { .. } => "switchover-announced",
            Self::SwitchoverAbandoned { .. } => "switchover-abandoned",
            Self::Revoked { .. } => "revoked",
            Self::ReplicaIn => "replica-in",
            Self::ReplicaOut { .. } => "replica-out",
            Self::NoRoute { .. } => "no-route",
            Self::StoreLost { .. } => "store-lost",
            Self::StoreBack { .. } => "store-back",
            Self::FollowedMembers { .. } => "followed-members",
            Self::Contradiction { .. } => "contradiction",
            Self::Nonsense { key, .. } if key.is_empty() => "contradiction",
            Self::Nonsense { .. } => "nonsense",
            Self::Paused { .. } => "paused",
            Self::StandbyCluster { .. } => "standby-cluster",
            Self::Health { .. } => "health",
            Self::Membership { .. } | Self::Admin { .. } => "other",
        }
    }

    /// The sentence with `who` as the member that it is about.
    fn write(&self, f: &mut fmt::Formatter<'_>, who: &str) -> fmt::Result {
        match self {
            Self::LeaderNamed => write!(f, "{who} is the leader now"),
            Self::LeaderKeyGone => write!(f, "{who} is no longer the leader, and nobody else is"),
            Self::PrimaryConfirmed { by, after_ms } => {
                let by = confirmed_by(by);
                write!(f, "{who} is confirmed as primary (by {by}, after {})", Span(*after_ms))
            }
            Self::PrimaryDoubted { why } => {
                write!(f, "{who} is doubted, new sessions wait until it is confirmed again: {why}")
            }
            Self::PrimaryDemoted => write!(f, "{who} says itself that it is not a primary"),
            Self::SwitchoverAnnounced { candidate: Some(candidate) } => {
                write!(f, "a switchover from {who} to {candidate} was announced: new sessions wait for it")
            }
            Self::SwitchoverAnnounced { candidate: None } => {
                write!(f, "a switchover away from {who} was announced: new sessions wait for it")
            }
            Self::SwitchoverAbandoned { why } => {
                write!(f, "the announced switchover did not happen, {who} serves again: {why}")
            }
            Self::Revoked { reason } => write!(f, "sessions on {who} were cut because {reason}"),
            Self::ReplicaIn => write!(f, "{who} takes new sessions"),
            Self::ReplicaOut { why } => write!(f, "{who} takes no new sessions: {why}"),
            Self::NoRoute { listener, why } => write!(f, "the listener {listener} has no candidate: {why}"),
            Self::StoreLost { error } => {
                write!(f, "the source does not answer, the last routes stay: {error}")
            }
            Self::StoreBack { after_ms } => write!(f, "the source answers again after {}", Span(*after_ms)),
            Self::FollowedMembers { timeline } => {
                write!(f, "the source is silent, and {who} leads by its own word (timeline {timeline})")
            }
            Self::Contradiction { text } => write!(f, "sources contradict each other: {text}"),
            Self::Nonsense { key, problem } if key.is_empty() => f.write_str(problem),
            Self::Nonsense { key, problem } => {
                write!(f, "the store's key {key} could not be understood: {problem}")
            }
            Self::Paused { paused: true } => write!(f, "the cluster was paused: Patroni fails over no more"),
            Self::Paused { paused: false } => write!(f, "the cluster was resumed"),
            Self::StandbyCluster { standby: true } => write!(f, "the cluster became a standby cluster"),
            Self::StandbyCluster { standby: false } => {
                write!(f, "the cluster is no longer a standby cluster")
            }
            Self::Health { up: true, .. } => write!(f, "{who} answers connections again"),
            Self::Health { up: false, why } => write!(f, "{who} does not answer connections: {why}"),
            Self::Membership { change } => write!(f, "{who} {change}"),
            Self::Admin { mode: AdminMode::Ready } => write!(f, "an operator put {who} back into service"),
            Self::Admin { mode: AdminMode::Drain } => {
                write!(f, "an operator drains {who}: no new sessions, old ones finish")
            }
            Self::Admin { mode: AdminMode::Maint } => {
                write!(f, "an operator took {who} out for maintenance")
            }
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, "the member")
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.write(f, self.member.as_ref().map_or("the member", |member| member.as_str()))
    }
}

/// Who confirmed a primary, for people: `rest`, `sql` and `member-key` in the words that follow "by". A word that is
/// not known stays as it is.
pub fn confirmed_by(word: &str) -> &str {
    match word {
        "rest" => "Patroni's REST",
        "sql" => "SQL",
        "member-key" => "its member key",
        other => other,
    }
}

/// Milliseconds as people say them: `163 ms`, `12.4 s`, `3 min 20 s`, `7 h 5 min`, `3 d 4 h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(ms) = *self;
        match ms {
            0..1000 => write!(f, "{ms} ms"),
            1000..60_000 => write!(f, "{}.{} s", ms / 1000, ms % 1000 / 100),
            60_000..3_600_000 => write!(f, "{} min {} s", ms / 60_000, ms % 60_000 / 1000),
            3_600_000..86_400_000 => write!(f, "{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
            _ => write!(f, "{} d {} h", ms / 86_400_000, ms % 86_400_000 / 3_600_000),
        }
    }
}
