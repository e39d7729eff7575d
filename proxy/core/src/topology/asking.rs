//! Whom to ask, and how often: one question at a time to each member.

use std::time::Duration;

use crate::event::{AdminMode, Effect, Question, Witness};
use crate::time::Moment;
use crate::view::{MemberName, MemberRole};

use super::Topology;
use super::member::Member;
use super::primary::{Owner, Standing};

/// A pending leader is asked this often at first.
const EAGER: Duration = Duration::from_millis(20);
/// A confirmed leader is asked this often, and everybody while the store is silent or leaderless.
const PEACE: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ASK_DEADLINE: Duration = Duration::from_millis(800);
/// How long a probe may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

impl Topology {
    /// How often this member is asked for its status now. `None`: it is left in peace.
    fn ask_interval(&self, name: &MemberName, now: Moment) -> Option<Duration> {
        let leaderless = self.view.as_ref().is_some_and(|view| view.leader.is_none());
        let owner = self.owner.as_ref().filter(|owner| owner.member == *name);
        let Some(owner) = owner else {
            // While the store is silent and the leader too, somebody else may have taken over.
            let orphaned = self.store.lost() && !self.owner.as_ref().is_some_and(Owner::confirmed);
            return (self.store.lost() || leaderless).then_some(if orphaned { PEACE / 4 } else { PEACE });
        };
        match (owner.standing, self.store.lost_since()) {
            (Standing::Pending { .. }, _) => Some(backoff(now.since(owner.eager_since))),
            (Standing::Confirmed { last, .. }, Some(lost)) if lost > last => Some(backoff(now.since(lost))),
            (Standing::Confirmed { .. }, _) if self.announced.is_some() || leaderless => Some(PEACE / 4),
            (Standing::Confirmed { .. }, _) => Some(PEACE),
        }
    }

    /// How often this member's server is probed. `None`: never.
    fn probe_interval(&self, name: &MemberName, member: &Member, now: Moment) -> Option<Duration> {
        if member.admin == AdminMode::Maint || !member.present() && !self.store.lost() {
            return None;
        }
        let owner = self.owner.as_ref().filter(|owner| owner.member == *name);
        if let Some(owner) = owner
            && owner.unreached()
        {
            return Some(backoff(now.since(owner.eager_since)));
        }
        Some(member.health.interval())
    }

    /// Sends every question that is due.
    pub(super) fn send_questions(&mut self, now: Moment) {
        let due = |at: Option<Moment>| at.is_some_and(|at| at <= now);
        let witnesses = self.witnesses();
        let everybody =
            self.members.iter().flat_map(|pair| witnesses.iter().map(move |witness| (pair, *witness)));
        let asks =
            everybody.filter(|((name, member), witness)| due(self.ask_at(name, member, *witness, now)));
        let asks: Vec<(MemberName, Witness)> =
            asks.map(|((name, _), witness)| (name.clone(), witness)).collect();
        let probes = self.members.iter().filter(|(name, member)| due(self.probe_at(name, member, now)));
        let probes: Vec<MemberName> = probes.map(|(name, _)| name.clone()).collect();
        for (name, witness) in asks {
            self.ask(name, witness, now);
        }
        for name in probes {
            self.probe(name, now);
        }
    }

    fn ask(&mut self, name: MemberName, witness: Witness, now: Moment) {
        let dice = self.throw_dice();
        let Some(member) = self.members.get_mut(&name) else { return };
        let question = match (witness, &member.view.api) {
            (Witness::Rest, None) => return,
            (Witness::Rest, Some(api)) => Question::Rest(api.clone()),
            (Witness::Sql, _) => Question::Sql(member.view.addresses.clone()),
        };
        member.asking.of_mut(witness).sent(now, ASK_DEADLINE, dice);
        self.effects.push(Effect::Ask { member: name, question, deadline: ASK_DEADLINE });
    }

    fn probe(&mut self, name: MemberName, now: Moment) {
        let dice = self.throw_dice();
        let Some(member) = self.members.get_mut(&name) else { return };
        let addresses = member.view.addresses.clone();
        member.health.probing.sent(now, PROBE_DEADLINE, dice);
        self.effects.push(Effect::Probe { member: name, addresses, deadline: PROBE_DEADLINE });
    }

    /// Who can be asked of a member at all.
    fn witnesses(&self) -> &'static [Witness] {
        if self.policy.sql { &Witness::ALL } else { &[Witness::Rest] }
    }

    /// When the member is asked next. `None`: there is nobody to ask, or no need.
    fn ask_at(&self, name: &MemberName, member: &Member, witness: Witness, now: Moment) -> Option<Moment> {
        let can = match witness {
            Witness::Rest => member.view.api.is_some(),
            Witness::Sql => true, // see `witnesses`
        };
        // Where every member takes writes, there is no primary to be found.
        let asked = can && member.view.role != MemberRole::Writable;
        let interval = asked.then(|| self.ask_interval(name, now)).flatten()?;
        Some(member.asking.of(witness).due(interval))
    }

    /// When the member's server is probed next.
    fn probe_at(&self, name: &MemberName, member: &Member, now: Moment) -> Option<Moment> {
        Some(member.health.probing.due(self.probe_interval(name, member, now)?))
    }

    /// When the next question is due.
    pub(super) fn question_timeout(&self, now: Moment) -> Option<Moment> {
        let witnesses = self.witnesses();
        let mut next: Option<Moment> = None;
        for (name, member) in &self.members {
            let asks = witnesses.iter().filter_map(|witness| self.ask_at(name, member, *witness, now));
            let first = asks.chain(self.probe_at(name, member, now)).min();
            next = next.into_iter().chain(first).min();
        }
        next
    }

    /// A number for the jitter of one question (xorshift64*).
    fn throw_dice(&mut self) -> u64 {
        self.dice ^= self.dice >> 12;
        self.dice ^= self.dice << 25;
        self.dice ^= self.dice >> 27;
        self.dice.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }
}

/// Every 20 ms in the first two seconds, then backing off to one second.
fn backoff(pending_for: Duration) -> Duration {
    match pending_for.as_millis() {
        0..2_000 => EAGER,
        2_000..5_000 => EAGER * 5,
        5_000..15_000 => PEACE / 4,
        _ => PEACE,
    }
}
