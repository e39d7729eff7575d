//! Who may be the primary: the one owner of the write route.
//!
//! The owner is named by the leader key, or, while the store is silent, by the members themselves. Being
//! named is not enough: it is *pending* until it is confirmed writable, and can be doubted again at any
//! time. There is one owner at most, so there is one candidate at most.

use std::time::Duration;

use pointsman_config::{StalePrimary, Target};

use crate::event::{AdminMode, Answer, Loudness, Status, What, Witness};
use crate::route::{GrantRole, NoRoute, RevokeReason};
use crate::time::{Moment, Now};
use crate::view::{
    Announcement, ClusterView, LeaderKey, MemberName, MemberRole, MemberState, MemberView, Revision, Timeline,
};

use super::Topology;
use super::member::Member;

/// An announced switchover that has not happened by then is let go if the leader still takes writes.
const ANNOUNCED_FOR: Duration = Duration::from_secs(5);
/// A scheduled switchover is waited for from this long before its time.
const SCHEDULE_AHEAD: Duration = Duration::from_secs(1);
/// Server-side closes of a leader within [`CLOSES_WITHIN`] that make us doubt it.
const CLOSES: u32 = 5;
const CLOSES_WITHIN: Duration = Duration::from_secs(1);
/// For so long after an event that concerns the owner, the source looks more often.
const UNEASY_FOR: Duration = Duration::from_secs(5);

/// Where the owner stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Being asked whether it takes writes.
    Pending {
        /// Since when. Only answers to questions of this time or later count.
        since: Moment,
        /// A member key proves something only if it was written after this revision.
        newer_than: Revision,
        /// Its server could not be reached then: it must also answer a connection since.
        unreached: Option<Moment>,
    },
    /// Takes writes.
    Confirmed {
        /// Since when.
        since: Moment,
        /// When the last question was sent that the member itself answered so; before the first, when the
        /// doubt began that the confirmation ended.
        last: Moment,
        /// Who said so first.
        by: &'static str,
    },
}

/// The member that may be the primary.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) member: MemberName,
    /// The revision of the leader key that named it.
    pub(super) key_revision: Revision,
    /// The members named it while the store was silent.
    pub(super) by_members: bool,
    pub(super) standing: Standing,
    /// It has been confirmed since it was named.
    was_confirmed: bool,
    named_at: Moment,
    /// When it was last named or doubted.
    pending_since: Moment,
    /// It is asked eagerly from here on: something has just happened to it.
    pub(super) eager_since: Moment,
    closes: u32,
    closes_since: Moment,
}

impl Owner {
    fn new(
        member: MemberName,
        key_revision: Revision,
        now: Moment,
        newer_than: Revision,
        reach: bool,
    ) -> Self {
        Self {
            member,
            key_revision,
            by_members: false,
            standing: Standing::Pending { since: now, newer_than, unreached: reach.then_some(now) },
            was_confirmed: false,
            named_at: now,
            pending_since: now,
            eager_since: now,
            closes: 0,
            closes_since: now,
        }
    }

    /// When its present standing began.
    pub(super) fn since(&self) -> Moment {
        match self.standing {
            Standing::Pending { since, .. } | Standing::Confirmed { since, .. } => since,
        }
    }

    /// Its server does not answer connections.
    pub(super) fn unreached(&self) -> bool {
        matches!(self.standing, Standing::Pending { unreached: Some(_), .. })
    }

    /// It took writes, and is being asked whether it still does.
    pub(super) fn doubted(&self) -> bool {
        self.was_confirmed && !self.confirmed()
    }

    pub(super) fn confirmed(&self) -> bool {
        matches!(self.standing, Standing::Confirmed { .. })
    }

    /// An answer proves nothing unless its question was sent at or after this moment. The server's own word is not made
    /// old by its Patroni's.
    fn counts_from(&self, by: Witness) -> Moment {
        match (self.standing, by) {
            (Standing::Confirmed { last, .. }, Witness::Rest) => last,
            (Standing::Confirmed { .. } | Standing::Pending { .. }, _) => self.pending_since,
        }
    }

