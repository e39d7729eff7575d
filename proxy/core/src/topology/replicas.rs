//! Which members are fit for reads.

use std::fmt;
use std::time::Duration;

use pointsman_config::{Bytes, Fallback, Target};

use crate::event::{AdminMode, ListenerPolicy};
use crate::route::{GrantRole, NoRoute};
use crate::time::Moment;
use crate::view::{MemberName, MemberRole, MemberState, SyncView, Timeline};

use super::Topology;
use super::member::Member;

/// How long the last synchronous standby stands in while the store names none.
const SYNC_GRACE: Duration = Duration::from_secs(15);

/// Why a member takes no new read sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    Gone,
    Leader,
    Operator(AdminMode),
    State(MemberState),
    Role(MemberRole),
    Tagged,
    Down,
    NotStreaming,
    OldTimeline { is: Timeline, leader: Timeline },
    Behind { bytes: u64, limit: Bytes },
    OtherTags,
    Weightless,
    NotSync,
    IsSync,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => write!(f, "it is no longer listed"),
            Self::Leader => write!(f, "it is the leader"),
            Self::Operator(AdminMode::Drain) => write!(f, "an operator drains it"),
            Self::Operator(AdminMode::Maint | AdminMode::Ready) => write!(f, "an operator took it out"),
            Self::State(state) => write!(f, "its state is {state}"),
            Self::Role(role) => write!(f, "its role is {role}"),
            Self::Tagged => write!(f, "it is tagged noloadbalance"),
            Self::Down => write!(f, "its server does not answer connections"),
            Self::NotStreaming => write!(f, "it is not streaming"),
            Self::OldTimeline { is, leader } => write!(f, "it is on timeline {is}, the leader on {leader}"),
            Self::Behind { bytes, limit } => write!(f, "it is {} behind, more than {limit}", Bytes(*bytes)),
            Self::OtherTags => write!(f, "it lacks the tags that the listener asks for"),
            Self::Weightless => write!(f, "its weight is 0"),
            Self::NotSync => write!(f, "it is not a synchronous standby"),
            Self::IsSync => write!(f, "it is a synchronous standby"),
        }
    }
}

/// A candidate before it has a term.
pub(super) type Choice = (MemberName, GrantRole, u32);

impl Topology {
    /// The candidates of one listener, or why there are none.
    pub(super) fn choose(&self, listener: &ListenerPolicy, now: Moment) -> Result<Vec<Choice>, NoRoute> {
        match listener.target {
            Target::Primary => {
                let owner = self.primary(now)?;
                Ok(vec![(owner.member.clone(), GrantRole::Primary, 1)])
            }
            Target::Replicas | Target::Sync | Target::Async => {
                let fit = self.fit_replicas(listener, now, GrantRole::Replica);
                if fit.is_empty() { self.fall_back(listener, now) } else { Ok(fit) }
            }
            Target::Any => {
                let mut fit = self.fit_replicas(listener, now, GrantRole::Any);
                let primary = self.primary(now);
                if let Ok(owner) = &primary
                    && let Some(member) = self.members.get(&owner.member)
                    && member.view.weight > 0
                    && !member.view.tags.noloadbalance
                    && member.view.tags.match_all(&listener.tags)
                {
                    fit.push((owner.member.clone(), GrantRole::Any, member.view.weight));
                    fit.sort();
                }
                match primary {
                    _ if !fit.is_empty() => Ok(fit),
                    Err(NoRoute::Discovering) => Err(NoRoute::Discovering),
                    Ok(_) | Err(_) => Err(NoRoute::NoMember),
                }
            }
        }
    }

    fn fit_replicas(&self, listener: &ListenerPolicy, now: Moment, role: GrantRole) -> Vec<Choice> {
        self.members
            .iter()
            .filter(|(name, member)| {
                self.unfit(name, member, now).is_none()
                    && self.unwanted(name, member, listener, now).is_none()
            })
            .map(|(name, member)| (name.clone(), role, member.view.weight))
            .collect()
    }

    fn fall_back(&self, listener: &ListenerPolicy, now: Moment) -> Result<Vec<Choice>, NoRoute> {
        let none = match listener.target {
            Target::Sync => NoRoute::NoSyncStandby,
            Target::Primary | Target::Replicas | Target::Async | Target::Any => NoRoute::NoReplica,
        };
        match (listener.fallback, self.primary(now)) {
            (Fallback::Primary, Ok(owner)) => Ok(vec![(owner.member.clone(), GrantRole::Fallback, 1)]),
            (_, Err(NoRoute::Discovering)) => Err(NoRoute::Discovering),
            (Fallback::Primary, Err(_)) | (Fallback::None, _) => Err(none),
        }
    }

