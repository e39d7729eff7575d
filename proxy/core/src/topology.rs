//! Events in, route tables and revocations out: the only writer of routes, for one cluster.
//!
//! [`Topology::handle`] is the whole interface: it takes the time and one [`Event`] and returns the
//! [`Effect`]s in the order in which they must be carried out. It must be called again at the latest at
//! [`Topology::poll_timeout`], with [`Event::Tick`] if nothing else has happened.
//!
//! Invariant: at any instant at most one member is a candidate for `primary`.
//! Invariant: once another member has been named leader, the old one is no candidate again until it is
//! named again; the terms it granted are closed in the same step, after the table that drops it.
//! Invariant: a table is published before the revocations that belong to it.

mod asking;
mod describe;
mod following;
mod lag;
mod member;
mod primary;
mod replicas;
mod terms;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::{ClusterName, ListenerName, Target};

use crate::event::{
    AdminMode, Answer, DialOutcome, Effect, Event, Loudness, Note, Policy, Status, StoreCondition, What,
};
use crate::route::{GrantRole, RevokeReason, RouteTable};
use crate::time::{Moment, Now};
use crate::view::{ClusterSettings, ClusterView, Complaint, MemberName, MemberView, Revision, SyncView};

use self::following::Unrest;
use self::lag::Optimes;
use self::member::{HealthChange, Member};
use self::primary::{Announced, Owner};
use self::terms::Terms;

/// A store without any sign of life for so long is taken for lost, whatever its source says.
const SILENCE: Duration = Duration::from_secs(15);
/// The topology looks at the world this often at least.
const AT_LEAST_EVERY: Duration = Duration::from_secs(3);
/// How often positions that stand still are read.
const STILL_EVERY: Duration = Duration::from_secs(1);
/// The same nonsense is said again when it has not been seen for so long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// How much nonsense is remembered as said.
const COMPLAINTS: usize = 1000;
/// A member whose key has been gone for so long is forgotten.
const FORGET: Duration = Duration::from_secs(600);

/// The condition of the discovery source.
#[derive(Clone, Debug, Default)]
struct Store {
    /// Why it is lost, and since when; `None`: alive, or never reached.
    lost: Option<(Moment, String)>,
    last_alive: Option<Moment>,
    /// When it came back last.
    back_at: Option<Moment>,
    /// It has told of a leader since it came back.
    led_since_back: bool,
    views: u64,
}

impl Store {
    fn lost(&self) -> bool {
        self.lost.is_some()
    }

    fn lost_since(&self) -> Option<Moment> {
        self.lost.as_ref().map(|(since, _)| *since)
    }
}

/// One cluster, as this load balancer knows it.
#[derive(Clone, Debug)]
pub struct Topology {
    cluster: ClusterName,
    policy: Policy,
    store: Store,
    view: Option<ClusterView>,
    /// `view` is not the store's word of now, but what was remembered of it: it says whom to ask.
    remembered: bool,
    complaints: BTreeSet<Complaint>,
    /// Which of them were said, and when.
    complained: BTreeMap<Complaint, Moment>,
    /// When positions that stand still are read next.
    still_due: Moment,
    members: BTreeMap<MemberName, Member>,
    owner: Option<Owner>,
    /// The leader key names somebody whom we have never seen.
    unknown_leader: Option<MemberName>,
    announced: Option<Announced>,
    unrest: Option<Unrest>,
    last_sync: Option<(SyncView, Moment)>,
    optimes: Optimes,
    terms: Terms,
    table: Arc<RouteTable>,
    /// Something has happened since the last weighing that the table may depend on.
    touched: bool,
    /// When everything is weighed again even if nothing happens.
    weigh_at: Moment,
    dice: u64,
    effects: Vec<Effect>,
}

impl Topology {
    /// A cluster of which nothing is known yet. `seed` drives the jitter of questions and nothing else.
    pub fn new(cluster: ClusterName, policy: Policy, seed: u64) -> Self {
        Self {
            cluster,
            policy,
            store: Store::default(),
            view: None,
            remembered: false,
            complaints: BTreeSet::new(),
            complained: BTreeMap::new(),
            still_due: Moment::ZERO,
            members: BTreeMap::new(),
            owner: None,
            unknown_leader: None,
            announced: None,
            unrest: None,
            last_sync: None,
            optimes: Optimes::default(),
            terms: Terms::default(),
            table: Arc::new(RouteTable { generation: 0, routes: BTreeMap::new() }),
            touched: true,
            weigh_at: Moment::ZERO,
            dice: seed | 1,
            effects: Vec::new(),
        }
    }