    /// When it last said itself that it takes writes.
    pub(super) fn last_confirmed(&self) -> Option<Moment> {
        match self.standing {
            Standing::Confirmed { last, .. } => Some(last),
            Standing::Pending { .. } => None,
        }
    }
}

/// A switchover that we hold new sessions for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    /// The revision that announced it; an announcement is believed once.
    revision: Revision,
    pub(super) since: Moment,
    /// We no longer hold for it.
    let_go: bool,
}

impl Topology {
    /// The member that new write sessions go to, or why there is none.
    pub(super) fn primary(&self, now: Moment) -> Result<&Owner, NoRoute> {
        let known = self.view.as_ref().filter(|_| !self.remembered || self.owner.is_some());
        let view = known.ok_or(NoRoute::Discovering)?;
        if view.settings.standby_cluster {
            return Err(NoRoute::StandbyCluster);
        }
        let Some(owner) = &self.owner else {
            return Err(match &view.leader {
                Some(key) => NoRoute::LeaderUnknown { leader: key.member.clone() },
                None => NoRoute::NoLeaderYet,
            });
        };
        let leader = owner.member.clone();
        if view.leader.is_none() && !owner.by_members && !self.leads_without_key(owner, now) {
            return Err(NoRoute::LeaderKeyGone { last: Some(leader) });
        }
        if !owner.confirmed() {
            return Err(NoRoute::Pending { leader });
        }
        if self.announced.as_ref().is_some_and(|announced| !announced.let_go) {
            return Err(NoRoute::SwitchoverAnnounced { leader });
        }
        if self.policy.stale_primary == StalePrimary::Hold && self.is_stale(now) {
            return Err(NoRoute::Stale { leader });
        }
        if self.members.get(&leader).is_some_and(|member| member.admin != AdminMode::Ready) {
            return Err(NoRoute::Maintenance { member: leader });
        }
        Ok(owner)
    }

    /// The exceptions to "no key, no candidate": the cluster is paused, or the store has just come back without
    /// anybody's keys; and the last leader itself says that it takes writes, and nobody else does.
    pub(super) fn leads_without_key(&self, owner: &Owner, now: Moment) -> bool {
        let paused = self.view.as_ref().is_some_and(|view| view.settings.paused);
        let returning = !self.store.led_since_back && self.return_ends().is_some_and(|ends| now < ends);
        (paused || returning)
            && self.members.get(&owner.member).is_some_and(|member| member.claims(now).is_some())
            && !self.members.iter().any(|(name, m)| *name != owner.member && m.claims(now).is_some())
    }

    /// Whether neither the store nor the leader itself has confirmed the leader for a ttl.
    pub(super) fn is_stale(&self, now: Moment) -> bool {
        if !self.store.lost() {
            return false;
        }
        self.stale_at().is_none_or(|at| now >= at)
    }

    /// When the leader goes stale, if the store stays silent and the leader too.
    pub(super) fn stale_at(&self) -> Option<Moment> {
        let own_word = self.owner.as_ref().and_then(Owner::last_confirmed);
        own_word.max(self.store.last_alive).map(|last| last + self.ttl())
    }

    /// How long the leader key lives without being renewed.
    pub(super) fn ttl(&self) -> Duration {
        Duration::from_secs(self.view.as_ref().map_or(30, |view| view.settings.ttl).into())
    }

    /// The owner is asked whether it takes writes before anything new is sent to it.
    pub(super) fn doubt(&mut self, now: Moment, why: &'static str, reach: bool) {
        let newer_than = self.revision();
        self.touched = true;
        let Some(owner) = &mut self.owner else { return };
        owner.eager_since = now;
        owner.closes = 0;
        match &mut owner.standing {
            Standing::Pending { unreached, .. } => *unreached = reach.then_some(now).or(*unreached),
            Standing::Confirmed { .. } => {
                let unreached = reach.then_some(now);
                owner.standing = Standing::Pending { since: now, newer_than, unreached };
                owner.pending_since = now;
                let member = owner.member.clone();
                self.note(Loudness::Info, Some(member), What::PrimaryDoubted { why });
            }
        }
    }