    /// Why a member is fit for nobody's reads.
    pub(super) fn unfit(&self, name: &MemberName, member: &Member, now: Moment) -> Option<Unfit> {
        if !member.present() {
            return Some(Unfit::Gone);
        }
        if self.is_leader(name) {
            return Some(Unfit::Leader);
        }
        if member.admin != AdminMode::Ready {
            return Some(Unfit::Operator(member.admin));
        }
        if member.view.state != MemberState::Running {
            return Some(Unfit::State(member.view.state.clone()));
        }
        // Two members may call themselves primary; whoever does and does not lead is no replica.
        if !member.is_replica() && member.view.role != MemberRole::Writable {
            return Some(Unfit::Role(member.view.role));
        }
        if member.view.tags.noloadbalance {
            return Some(Unfit::Tagged);
        }
        if member.view.weight == 0 {
            return Some(Unfit::Weightless);
        }
        if !member.health.is_up() {
            return Some(Unfit::Down);
        }
        self.left_behind(member, now)
    }

    /// Why a fit member is not what this listener wants.
    fn unwanted(
        &self,
        name: &MemberName,
        member: &Member,
        listener: &ListenerPolicy,
        now: Moment,
    ) -> Option<Unfit> {
        if !member.view.tags.match_all(&listener.tags) {
            return Some(Unfit::OtherTags);
        }
        if let Some(limit) = listener.max_lag
            && member.lag.over(limit.0)
        {
            return Some(Unfit::Behind { bytes: member.lag.bytes().unwrap_or_default(), limit });
        }
        match (listener.target, self.is_sync(name, now)) {
            (Target::Sync, false) => Some(Unfit::NotSync),
            (Target::Async, true) => Some(Unfit::IsSync),
            (Target::Primary | Target::Replicas | Target::Sync | Target::Async | Target::Any, _) => None,
        }
    }

    /// Why a member takes no new read sessions from any listener, for people.
    pub(super) fn excluded(&self, name: &MemberName, member: &Member, now: Moment) -> Option<String> {
        if let Some(unfit) = self.unfit(name, member, now) {
            return Some(unfit.to_string());
        }
        let mut reads =
            self.policy.listeners.iter().filter(|listener| listener.target != Target::Primary).peekable();
        reads.peek()?;
        let mut why = None;
        for listener in reads {
            why = Some(self.unwanted(name, member, listener, now)?);
        }
        why.map(|why| why.to_string())
    }

    /// The leader takes no part in reads, except in a standby cluster, where it is a replica like the others.
    pub(super) fn is_leader(&self, name: &MemberName) -> bool {
        !self.is_standby_cluster() && self.owner.as_ref().is_some_and(|owner| owner.member == *name)
    }

    /// Whether it is a synchronous standby, or was just now and the store names none yet.
    pub(super) fn is_sync(&self, name: &MemberName, now: Moment) -> bool {
        let Some(sync) = self.view.as_ref().and_then(|view| view.sync.as_ref()) else { return false };
        if !sync.standbys.is_empty() {
            return sync.standbys.contains(name);
        }
        let streams = self.members.get(name).is_some_and(|member| self.may_stream(member, now));
        streams
            && self
                .last_sync
                .as_ref()
                .is_some_and(|(last, since)| last.standbys.contains(name) && now.since(*since) < SYNC_GRACE)
    }

    /// Remembers who was named when the store ceases to name synchronous standbys. Called with the next snapshot's
    /// word, while the last snapshot is still in place.
    pub(super) fn remember_sync(&mut self, next: Option<&SyncView>, now: Moment) {
        let before = self.view.as_ref().and_then(|view| view.sync.as_ref());
        if let Some(before) = before.filter(|before| !before.standbys.is_empty())
            && next.is_some_and(|next| next.standbys.is_empty())
        {
            self.last_sync = Some((before.clone(), now));
        }
    }

    /// When the last synchronous standby ceases to stand in.
    pub(super) fn sync_grace_ends(&self) -> Option<Moment> {
        self.last_sync.as_ref().map(|(_, since)| *since + SYNC_GRACE)
    }
}
