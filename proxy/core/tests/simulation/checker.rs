//! What must be true after every step, whatever happened.

use std::collections::{BTreeMap, BTreeSet};

use pointsman_core::event::{Answer, Effect, What};
use pointsman_core::route::{GrantRole, RouteTable, Term};
use pointsman_core::time::Moment;
use pointsman_core::view::{ClusterView, MemberName, MemberRole, MemberState, Revision};

/// Follows a topology from outside and remembers only what it was told and what it said.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    /// The last member that was named leader, by the store or (while it was silent) by the members.
    named: Option<MemberName>,
    named_at: Moment,
    named_revision: Revision,
    /// Somebody else was named since.
    superseded: BTreeSet<MemberName>,
    /// The named leader said itself, after it was named, that it takes writes.
    own_word: bool,
    /// Its member key said so, written after the leader key.
    key_word: bool,
    evidence_counts: bool,
    key_present: bool,
    paused: bool,
    standby_cluster: bool,
    followed: bool,
    /// While the store is silent the last leader may take up again what a vanished key took from it.
    store_lost: bool,
    ended: BTreeSet<Term>,
    asked: BTreeMap<MemberName, Moment>,
    table: Option<RouteTable>,
    promoted_away: BTreeMap<Term, MemberName>,
}

impl Checker {
    pub(crate) fn new() -> Self {
        Self { evidence_counts: true, ..Self::default() }
    }

    pub(crate) fn forget_evidence_for_ever(&mut self) {
        self.evidence_counts = false;
    }

    /// A snapshot is about to be handed in. `remembered`: the members that the topology knows by now; any
    /// other name in the leader key means nothing.
    pub(crate) fn saw_view(&mut self, view: &ClusterView, remembered: &BTreeSet<MemberName>, now: Moment) {
        self.store_lost = false;
        self.paused = view.settings.paused;
        self.standby_cluster = view.settings.standby_cluster;
        self.key_present = view.leader.is_some();
        self.followed &= view.leader.is_some();
        let known = |member: &MemberName| view.members.contains_key(member) || remembered.contains(member);
        if let Some(key) = view.leader.as_ref().filter(|key| known(&key.member)) {
            self.name(&key.member, key.revision, now);
        }
        let Some(named) = self.named.clone() else { return };
        if let Some(member) = view.members.get(&named) {
            self.key_word |= member.role == MemberRole::Primary
                && member.state == MemberState::Running
                && member.revision > self.named_revision;
        }
    }

    fn name(&mut self, member: &MemberName, revision: Revision, now: Moment) {
        if self.named.as_ref() != Some(member) {
            if let Some(old) = self.named.replace(member.clone()) {
                self.superseded.insert(old);
            }
            self.superseded.remove(member);
            self.named_at = now;
            self.named_revision = revision;
            (self.own_word, self.key_word) = (false, false);
        }
    }

    /// An answer is about to be handed in.
    pub(crate) fn saw_answer(&mut self, answer: &Answer) {
        self.asked.remove(&answer.member);
        let writable = answer.outcome.as_ref().is_ok_and(pointsman_core::event::Status::writable);
        if writable && self.named.as_ref() == Some(&answer.member) && answer.asked_at >= self.named_at {
            self.own_word = true;
        }
    }

    /// What came out of one step.
    pub(crate) fn saw_effects(&mut self, effects: &[Effect], now: Moment) {
        let mut revoking = false;
        let before = self.table.as_ref().map(|table| table.generation).unwrap_or_default();
        for effect in effects {
            match effect {
                Effect::Publish(table) => {
                    assert!(!revoking, "a table was published after a revocation of the same step");
                    assert_eq!(
                        table.generation,
                        before + 1,
                        "one publication in a step, one generation more"
                    );
                    self.table = Some(RouteTable::clone(table));
                }
                Effect::Revoke(revocation) => {
                    revoking = true;
                    assert!(self.ended.insert(revocation.term), "a term ended twice: {revocation:?}");
                    self.promoted_away.remove(&revocation.term);
                }
                Effect::Ask { member, deadline, .. } => {
                    let out = self.asked.insert(member.clone(), now + *deadline);
                    assert!(out.is_none_or(|until| until < now), "{member} was asked twice at a time");
                }
                Effect::Note(note) => {
                    self.store_lost |= matches!(note.what, What::StoreLost { .. });
                    if let (What::FollowedMembers { .. }, Some(member)) = (&note.what, &note.member) {
                        self.name(member, self.named_revision, now);
                        self.followed = true;
                        self.own_word = true; // the claim that was followed; the topology asks again
                    }
                }
                Effect::Probe { .. } => {}
            }
        }
        self.check_table(effects);
    }

    fn check_table(&mut self, effects: &[Effect]) {
        let Some(table) = &self.table else { return };
        let published = effects.iter().any(|effect| matches!(effect, Effect::Publish(_)));
        let mut writers = BTreeSet::new();
        for (listener, route) in &table.routes {
            let Ok(candidates) = &route.candidates else { continue };
            assert!(!candidates.is_empty(), "{listener} has an empty list of candidates");
            for candidate in candidates.iter() {
                assert!(!self.ended.contains(&candidate.term), "{listener} routes by a term that has ended");
                if matches!(candidate.role, GrantRole::Primary | GrantRole::Fallback) {
                    assert_eq!(candidates.len(), 1, "{listener} has a primary among others");
                    writers.insert(candidate.member.clone());
                }
                if candidate.role == GrantRole::Primary {
                    self.promoted_away.insert(candidate.term, candidate.member.clone());
                }
            }
        }
        assert!(writers.len() <= 1, "more than one primary: {writers:?}");
        for (term, member) in &self.promoted_away {
            let open = !self.superseded.contains(member);
            assert!(open, "{member} was superseded, but its write sessions of {term:?} were not cut");
        }
        let Some(writer) = writers.first() else { return };
        assert!(
            !self.superseded.contains(writer),
            "{writer} is routed to, but its leadership was superseded"
        );
        assert_eq!(Some(writer), self.named.as_ref(), "{writer} is routed to, but was never named");
        assert!(
            (self.own_word || self.key_word) && self.evidence_counts,
            "{writer} is routed to without evidence that it takes writes"
        );
        if published {
            let excused = self.paused || self.followed || self.store_lost;
            assert!(self.key_present || excused, "{writer} is routed to without a leader key");
            assert!(!self.standby_cluster, "{writer} is routed to for writes in a standby cluster");
        }
    }
}