    /// A server ended a session of its own accord: five of the owner's in a second, and it is doubted.
    pub(super) fn server_closed(&mut self, member: &MemberName, now: Moment) {
        let Some(owner) = self.owner.as_mut().filter(|owner| owner.member == *member) else { return };
        if now.since(owner.closes_since) > CLOSES_WITHIN {
            owner.closes = 0;
            owner.closes_since = now;
        }
        owner.closes += 1;
        if owner.closes == CLOSES {
            self.doubt(now, "the server closed several sessions at once", false);
        }
    }

    /// `asked_at`: when the owner was asked, if it was its own word that confirmed it.
    fn confirm(&mut self, now: Moment, asked_at: Option<Moment>, by: &'static str) {
        let Some(owner) = &mut self.owner else { return };
        let Standing::Pending { since, .. } = owner.standing else { return };
        self.touched = true;
        owner.standing = Standing::Confirmed { since: now, last: asked_at.unwrap_or(since), by };
        owner.was_confirmed = true;
        let member = owner.member.clone();
        let after_ms = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
        self.note(Loudness::Info, Some(member), What::PrimaryConfirmed { by, after_ms });
    }

    /// The leader key, as a new snapshot shows it.
    pub(super) fn leader_key(&mut self, key: Option<&LeaderKey>, had_key: bool, now: Moment) {
        let Some(key) = key else {
            if had_key {
                let last = self.owner.as_ref().map(|owner| owner.member.clone());
                self.note(Loudness::Warn, last, What::LeaderKeyGone);
            }
            if let Some(owner) = &mut self.owner {
                owner.by_members = false; // the store speaks again, and it knows of no leader
            }
            return;
        };
        let known = self.members.contains_key(&key.member);
        let led = !had_key && self.owner.as_ref().is_some_and(|owner| self.leads_without_key(owner, now));
        self.store.led_since_back = true;
        match &mut self.owner {
            Some(owner) if owner.member == key.member && (owner.by_members || led) => {
                // It led before the store could say so: nothing jumps.
                owner.by_members = false;
                owner.key_revision = key.revision;
            }
            Some(owner) if owner.member == key.member && owner.key_revision == key.revision => {}
            Some(owner) if owner.member == key.member => {
                owner.key_revision = key.revision;
                self.doubt(now, "it was named leader anew", false);
            }
            // A name that nobody bears takes no good route away, but the leader has to speak for itself.
            Some(_) if !known => {
                if self.unknown_leader.as_ref() != Some(&key.member) {
                    self.doubt(now, "the leader key names a member that nobody knows", false);
                }
            }
            None if !known => {}
            Some(_) | None => self.name_owner(key.member.clone(), key.revision, now),
        }
        self.unknown_leader = (!known).then(|| key.member.clone());
    }

    /// Another member leads: the old one's sessions end in this very tick.
    fn name_owner(&mut self, member: MemberName, key_revision: Revision, now: Moment) {
        self.touched = true;
        let old = self.owner.take().map(|owner| owner.member);
        let reach = self.members.get(&member).is_some_and(|member| !member.health.is_up());
        self.owner = Some(Owner::new(member.clone(), key_revision, now, self.revision(), reach));
        self.announced = None;
        self.forget_lag();
        if old.is_some() {
            self.unrest_ends(now);
        }
        self.note(Loudness::Info, Some(member), What::LeaderNamed);
        if let Some(old) = old {
            // Whatever part it was granted for: it may go on taking writes that nobody will ever see.
            self.end_terms(&old, RevokeReason::LeaderChanged, |_, _| true);
        }
        self.end_promoted_terms();
    }

