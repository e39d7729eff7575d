//! What must be true after every step, whatever happened.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pointsman_config::StalePrimary;
use pointsman_core::event::{AdminMode, Answer, Effect, Event, StoreCondition, What, Witness};
use pointsman_core::route::{GrantRole, RouteTable, Term};
use pointsman_core::time::Moment;
use pointsman_core::view::{
    ClusterView, MemberName, MemberRole, MemberState, MemberView, Replication, Revision,
};

use crate::clients::Clients;

/// A claim of a paused leader without a key is good for so long.
const FRESH: Duration = Duration::from_secs(3);
/// The `ttl` of every world.
const TTL: Duration = Duration::from_secs(30);
/// A `loop_wait`, and how late a key may be: who does not stream is not excused for longer by itself.
const LOOK: Duration = Duration::from_secs(13);
/// Nor for longer by whatever happened to the leader or the store.
const GRACE: Duration = Duration::from_secs(30);

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
    /// When the store came back, if it has not told of a leader since: the last leader may go on by its own word.
    keyless_since: Option<Moment>,
    /// Just before the last event somebody led: by the key, or by his own word while the store was silent.
    led_before: bool,
    /// When the store came back last: who was known has a ttl to write its key again.
    back_at: Option<Moment>,
    ended: BTreeSet<Term>,
    asked: BTreeMap<(MemberName, Witness), Moment>,
    table: Option<RouteTable>,
    promoted_away: BTreeMap<Term, MemberName>,
    /// `stale_primary = "hold"`.
    pub(crate) holds_stale: bool,
    last_alive: Moment,
    /// What each witness said last of each member, and when it was asked: whether it takes writes.
    words: BTreeMap<(MemberName, Witness), (Moment, bool)>,
    /// When the named leader was asked that last answered so, whatever it said since.
    last_affirmed: Moment,
    /// Superseded by what is about to be handed in.
    dooming: Vec<MemberName>,
    operated: BTreeMap<MemberName, AdminMode>,
    view: Option<ClusterView>,
    /// When each member was last known to stream, by its key or its own word.
    streamed: BTreeMap<MemberName, Moment>,
    /// The leader has been named or doubted, and not confirmed since.
    pending: bool,
    /// When there was last a reason to excuse replicas that do not follow.
    unrest: Moment,
}

impl Checker {
    pub(crate) fn new() -> Self {
        Self { evidence_counts: true, ..Self::default() }
    }

    pub(crate) fn forget_evidence_for_ever(&mut self) {
        self.evidence_counts = false;
    }

    /// Something is about to happen: the table in force must have been right until now.
    pub(crate) fn check_until(&self, now: Moment) {
        self.check_age(now, false);
        self.check_streaming(now, false);
    }

    /// An event is about to be handed in.
    pub(crate) fn before(&mut self, event: &Event, now: Moment, clients: &mut Clients) {
        match event {
            Event::View(view) => {
                self.last_alive = now;
                let was_standby = self.view.as_ref().is_some_and(|before| before.settings.standby_cluster);
                if view.settings.standby_cluster && !was_standby {
                    self.named.iter().for_each(|named| clients.doom(named, true));
                }
                self.note_streaming(now);
                self.view = Some(ClusterView::clone(view));
                self.note_streaming(now);
            }
            Event::Policy(policy) => self.holds_stale = policy.stale_primary == StalePrimary::Hold,
            Event::Admin { member, mode } => {
                self.operated.insert(member.clone(), *mode);
            }
            Event::Store(StoreCondition::Alive) => {
                self.remember_lead(now);
                self.last_alive = now;
            }
            Event::Store(StoreCondition::Lost { .. })
            | Event::Answer(_)
            | Event::Heard(_)
            | Event::Dial { .. }
            | Event::ServerClosed { .. }
            | Event::Probe { .. }
            | Event::Remembered(_)
            | Event::Tick => {}
        }
        for old in std::mem::take(&mut self.dooming) {
            clients.doom(&old, false);
        }
    }

    /// Claims and confirmations grow old by themselves. After a step none that counts has reached its limit; between
    /// steps none may pass it, or else the topology has overslept.
    fn check_age(&self, now: Moment, after: bool) {
        let Some(writer) = self.writer() else { return };
        let too_old =
            |since: Moment, limit: Duration| now.since(since) > limit || after && now.since(since) == limit;
        if self.store_lost {
            let confirmed = self.last_alive.max(self.last_affirmed);
            assert!(!(self.holds_stale && too_old(confirmed, TTL)), "{writer} is routed to, and stale");
        } else if !self.key_present && !self.followed {
            let returning = self.keyless_since.is_some_and(|at| !too_old(at, TTL));
            assert!(self.paused || returning, "{writer} is routed to without a leader key");
            let claim = self.affirmed(writer).unwrap_or_default();
            assert!(!too_old(claim, FRESH), "{writer} is routed to without a leader key, by an old claim");
            let members: BTreeSet<_> = self.words.keys().map(|(member, _)| member).collect();
            let fresh = |member| self.affirmed(member).is_some_and(|at| now.since(at) < FRESH);
            let mut others = members.into_iter().filter(|member| *member != writer && fresh(member));
            assert_eq!(
                others.next(),
                None,
                "{writer} is routed to without a leader key, and another one claims"
            );
        }
    }

