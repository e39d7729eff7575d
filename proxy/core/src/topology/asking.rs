//! Whom to ask, and how often: one question at a time to each member.

use std::time::Duration;

use crate::event::{AdminMode, Effect};
use crate::time::Moment;
use crate::view::MemberName;

use super::Topology;
use super::member::Member;
use super::primary::Standing;

/// A pending leader is asked this often at first.
const EAGER: Duration = Duration::from_millis(20);
/// A confirmed leader is asked this often, and everybody while the store is silent or leaderless.
const PEACE: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ASK_DEADLINE: Duration = Duration::from_millis(800);
/// How long a probe may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// Jitter: up to an eighth of the interval is added, so that three load balancers do not ask in step.
const JITTER_PART: u32 = 8;

impl Topology {
    /// How often this member is asked for its status now. `None`: it is left in peace.
    fn ask_interval(&self, name: &MemberName, now: Moment) -> Option<Duration> {
        let leaderless = self.view.as_ref().is_some_and(|view| view.leader.is_none());
        let owner = self.owner.as_ref().filter(|owner| owner.member == *name);
        match owner.map(|owner| owner.standing) {
            Some(Standing::Pending { since, .. }) => Some(backoff(now.since(since))),
            Some(Standing::Confirmed { .. }) if self.announced.is_some() => Some(PEACE / 4),
            Some(Standing::Confirmed { last, .. })
                if self.store.lost_since().is_some_and(|lost| lost > last) =>
            {
                Some(PEACE / 4) // it has not spoken since the store fell silent
            }
            Some(Standing::Confirmed { .. }) => Some(PEACE),
            None if self.store.lost() || leaderless => Some(PEACE),
            None => None,
        }
    }

    /// How often this member's server is probed. `None`: never.
    fn probe_interval(&self, name: &MemberName, member: &Member, now: Moment) -> Option<Duration> {
        if member.admin == AdminMode::Maint || !member.present() && !self.store.lost() {
            return None;
        }
        let owner = self.owner.as_ref().filter(|owner| owner.member == *name);
        if let Some(Standing::Pending { since, reach: true, .. }) = owner.map(|owner| owner.standing) {
            return Some(backoff(now.since(since)));
        }
        Some(member.health.interval())
    }

    /// Sends every question that is due.
    pub(super) fn send_questions(&mut self, now: Moment) {
        let names: Vec<MemberName> = self.members.keys().cloned().collect();
        for name in names {
            self.ask_if_due(&name, now);
            self.probe_if_due(&name, now);
        }
    }

    fn ask_if_due(&mut self, name: &MemberName, now: Moment) {
        let Some(interval) = self.ask_interval(name, now) else { return };
        let interval = interval + self.jitter(interval);
        let Some(member) = self.members.get_mut(name) else { return };
        let Some(api) = member.view.api.clone() else { return };
        if member.asking.due(interval) <= now {
            member.asking.sent(now, ASK_DEADLINE);
            self.effects.push(Effect::Ask { member: name.clone(), api, deadline: ASK_DEADLINE });
        }
    }

    fn probe_if_due(&mut self, name: &MemberName, now: Moment) {
        let Some(member) = self.members.get(name) else { return };
        let Some(interval) = self.probe_interval(name, member, now) else { return };
        let interval = interval + self.jitter(interval);
        let Some(member) = self.members.get_mut(name) else { return };
        if member.health.probing.due(interval) <= now {
            member.health.probing.sent(now, PROBE_DEADLINE);
            let addresses = member.view.addresses.clone();
            self.effects.push(Effect::Probe { member: name.clone(), addresses, deadline: PROBE_DEADLINE });
        }
    }

    /// When the next question is due.
    pub(super) fn question_timeout(&self, now: Moment) -> Option<Moment> {
        let asks = self.members.iter().filter_map(|(name, member)| {
            member.view.api.as_ref()?;
            let interval = self.ask_interval(name, now)?;
            Some(member.asking.due(interval + self.jitter(interval)))
        });
        let probes = self.members.iter().filter_map(|(name, member)| {
            let interval = self.probe_interval(name, member, now)?;
            Some(member.health.probing.due(interval + self.jitter(interval)))
        });
        asks.chain(probes).min()
    }

    /// The same for every call within one step, another one in the next.
    fn jitter(&self, interval: Duration) -> Duration {
        let part = u32::try_from(self.dice % 256).unwrap_or_default();
        interval / JITTER_PART * part / 256
    }

    /// Throws the dice of the next step (xorshift64*).
    pub(super) fn throw_dice(&mut self) {
        self.dice ^= self.dice >> 12;
        self.dice ^= self.dice << 25;
        self.dice ^= self.dice >> 27;
        self.dice = self.dice.wrapping_mul(0x2545_f491_4f6c_dd1d);
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