    /// A switchover that names this leader, as a new snapshot shows it: begin to hold, or let go.
    pub(super) fn announcement(&mut self, announcement: Option<&Announcement>, now: Now) {
        let Some(owner) = &self.owner else { return };
        let leader = owner.member.clone();
        // Patroni refuses whom it does not know and who leads already, but only at its next look: nobody waits for that.
        let possible = |to: &MemberName| *to != leader && self.members.get(to).is_some_and(Member::present);
        let concerns = |a: &&Announcement| match (&a.leader, &a.candidate) {
            (Some(from), to) => *from == leader && to.as_ref().is_none_or(possible),
            (None, Some(to)) => possible(to),
            (None, None) => false,
        };
        let before = self.announced.clone();
        match (announcement.filter(concerns), self.announced.take()) {
            (Some(a), Some(announced)) if announced.revision == a.revision => {
                self.announced = Some(announced);
            }
            (Some(a), last) => {
                let scheduled = a.scheduled_at.is_some_and(|at| {
                    let ahead = u64::try_from(SCHEDULE_AHEAD.as_millis()).unwrap_or(u64::MAX);
                    at > now.wall.0.saturating_add(ahead)
                });
                if !scheduled {
                    self.announced = Some(Announced { revision: a.revision, since: now.mono, let_go: false });
                    let candidate = a.candidate.clone();
                    self.note(Loudness::Info, Some(leader), What::SwitchoverAnnounced { candidate });
                } else if last.is_some_and(|announced| !announced.let_go) {
                    let why = "it was put off";
                    self.note(Loudness::Info, Some(leader), What::SwitchoverAbandoned { why });
                }
            }
            (None, Some(announced)) if !announced.let_go => {
                self.note(Loudness::Info, Some(leader), What::SwitchoverAbandoned { why: "it was cleared" });
            }
            (None, _) => {}
        }
        self.touched |= self.announced != before;
    }

    /// Whether the source should look more often than in peace: a primary is wanted and there is none, or something has
    /// just happened to it.
    pub fn is_uneasy(&self, now: Moment) -> bool {
        let wanted = self.policy.listeners.iter().any(|listener| listener.target == Target::Primary);
        let just_now = |owner: &Owner| now.since(owner.eager_since) < UNEASY_FOR;
        let resting = |why: NoRoute| matches!(why, NoRoute::StandbyCluster | NoRoute::Maintenance { .. });
        self.owner.as_ref().is_some_and(just_now)
            || wanted && self.primary(now).err().is_some_and(|why| !resting(why))
    }

    /// When an announcement needs looking at again.
    pub(super) fn announcement_timeout(&self, now: Now) -> Option<Moment> {
        let scheduled = || {
            let at = self.view.as_ref()?.announcement.as_ref()?.scheduled_at?;
            let ahead = u64::try_from(SCHEDULE_AHEAD.as_millis()).unwrap_or(u64::MAX);
            let left = at.saturating_sub(ahead).saturating_sub(now.wall.0);
            (left > 0).then(|| now.mono + Duration::from_millis(left))
        };
        match &self.announced {
            Some(announced) if !announced.let_go => Some(announced.since + ANNOUNCED_FOR),
            Some(_) | None => scheduled(),
        }
    }

    /// The owner's own key was written anew: does it still speak as a primary? Does it at last?
    pub(super) fn owner_key_changed(&mut self, before: &MemberView, after: &MemberView, now: Moment) {
        let changed = (before.role, &before.state) != (after.role, &after.state);
        let rises = matches!(after.role, MemberRole::Primary | MemberRole::Promoted)
            && after.state == MemberState::Running;
        if changed && let Some(owner) = &mut self.owner {
            owner.eager_since = now; // good news or bad, its own word is wanted
        }
        if changed && !rises {
            self.doubt(now, "it is no longer shown as a running primary", false);
        } else if before.position.is_some() && after.position.is_none() {
            self.doubt(now, "its member key has no position any more", false);
        } else if before.addresses != after.addresses || before.api != after.api {
            self.doubt(now, "it moved to another address", false);
        }
    }