    /// Whose key says that they stream, and the leader of a standby cluster.
    fn note_streaming(&mut self, now: Moment) {
        let members = self.view.iter().flat_map(|view| view.members.values());
        // Whom the leader of a standby cluster follows is not of this cluster: it is nearest to it in any case.
        let leads = |member: &&MemberView| self.standby_cluster && self.named.as_ref() == Some(&member.name);
        let streaming =
            members.filter(|member| member.replication != Replication::NotStreaming || leads(member));
        self.streamed.extend(streaming.map(|member| (member.name.clone(), now)));
    }

    /// Who is routed to for reads streams, or did so just now. Time that the store was silent does not count, but is
    /// followed by no more than a [`GRACE`].
    fn check_streaming(&self, now: Moment, after: bool) {
        let (Some(table), Some(view)) = (&self.table, &self.view) else { return };
        let too_old =
            |since: Moment, limit: Duration| now.since(since) > limit || after && now.since(since) == limit;
        let candidates = table.routes.values().filter_map(|route| route.candidates.as_ref().ok());
        for candidate in candidates.flat_map(|list| list.iter()) {
            let Some(key) = view.members.get(&candidate.member) else { continue };
            let leads = self.named.as_ref() == Some(&key.name);
            if leads || key.replication != Replication::NotStreaming {
                continue;
            }
            let member = &candidate.member;
            let Some(streamed) = self.streamed.get(member) else {
                panic!("{member} is routed to for reads, and never streamed")
            };
            let excused = self.store_lost || !too_old(self.unrest, GRACE) || !too_old(*streamed, LOOK);
            assert!(excused, "{member} is routed to for reads, and has not streamed since {streamed:?}");
        }
    }

    fn remember_lead(&mut self, now: Moment) {
        let claim = self.named.as_ref().and_then(|named| self.affirmed(named));
        let by_word = self.store_lost && claim.is_some_and(|at| now.since(at) < TTL);
        self.led_before = self.key_present || self.followed || by_word;
    }

    /// When the member was asked that last answered "I take writes", if that was its last word. The server's own word
    /// outranks its Patroni's, unless it is much older.
    fn affirmed(&self, member: &MemberName) -> Option<Moment> {
        let word = |witness| self.words.get(&(member.clone(), witness)).copied();
        let (rest, sql) = (word(Witness::Rest), word(Witness::Sql));
        let best = match (sql, rest) {
            (Some(sql), Some(rest)) if sql.0 + FRESH < rest.0 => rest,
            (Some(sql), _) => sql,
            (None, rest) => rest?,
        };
        best.1.then_some(best.0)
    }

    /// Whoever is routed to for writes has not just denied it itself, whatever its Patroni says.
    fn check_word(&self, now: Moment) {
        let Some(writer) = self.writer() else { return };
        let Some((asked_at, writable)) = self.words.get(&(writer.clone(), Witness::Sql)) else { return };
        let counts = *asked_at >= self.named_at && now.since(*asked_at) < FRESH;
        assert!(
            *writable || !counts,
            "{writer} is routed to, and its server itself denies that it takes writes"
        );
    }

    /// The one member that new write sessions go to.
    fn writer(&self) -> Option<&MemberName> {
        let routes = self.table.as_ref()?.routes.values();
        let candidates =
            routes.filter_map(|route| route.candidates.as_ref().ok()).flat_map(|list| list.iter());
        let mut writers = candidates.filter(|candidate| candidate.role == GrantRole::Primary);
        writers.next().map(|candidate| &candidate.member)
    }

