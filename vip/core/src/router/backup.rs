//! While somebody else holds the addresses, or shall (RFC 9568, section 6.4.2).

use std::net::IpAddr;
use std::time::Duration;

use crate::advert::Advert;
use crate::event::{Action, State};
use crate::group::Group;
use crate::note::{Loss, Reason};
use crate::router::rivals::is_peer;
use crate::router::{Mode, Rank, Router, World, holders};
use crate::time::Moment;

/// How long adverts may be missing, in down intervals, while reports tell that somebody is active, before it is an alarm.
const BLOCKED: u32 = 3;

/// What a router knows while it waits.
#[derive(Clone, Debug)]
pub(crate) struct Backup {
    /// RFC 9568: `Active_Down_Timer`.
    down_at: Moment,
    /// When somebody was heard last, or the waiting began.
    quiet_since: Moment,
    /// RFC 9568: `Active_Adver_Interval`, learned from the adverts of whoever is active.
    interval: Duration,
    holder: Option<Rank>,
    /// Who let go.
    let_go: Option<IpAddr>,
    /// When [`Router::consider`] was last here.
    looked: Moment,
}

impl Backup {
    pub(crate) const fn new(now: Moment, interval: Duration, down: Duration) -> Self {
        Self {
            down_at: Moment::from_start(now.since(Moment::ZERO).saturating_add(down)),
            quiet_since: now,
            interval,
            holder: None,
            let_go: None,
            looked: now,
        }
    }

    /// Whom we take for the holder.
    pub(crate) const fn holder(&self) -> Option<Rank> {
        self.holder
    }

    /// As if the waiting began now: nothing that was said before could be heard.
    pub(crate) fn listen(&mut self, now: Moment, down: Duration) {
        self.down_at = self.down_at.max(now + down.max(self.interval * 3));
        self.quiet_since = now;
    }

    fn wait(&mut self, now: Moment, down: Duration) {
        self.down_at = now + down;
        self.quiet_since = now;
        self.let_go = None;
    }
}

impl Router {
    pub(super) fn advert_in_backup(&mut self, world: World<'_>, from: IpAddr, advert: &Advert) {
        let now = world.now;
        let preempt = advert.priority < self.priority() && self.may_preempt(world);
        let interval = if self.settings.version_2 { self.settings.interval } else { advert.interval };
        let (down, skew) = (self.down_interval(interval), self.settings.skew(self.priority(), interval));
        let Mode::Backup(backup) = &mut self.mode else { return };
        if advert.priority == 0 {
            // Who has been succeeded already lets go of nothing.
            if backup.holder.is_none_or(|holder| holder.address == from) {
                backup.down_at = now + skew;
                backup.let_go = Some(from);
                backup.holder = None;
            }
            return;
        }
        backup.holder = Some(Rank { priority: advert.priority, address: from });
        if preempt {
            return; // the timer goes on
        }
        backup.interval = interval;
        backup.wait(now, down);
    }

    /// The neighbours may still believe that the addresses are here: we held them while we were cut off, and could not say that
    /// we hold them no more. A keepalived that holds them has never heard of us, and tells the neighbours nothing anew before it
    /// does; so it gets to hear one advert. Our own kind knows it from reports, or does the same.
    pub(super) fn introduce(
        &mut self,
        world: World<'_>,
        from: IpAddr,
        advert: &Advert,
        out: &mut Vec<Action>,
    ) {
        let theirs = Rank { priority: advert.priority, address: from };
        let outranks = advert.priority > 0 && self.rank().is_some_and(|ours| theirs > ours);
        if self.unsaid && outranks && !is_peer(world.group, &self.settings.name, from) {
            self.unsaid = false;
            self.counters.adverts.sent += 1;
            out.push(Action::Advertise { router: self.settings.name.clone(), priority: self.priority() });
        }
    }

    pub(super) fn consider_in_backup(&mut self, world: World<'_>, out: &mut Vec<Action>) {
        self.believe_reports(world, out);
        if let Some(reason) = self.reason_to_take(world) {
            self.rivals.settle(world.group);
            self.become_active(world.now, reason, out);
        } else if let Mode::Backup(backup) = &mut self.mode {
            backup.looked = world.now;
        }
    }