    /// The weakest witness: its member key, written after the leader key and after every doubt and denial.
    pub(super) fn confirm_by_key(&mut self, now: Moment) {
        let Some(owner) = &self.owner else { return };
        let Standing::Pending { newer_than, .. } = owner.standing else { return };
        let Some(member) = self.members.get(&owner.member) else { return };
        let view = &member.view;
        let proves = member.present()
            && self.is_reached(owner)
            && view.role == MemberRole::Primary
            && view.state == MemberState::Running
            && view.position.is_some()
            && member.server_says(now) != Some(false)
            && view.revision > newer_than.max(owner.key_revision);
        if proves && self.unknown_leader.is_none() && !self.store.lost() {
            self.confirm(now, None, "member-key");
        }
    }

    /// Whether the owner's server has answered a connection since it last failed to.
    fn is_reached(&self, owner: &Owner) -> bool {
        let served_at = self.members.get(&owner.member).and_then(|member| member.health.served_at);
        match owner.standing {
            Standing::Pending { unreached: Some(failed), .. } => served_at.is_some_and(|at| at >= failed),
            Standing::Pending { unreached: None, .. } | Standing::Confirmed { .. } => true,
        }
    }

    /// The owner answered a question.
    pub(super) fn owner_answered(&mut self, answer: &Answer, now: Moment) {
        let Ok(status) = &answer.outcome else { return };
        let Some(owner) = &self.owner else { return };
        if answer.asked_at < owner.counts_from(answer.by) {
            // It speaks of a time before the doubt. The server's own denial is a reason for another one.
            if answer.by == Witness::Sql && !status.writable() && answer.asked_at >= owner.named_at {
                self.doubt(now, "its server denied late that it takes writes", false);
            }
            return;
        }
        let last_affirmed = owner.last_confirmed();
        // Where the server itself speaks, its Patroni may raise doubts, but neither end them nor cut sessions. Nor does it
        // raise the same one again and again.
        let member = self.members.get(&answer.member).filter(|_| answer.by == Witness::Rest);
        let server_says = member.and_then(|member| member.server_says(answer.asked_at));
        let turned = member.is_some_and(|member| member.turned);
        match (status.writable(), server_says) {
            (true, Some(false)) => {}
            (true, _) => self.owner_affirms(answer, now),
            (false, Some(true)) if turned => self.doubt(now, "its Patroni contradicts its server", false),
            (false, Some(true)) => {}
            // Asked before the last word that affirms: a reason to ask again, not to cut.
            (false, _) if last_affirmed.is_some_and(|last| answer.asked_at < last) => {
                self.doubt(now, "its server denied late that it takes writes", false);
            }
            (false, _) => self.owner_denies(status, now),
        }
    }

    fn owner_affirms(&mut self, answer: &Answer, now: Moment) {
        let asked_at = answer.asked_at;
        let reached = self.owner.as_ref().is_some_and(|owner| self.is_reached(owner));
        let Some(owner) = &mut self.owner else { return };
        match &mut owner.standing {
            Standing::Pending { .. } if !reached => {}
            Standing::Pending { .. } => self.confirm(now, Some(asked_at), answer.by.as_str()),
            Standing::Confirmed { last, .. } => *last = asked_at.max(*last),
        }
        let member = self.owner.as_ref().map(|owner| owner.member.clone());
        if let Some(announced) = self.announced.as_mut().filter(|announced| !announced.let_go)
            && asked_at >= announced.since + ANNOUNCED_FOR
        {
            announced.let_go = true;
            self.touched = true;
            self.note(
                Loudness::Warn,
                member,
                What::SwitchoverAbandoned { why: "the leader still takes writes" },
            );
        }
    }