    /// A snapshot is about to be handed in. `remembered`: the members that the topology knows by now; any
    /// other name in the leader key means nothing.
    pub(crate) fn saw_view(&mut self, view: &ClusterView, remembered: &BTreeSet<MemberName>, now: Moment) {
        self.remember_lead(now);
        if !self.key_present {
            self.unrest = now;
        }
        self.store_lost = false;
        self.paused = view.settings.paused;
        self.standby_cluster = view.settings.standby_cluster;
        self.key_present = view.leader.is_some();
        self.keyless_since = self.keyless_since.filter(|_| view.leader.is_none());
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
                self.dooming.push(old.clone());
                self.superseded.insert(old);
            }
            self.last_affirmed = Moment::ZERO;
            self.superseded.remove(member);
            self.named_at = now;
            self.named_revision = revision;
            (self.own_word, self.key_word) = (false, false);
        }
    }

    /// An answer is about to be handed in.
    pub(crate) fn saw_answer(&mut self, answer: &Answer, now: Moment) {
        self.asked.remove(&(answer.member.clone(), answer.by));
        if answer.outcome.as_ref().is_ok_and(|status| status.replication == Replication::Streaming) {
            // It counts for a while, as if it streamed.
            self.streamed.insert(answer.member.clone(), now.max(answer.asked_at + FRESH));
        }
        let writable = answer.outcome.as_ref().is_ok_and(pointsman_core::event::Status::writable);
        if answer.outcome.is_ok() {
            self.words.insert((answer.member.clone(), answer.by), (answer.asked_at, writable));
        }
        if writable && self.named.as_ref() == Some(&answer.member) && answer.asked_at >= self.named_at {
            self.own_word = true;
            self.last_affirmed = self.last_affirmed.max(answer.asked_at);
        }
    }

    /// What came out of one step.
    pub(crate) fn saw_effects(&mut self, effects: &[Effect], now: Moment, clients: &mut Clients) {
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
                    clients.revoked(revocation.term);
                }
                Effect::Ask { member, question, deadline } => {
                    let out = self.asked.insert((member.clone(), question.witness()), now + *deadline);
                    assert!(out.is_none_or(|until| until < now), "{member} was asked twice at a time");
                }
                Effect::Note(note) => {
                    self.store_lost |= matches!(note.what, What::StoreLost { .. });
                    let named = matches!(note.what, What::LeaderNamed);
                    let doubted = matches!(note.what, What::PrimaryDoubted { .. } | What::PrimaryDemoted);
                    let confirmed = matches!(note.what, What::PrimaryConfirmed { .. });
                    self.pending = (self.pending || named || doubted) && !confirmed;
                    if named || doubted || confirmed || matches!(note.what, What::StoreBack { .. }) {
                        self.unrest = now;
                    }
                    if matches!(note.what, What::StoreBack { .. }) {
                        self.back_at = Some(now);
                        self.keyless_since = (!self.key_present && self.led_before).then_some(now);
                    }
                    if let (What::FollowedMembers { .. }, Some(member)) = (&note.what, &note.member) {
                        self.name(member, self.named_revision, now);
                        self.followed = true;
                        self.own_word = true; // the claim that was followed; the topology asks again
                    }
                }
                Effect::Probe { .. } => {}
            }
        }
        // Those whom the members superseded while the store was silent are cut in the step that says so.
        for old in std::mem::take(&mut self.dooming) {
            clients.doom(&old, false);
        }
        if self.pending || !self.key_present {
            self.unrest = now;
        }
        self.check_streaming(now, true);
        self.check_table(effects);
        self.check_reads(effects, now);
        self.check_age(now, true);
        self.check_word(now);
    }

    /// Who is routed to for reads is fit for them, by the last snapshot and the operators.
    fn check_reads(&self, effects: &[Effect], now: Moment) {
        let published = effects.iter().any(|effect| matches!(effect, Effect::Publish(_)));
        let (Some(table), Some(view), true) = (&self.table, &self.view, published) else { return };
        let candidates = table.routes.values().filter_map(|route| route.candidates.as_ref().ok());
        for candidate in candidates.flat_map(|list| list.iter()) {
            let member = &candidate.member;
            let ready = self.operated.get(member).is_none_or(|mode| *mode == AdminMode::Ready);
            assert!(ready, "{member} is routed to, but an operator took it out");
            let leads = self.named.as_ref() == Some(member) && !view.settings.standby_cluster;
            assert!(
                !(leads && candidate.role == GrantRole::Replica),
                "{member} leads, and is routed to as a replica"
            );
            if leads {
                continue;
            }
            let Some(key) = view.members.get(member) else {
                let kept = self.back_at.is_some_and(|at| now.since(at) < TTL);
                assert!(kept, "{member} is routed to for reads, and its key is gone");
                continue;
            };
            assert_eq!(key.state, MemberState::Running, "{member} is routed to for reads");
            assert_ne!(
                key.role,
                MemberRole::Primary,
                "{member} is routed to for reads, and calls itself primary"
            );
            assert!(!key.tags.noloadbalance, "{member} is routed to, but it is tagged");
        }
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
            let excused = self.paused || self.followed || self.store_lost || self.keyless_since.is_some();
            assert!(self.key_present || excused, "{writer} is routed to without a leader key");
            assert!(!self.standby_cluster, "{writer} is routed to for writes in a standby cluster");
        }
    }
}