    /// Takes in one event; returns what the shell has to do, in order.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Effect> {
        self.touched |= matches!(event, Event::View(_) | Event::Admin { .. } | Event::Policy(_));
        match event {
            Event::View(view) => self.take_view(*view, now),
            Event::Remembered(view) => self.take_memory(*view, now.mono),
            Event::Store(condition) => self.take_condition(condition, now.mono),
            Event::Answer(answer) => self.take_answer(&answer, true, now.mono),
            Event::Heard(answer) => self.take_answer(&answer, false, now.mono),
            Event::Dial { member, outcome } => self.take_dial(&member, outcome, now.mono),
            Event::Probe { member, outcome } => {
                if let Some(known) = self.members.get_mut(&member) {
                    known.health.probing.answered();
                }
                self.take_probe(&member, outcome, now.mono);
            }
            Event::ServerClosed { member } => self.server_closed(&member, now.mono),
            Event::Admin { member, mode } => self.take_wish(&member, mode),
            Event::Policy(policy) => self.take_policy(policy),
            Event::Tick => {}
        }
        self.advance(now);
        std::mem::take(&mut self.effects)
    }

    /// When [`Topology::handle`] must be called at the latest.
    pub fn poll_timeout(&self, now: Now) -> Moment {
        let silence = self.store.last_alive.filter(|_| !self.store.lost()).map(|at| at + SILENCE);
        [self.question_timeout(now.mono), silence]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.weigh_at)
            .min(self.weigh_at)
    }

    /// When the table may change next without any event.
    fn by_itself(&self, now: Now) -> Option<Moment> {
        let claims = || self.members.values().filter_map(Member::claim_ends);
        let weighed = self.store.lost() || self.view.as_ref().is_some_and(|view| view.leader.is_none());
        [
            self.excuse_ends(now.mono),
            self.sync_grace_ends(),
            self.announcement_timeout(now),
            self.stale_at().filter(|_| self.store.lost()),
            self.return_ends(),
            weighed.then(|| claims().filter(|at| *at > now.mono).min()).flatten(),
        ]
        .into_iter()
        .flatten()
        .filter(|at| *at > now.mono)
        .min()
    }

    /// The table in force.
    pub fn table(&self) -> &Arc<RouteTable> {
        &self.table
    }

    /// What passes by itself: deadlines, questions, and the table that follows from it all.
    fn advance(&mut self, now: Now) {
        let silent = self.store.last_alive.is_some_and(|at| now.mono.since(at) >= SILENCE);
        if silent && !self.store.lost() {
            let error = format!("no sign of life for {} s", SILENCE.as_secs());
            self.take_condition(StoreCondition::Lost { error }, now.mono);
        }
        let announcement = self.view.as_ref().and_then(|view| view.announcement.clone());
        self.announcement(announcement.as_ref(), now);
        self.confirm_by_key(now.mono);
        self.follow_members(now.mono);
        self.read_still_positions(now.mono);
        self.drop_kept_members(now.mono);
        // The table costs members times listeners; most events (a probe that found what the last one found) cannot
        // change it. Whatever the table is made of says so by `touched`, or is a matter of time.
        if self.touched || now.mono >= self.weigh_at {
            self.watch_followers(now.mono);
            self.forget_members(now.mono);
            self.publish(now.mono);
            self.note_replicas(now.mono);
            self.touched = false;
            self.weigh_at = self.by_itself(now).unwrap_or(Moment::NEVER).min(now.mono + AT_LEAST_EVERY);
        }
        self.send_questions(now.mono);
    }

    fn take_view(&mut self, view: ClusterView, now: Now) {
        self.take_condition(StoreCondition::Alive, now.mono);
        self.note_followers(now.mono); // until now, by what was known
        self.store.views += 1;
        self.take_complaints(&view, now.mono);
        if view.revision < self.revision() {
            self.forget_lag(); // another store, or an old one restored: revisions begin anew
        }
        if let Some((position, revision)) = view.optime {
            self.optimes.push(position, revision, now.mono);
        }
        self.remember_sync(view.sync.as_ref(), now.mono);
        let had_key = self.view.as_ref().is_some_and(|before| before.leader.is_some());
        let settings = self.view.as_ref().map(|before| before.settings.clone()).unwrap_or_default();
        let leader = view.leader.clone();
        let members = view.members.clone();
        self.view = Some(view);
        self.remembered = false;
        self.settings_changed(&settings, now.mono);
        let changed = self.take_members(members, now.mono);
        self.leader_key(leader.as_ref(), had_key, now.mono);
        for (before, after) in changed {
            if self.owner.as_ref().is_some_and(|owner| owner.member == after.name) {
                self.owner_key_changed(&before, &after, now.mono);
            }
        }
    }

    /// What was true once: only while nothing better is known, and only to know whom to ask.
    fn take_memory(&mut self, view: ClusterView, now: Moment) {
        if self.view.is_some() && !self.remembered {
            return;
        }
        self.touched = true;
        self.remembered = true;
        for (name, view) in view.members {
            if self.owner.as_ref().is_some_and(|owner| owner.member == name) {
                continue; // it was followed at this address: a memory moves nobody
            }
            if let Some(known) = self.members.get_mut(&name) {
                if known.view.addresses != view.addresses {
                    known.health = member::Health::default();
                }
                known.view = view; // a later memory is a better one
            } else {
                let member = self.members.entry(name).or_insert(Member::new(view));
                member.gone_since = Some(now);
            }
        }
        let ClusterView { settings, history, .. } = view;
        self.view = Some(ClusterView { settings, history, ..ClusterView::default() });
    }

    /// Joins, changes and departures; returns what changed, before and after.
    fn take_members(
        &mut self,
        members: BTreeMap<MemberName, MemberView>,
        now: Moment,
    ) -> Vec<(MemberView, MemberView)> {
        let kept_until = self.return_ends().filter(|until| *until > now);
        let missing = self.members.iter_mut().filter(|(name, _)| !members.contains_key(*name));
        for (_, member) in missing.filter(|(_, member)| member.present() && member.kept_until.is_none()) {
            member.kept_until = Some(kept_until.unwrap_or(now));
        }
        members.into_values().filter_map(|view| self.take_member(view, now)).collect()
    }

    /// A store that was away for longer than a ttl comes back without the keys of anybody. Who was known before has
    /// a ttl to write its key again; nothing jumps.
    fn return_ends(&self) -> Option<Moment> {
        self.store.back_at.map(|at| at + self.ttl())
    }

    /// Members whose key is gone, and who have had the time to write it again.
    fn drop_kept_members(&mut self, now: Moment) {
        let over = |member: &Member| member.kept_until.is_some_and(|until| until <= now);
        let left = self.members.iter_mut().filter(|(_, member)| over(member));
        let left: Vec<MemberName> = left
            .map(|(name, member)| {
                member.kept_until = None;
                member.gone_since = Some(now);
                name.clone()
            })
            .collect();
        for name in left {
            self.touched = true;
            self.note(Loudness::Info, Some(name), What::Membership { change: "left" });
        }
    }

    /// A key that is not written anew says that its position has not changed: Patroni writes it when it has.
    fn read_still_positions(&mut self, now: Moment) {
        if now < self.still_due || self.store.lost() {
            return;
        }
        self.still_due = now + STILL_EVERY;
        let loop_wait = self.view.as_ref().map_or(10, |view| view.settings.loop_wait);
        let patience = Duration::from_secs(loop_wait.into()) + STILL_EVERY;
        let Some(optime) = self.optimes.settled(now.earlier_by(patience)) else { return };
        for member in self.members.values_mut().filter(|member| member.present() && member.is_replica()) {
            if let Some(replay) = member.view.replay {
                self.touched |= member.lag.read_still(replay, optime, now, patience);
            }
        }
    }

    fn take_member(&mut self, view: MemberView, now: Moment) -> Option<(MemberView, MemberView)> {
        let name = view.name.clone();
        let Some(member) = self.members.get_mut(&name) else {
            self.members.insert(name.clone(), Member::new(view));
            self.note(Loudness::Info, Some(name), What::Membership { change: "joined" });
            return None;
        };
        let rejoined = member.gone_since.take().is_some();
        member.kept_until = None;
        if member.view == view {
            return None;
        }
        if member.view.revision != view.revision
            && let Some(replay) = view.replay
        {
            member.lag.read(replay, view.revision, &self.optimes, now);
        }
        member.told_at = now;
        let before = std::mem::replace(&mut member.view, view.clone());
        let moved = before.addresses != view.addresses;
        if moved {
            member.health = member::Health::default();
        }
        if rejoined || moved {
            let change = if moved && !rejoined { "moved" } else { "joined" };
            self.note(Loudness::Info, Some(name), What::Membership { change });
        }
        Some((before, view))
    }

    /// Nonsense is said once, and again only when it has been gone for a while: good and bad values may alternate.
    fn take_complaints(&mut self, view: &ClusterView, now: Moment) {
        self.complained.retain(|_, at| now.since(*at) < COMPLAIN_EVERY);
        self.complaints = view.complaints.iter().cloned().collect();
        for complaint in self.complaints.clone() {
            let said = self.complained.insert(complaint.clone(), now).is_some();
            if !said {
                let Complaint { key, problem } = complaint;
                self.note(Loudness::Warn, None, What::Nonsense { key, problem });
            }
        }
        while self.complained.len() > COMPLAINTS {
            self.complained.pop_first();
        }
    }

    fn settings_changed(&mut self, before: &ClusterSettings, now: Moment) {
        let Some(settings) = self.view.as_ref().map(|view| view.settings.clone()) else { return };
        if before.paused != settings.paused {
            self.note(Loudness::Info, None, What::Paused { paused: settings.paused });
        }
        let standby = settings.standby_cluster;
        if before.standby_cluster != standby {
            self.note(Loudness::Info, None, What::StandbyCluster { standby });
            self.doubt(now, "the cluster follows another one, or no longer does", false);
            if !standby {
                self.end_promoted_terms();
            } else if let Some(owner) = self.owner.as_ref().map(|owner| owner.member.clone()) {
                self.end_terms(&owner, RevokeReason::Demoted, |_, role| role == GrantRole::Primary);
            }
        }
    }

    fn take_condition(&mut self, condition: StoreCondition, now: Moment) {
        match condition {
            StoreCondition::Alive => {
                self.store.last_alive = Some(now);
                if let Some(since) = self.store.lost_since() {
                    self.touched = true;
                    self.resume_excuses(now.since(since), now);
                    self.store.lost = None;
                    self.store.back_at = Some(now);
                    // Only who led when it fell silent, or was followed meanwhile, may go on without a key.
                    let had_key = self.view.as_ref().is_some_and(|view| view.leader.is_some());
                    let claims =
                        |name| self.members.get(name).is_some_and(|member| member.claims(now).is_some());
                    let followed =
                        self.owner.as_ref().is_some_and(|owner| owner.by_members && claims(&owner.member));
                    self.store.led_since_back = !had_key && !followed;
                    let after_ms = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
                    self.note(Loudness::Info, None, What::StoreBack { after_ms });
                }
            }
            StoreCondition::Lost { error } => {
                if let Some((_, last)) = &mut self.store.lost {
                    *last = error;
                    return;
                }
                self.touched = true;
                self.store.lost = Some((now, error.clone()));
                self.members.values_mut().for_each(Member::forget_seen);
                self.note(Loudness::Warn, None, What::StoreLost { error });
            }
        }
    }

    /// `ours`: to a question that we sent.
    fn take_answer(&mut self, answer: &Answer, ours: bool, now: Moment) {
        let word = self.members.get(&answer.member).and_then(|member| self.own_word(member, now));
        let Some(member) = self.members.get_mut(&answer.member) else { return };
        let claimed = member.last_status().is_some_and(Status::writable);
        member.take_answer(answer, ours);
        let claims = member.last_status().is_some_and(Status::writable);
        let word_after = self.members.get(&answer.member).and_then(|member| self.own_word(member, now));
        self.touched |= claims || claimed || word_after != word;
        if self.owner.as_ref().is_some_and(|owner| owner.member == answer.member) {
            self.owner_answered(answer, now);
        } else if claims && !claimed && !self.store.lost() {
            let text = "it says that it is a running primary, but it is not the leader".to_owned();
            self.note(Loudness::Warn, Some(answer.member.clone()), What::Contradiction { text });
        }
    }

    fn take_dial(&mut self, name: &MemberName, outcome: DialOutcome, now: Moment) {
        if let Some(member) = self.members.get_mut(name) {
            let change = member.health.record(now, outcome);
            self.note_health(name, change);
        }
        let owner = self.owner.as_ref().is_some_and(|owner| owner.member == *name);
        if owner && outcome != DialOutcome::Served {
            self.doubt(now, member::why(outcome), outcome != DialOutcome::NotReady);
        }
    }

    /// A probe may be wrong once; a leader is doubted when its server is down.
    fn take_probe(&mut self, name: &MemberName, outcome: DialOutcome, now: Moment) {
        let Some(member) = self.members.get_mut(name) else { return };
        let change = member.health.record(now, outcome);
        self.note_health(name, change);
        let owner = self.owner.as_ref().is_some_and(|owner| owner.member == *name);
        if owner && let Some(HealthChange::Down(why)) = change {
            self.doubt(now, why, true);
        }
    }

    fn note_health(&mut self, name: &MemberName, change: Option<HealthChange>) {
        let (loudness, up, why) = match change {
            None => return,
            Some(HealthChange::Up) => (Loudness::Info, true, "it answers again"),
            Some(HealthChange::Down(why)) => (Loudness::Warn, false, why),
        };
        self.touched = true;
        self.note(loudness, Some(name.clone()), What::Health { up, why });
    }

    fn take_wish(&mut self, name: &MemberName, mode: AdminMode) {
        let Some(member) = self.members.get_mut(name).filter(|member| member.admin != mode) else { return };
        member.admin = mode;
        self.note(Loudness::Info, Some(name.clone()), What::Admin { mode });
    }

    fn take_policy(&mut self, policy: Policy) {
        let before: BTreeMap<ListenerName, Target> =
            self.policy.listeners.iter().map(|listener| (listener.name.clone(), listener.target)).collect();
        self.policy = policy;
        self.end_reconfigured_terms(&before);
    }

    fn forget_members(&mut self, now: Moment) {
        if self.store.lost() {
            return;
        }
        let owner = self.owner.as_ref().map(|owner| owner.member.clone());
        let old = |(name, member): (&MemberName, &Member)| {
            let owed = member.asking.is_out(now) || member.health.probing.is_out(now);
            let wished = member.admin != AdminMode::Ready; // an operator's word is kept for its return
            let gone = !owed && !wished && member.gone_since.is_some_and(|since| now.since(since) > FORGET);
            (gone && Some(name) != owner.as_ref()).then(|| name.clone())
        };
        let forgotten: Vec<MemberName> = self.members.iter().filter_map(old).collect();
        for name in forgotten {
            self.members.remove(&name);
            self.terms.forget(&name);
        }
    }

    /// Says who joined or left the candidates for reads. Of a leader nothing is said: that it is one was told already.
    fn note_replicas(&mut self, now: Moment) {
        let changed: Vec<(MemberName, Option<String>)> = self
            .members
            .iter()
            .map(|(name, member)| (name, member, self.excluded(name, member, now)))
            .filter(|(_, member, excluded)| excluded.is_some() != member.excluded.is_some())
            .map(|(name, _, excluded)| (name.clone(), excluded))
            .collect();
        for (name, excluded) in changed {
            if let Some(member) = self.members.get_mut(&name) {
                member.excluded.clone_from(&excluded);
            }
            let leads = self.is_leader(&name);
            match excluded {
                None => self.note(Loudness::Info, Some(name), What::ReplicaIn),
                Some(why) if !leads => self.note(Loudness::Info, Some(name), What::ReplicaOut { why }),
                Some(_) => {}
            }
        }
    }

    fn revision(&self) -> Revision {
        self.view.as_ref().map_or(Revision(0), |view| view.revision)
    }

    fn note(&mut self, loudness: Loudness, member: Option<MemberName>, what: What) {
        self.effects.push(Effect::Note(Note { loudness, member, what }));
    }
}