    fn owner_denies(&mut self, status: &Status, now: Moment) {
        let newer_than = self.revision();
        let Some(owner) = &mut self.owner else { return };
        let in_recovery = matches!(status.role, MemberRole::Replica | MemberRole::StandbyLeader)
            && status.state == MemberState::Running;
        match &mut owner.standing {
            // A denial outweighs every member key that was written before it.
            Standing::Pending { newer_than: key_after, .. } => *key_after = newer_than,
            Standing::Confirmed { .. } if in_recovery => {
                self.touched = true;
                owner.standing = Standing::Pending { since: now, newer_than, unreached: None };
                owner.pending_since = now;
                owner.eager_since = now;
                let member = owner.member.clone();
                self.note(Loudness::Warn, Some(member), What::PrimaryDemoted);
            }
            Standing::Confirmed { .. } => self.doubt(now, "it says that it is not a running primary", false),
        }
        if in_recovery && let Some(member) = self.owner.as_ref().map(|owner| owner.member.clone()) {
            self.end_terms(&member, RevokeReason::Demoted, |_, role| role == GrantRole::Primary);
        }
    }

    /// While the store is silent: has a fail-over happened that only the members know of?
    ///
    /// A claim needs a higher timeline than the owner's and a Patroni that sees the store (or that may lead
    /// without it). The last leader may also take up again what the vanished key took from it.
    pub(super) fn follow_members(&mut self, now: Moment) {
        if !self.store.lost() {
            return;
        }
        if self.owner.is_none() && self.members.values().any(|member| self.is_unheard(member)) {
            return; // whoever answers first need not be the right one
        }
        let ttl = self.ttl();
        let owner = self.owner.as_ref();
        let owner_timeline = owner.and_then(|owner| self.best_timeline(&owner.member));
        let claims = |(name, member): (&MemberName, &Member)| {
            let status = member.claims(now)?;
            let leads = member.sees_store(now, ttl) || member.leads_without_store(now);
            leads.then(|| (status.timeline, name.clone()))
        };
        let claims: Vec<_> = self.members.iter().filter_map(claims).collect();
        let Some(timeline) = claims.iter().map(|(timeline, _)| *timeline).max() else { return };
        let mut best = claims.into_iter().filter(|(claimed, _)| *claimed == timeline).map(|(_, name)| name);
        let (Some(name), None) = (best.next(), best.next()) else { return }; // two of them: whoever leads stays
        let keyless = self.view.as_ref().is_some_and(|view| view.leader.is_none());
        match owner {
            Some(owner) if owner.member == name => {
                if keyless && let Some(owner) = &mut self.owner {
                    self.touched |= !owner.by_members;
                    owner.by_members = true;
                }
            }
            Some(_) if timeline <= owner_timeline => {}
            Some(_) | None => {
                let number = timeline.map_or(0, |timeline| timeline.0);
                self.note(Loudness::Warn, Some(name.clone()), What::FollowedMembers { timeline: number });
                let revision = self.view.as_ref().map_or(Revision(0), |view| view.revision);
                self.name_owner(name, revision, now);
                if let Some(owner) = &mut self.owner {
                    owner.by_members = true;
                }
            }
        }
    }

    /// It can be asked, and no question to it has come back yet, with an answer or without.
    fn is_unheard(&self, member: &Member) -> bool {
        member.answer.is_none() && (member.view.api.is_some() || self.policy.sql)
    }

    /// The highest timeline that the member was ever seen on.
    fn best_timeline(&self, name: &MemberName) -> Option<Timeline> {
        let member = self.members.get(name)?;
        let answered = member.last_status().and_then(|status| status.timeline);
        let history = self.view.as_ref().and_then(|view: &ClusterView| view.history.last());
        let by_history = history.map(|switch| Timeline(switch.timeline.0.saturating_add(1)));
        member.view.timeline.max(answered).max(by_history)
    }
}