    /// Where adverts of a live holder never arrive, its reports stand for them: two hosts must not hold the addresses because
    /// something is in the way of multicast.
    fn believe_reports(&mut self, world: World<'_>, out: &mut Vec<Action>) {
        let Mode::Backup(backup) = &self.mode else { return };
        let down = self.down_interval(backup.interval);
        let unheard = holders(world.group, &self.settings.name)
            .find(|(node, _, _)| self.rivals.claim(node).is_some_and(|claim| !claim.heard));
        let Some((node, _, rank)) = unheard else { return };
        let since = self.rivals.claim(node).map_or(world.now, |claim| claim.since);
        if world.now.since(since) > down * BLOCKED {
            self.alarms.blocked(world.now, &self.settings.name, node.clone(), out);
        }
        if let Mode::Backup(backup) = &mut self.mode {
            backup.holder = Some(rank);
            backup.wait(world.now, down);
        }
    }

    fn reason_to_take(&self, world: World<'_>) -> Option<Reason> {
        let sooner =
            || self.was_offered(world).or_else(|| self.after_loss(world)).or_else(|| self.preempts(world));
        // Reports know nothing of a keepalived, and whatever they say, we would have to give way to it at once.
        let outranked = self.rank().is_none_or(|ours| self.rivals.outranked(world.now, ours));
        let reason = if outranked { None } else { sooner() };
        reason.or_else(|| self.after_silence(world))
    }

    /// The holder wants us to take them.
    fn was_offered(&self, world: World<'_>) -> Option<Reason> {
        let mut holders = holders(world.group, &self.settings.name);
        let (node, ..) = holders.find(|(_, theirs, _)| theirs.offer.as_ref() == Some(&self.own))?;
        world.group.is_settled(world.now, node).then(|| Reason::HandedOver { by: node.clone() })
    }

    /// The holder is lost by the word of enough hosts, or says itself that it holds them no more: the heir need not wait.
    fn after_loss(&self, world: World<'_>) -> Option<Reason> {
        if holders(world.group, &self.settings.name).next().is_some() || !self.is_heir(world.group) {
            return None;
        }
        let lost = self.rivals.lost_holders(world.group).find_map(|(node, claim)| {
            let (how, votes) = world.group.agreed(node)?;
            let succeeded = self.rivals.active_besides(world.now, claim.source);
            (!succeeded).then(|| Reason::HostLost { node: node.clone(), how, votes })
        });
        let vacated = || {
            let node = self.rivals.vacated().filter(|node| world.group.is_settled(world.now, node))?.clone();
            Some(Reason::HostLost { node, how: Loss::LetGo, votes: 1 })
        };
        lost.or_else(vacated)
    }

    /// A live host holds them with a lower rank, and nobody else would be better than we.
    fn preempts(&self, world: World<'_>) -> Option<Reason> {
        let rank = self.rank()?;
        let (_, _, theirs) = holders(world.group, &self.settings.name).max_by_key(|(_, _, rank)| *rank)?;
        // Between equal priorities nobody moves.
        let lower = theirs.priority < rank.priority;
        (lower && self.may_preempt(world) && self.is_heir(world.group))
            .then_some(Reason::Preempted { holder: theirs.address, priority: theirs.priority })
    }

    fn after_silence(&self, world: World<'_>) -> Option<Reason> {
        let Mode::Backup(backup) = &self.mode else { return None };
        if world.now < backup.down_at {
            return None;
        }
        Some(match (backup.let_go, backup.holder) {
            (Some(by), _) => Reason::LetGo { by },
            (None, Some(holder)) if holder.priority < self.priority() && self.may_preempt(world) => {
                Reason::Preempted { holder: holder.address, priority: holder.priority }
            }
            (None, holder) => Reason::Silence {
                waited: world.now.since(backup.quiet_since),
                last: holder.map(|holder| holder.address),
            },
        })
    }

    /// The timer, and the end of the delay before preempting, if there is somebody to preempt.
    pub(super) fn backup_deadline(&self, backup: &Backup, group: &Group) -> Moment {
        let preempt_at = self.preempt_at(group);
        let waits = self.settings.preempt && preempt_at > backup.looked && self.state() == State::Backup;
        if waits { backup.down_at.min(preempt_at) } else { backup.down_at }
    }
}
