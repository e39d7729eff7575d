//! While we hold the addresses (RFC 9568, section 6.4.3).

use std::net::IpAddr;
use std::time::Duration;

use pointsman_config::NodeName;

use crate::advert::Advert;
use crate::event::{Action, LinkFault, Proxy};
use crate::note::{Alarm, Note, Reason, Repair};
use crate::router::announcements::{Announcements, HESITATION};
use crate::router::rivals::{is_peer, node_at};
use crate::router::{Mode, Rank, Router, World, holders};
use crate::time::Moment;

/// How long an heir may take to take over what it is offered.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);

/// Adverts that answer somebody else's are so far apart.
const GAP: Duration = Duration::from_millis(10);

/// How long somebody may hold the addresses besides us before it is an alarm, at least.
const BESIDES: Duration = Duration::from_secs(1);

/// What a router knows while it holds the addresses.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    /// RFC 9568: `Adver_Timer`.
    advert_at: Moment,
    spoke: Moment,
    announcements: Announcements,
    /// Why the next one is made, if it is not the time for it anyway.
    repair: Option<Repair>,
    offer: Option<Offer>,
    /// Not fit, and nobody took the addresses when we let go of them: so we keep them.
    kept: bool,
}

/// A hand-over that has begun.
#[derive(Clone, Debug)]
struct Offer {
    to: NodeName,
    until: Moment,
}

/// Why a router leaves the election.
#[derive(Clone, Debug)]
pub(crate) enum Farewell {
    Link(LinkFault),
    Stop,
    Reconfigured,
}

impl Active {
    /// The first advert and the first announcement are on their way.
    pub(crate) fn new(now: Moment, interval: Duration, kept: bool) -> Self {
        Self {
            advert_at: now + interval,
            spoke: now,
            announcements: Announcements::begun(now),
            repair: None,
            offer: None,
            kept,
        }
    }

    pub(crate) fn offered_to(&self) -> Option<&NodeName> {
        self.offer.as_ref().map(|offer| &offer.to)
    }

    pub(crate) fn deadline(&self) -> Moment {
        match &self.offer {
            Some(offer) => offer.until,
            None => self.announcements.next().map_or(self.advert_at, |next| next.min(self.advert_at)),
        }
    }
}

impl Router {
    /// Sends an advert now, unless we are about to hand over.
    pub(super) fn advertise_if_active(&mut self, now: Moment, out: &mut Vec<Action>) {
        let (router, priority) = (self.settings.name.clone(), self.priority());
        let Mode::Active(active) = &mut self.mode else { return };
        if active.offer.is_none() {
            active.advert_at = now + self.settings.interval;
            active.spoke = now;
            self.counters.adverts.sent += 1;
            out.push(Action::Advertise { router, priority });
        }
    }

    /// The same in answer to somebody else, not more often than need be.
    fn assert(&mut self, now: Moment, out: &mut Vec<Action>) {
        let gap = GAP.min(self.settings.interval / 2);
        if let Mode::Active(active) = &self.mode
            && now.since(active.spoke) >= gap
        {
            self.advertise_if_active(now, out);
        }
    }

    /// Somebody may have told the neighbours that the addresses are elsewhere.
    pub(crate) fn repair(&mut self, now: Moment, by: Repair, out: &mut Vec<Action>) {
        let Mode::Active(active) = &mut self.mode else { return };
        if active.offer.is_some() {
            return;
        }
        self.counters.repair(by);
        active.repair = Some(by);
        let wait = match by {
            Repair::Neighbour | Repair::Return => HESITATION,
            Repair::Advert | Repair::Report | Repair::Restored => Duration::ZERO,
        };
        if active.announcements.repair(now, wait) {
            self.announce(out);
        }
    }

    fn announce(&mut self, out: &mut Vec<Action>) {
        let router = self.settings.name.clone();
        let Mode::Active(active) = &mut self.mode else { return };
        self.counters.announcements += 1;
        out.push(Action::Announce { router: router.clone() });
        let repair = active.repair.take().map(|by| Action::Note(Note::Repaired { router, by }));
        out.extend(repair);
    }

    pub(super) fn advert_while_active(
        &mut self,
        world: World<'_>,
        from: IpAddr,
        advert: &Advert,
        out: &mut Vec<Action>,
    ) {
        let now = world.now;
        let theirs = Rank { priority: advert.priority, address: from };
        if advert.priority == 0 {
            // It held them until now, and the neighbours may have heard so.
            self.assert(now, out);
            self.repair(now, Repair::Advert, out);
        } else if self.rank().is_none_or(|ours| theirs > ours) {
            self.give_way(world, theirs, !is_peer(world.group, &self.settings.name, from), out);
        } else {
            self.assert(now, out);
            self.repair(now, Repair::Advert, out);
            self.watch_besides(now, theirs, out);
        }
    }

    /// Somebody of lower rank is active, too: it will step down when it hears us. If it does not, it does not hear us.
    fn watch_besides(&mut self, now: Moment, theirs: Rank, out: &mut Vec<Action>) {
        let patience = BESIDES.max(self.settings.interval * 4);
        let since = self.rivals.heard_since(now, theirs.address);
        if since.is_some_and(|since| now.since(since) > patience) {
            let alarm = Alarm::TwoHolders { other: theirs.address, priority: theirs.priority };
            self.alarms.raise(now, &self.settings.name, alarm, out);
        }
    }

    /// To somebody of higher rank.
    fn give_way(&mut self, world: World<'_>, to: Rank, say: bool, out: &mut Vec<Action>) {
        // The heir's advert may be here before its report.
        let node = node_at(world.group, &self.settings.name, to.address);
        let Mode::Active(active) = &self.mode else { return };
        if active.offer.is_some() || self.stopping {
            self.hand_over(world.now, node, out);
        } else {
            let reason = Reason::Outranked { by: to.address, priority: to.priority };
            self.step_down(world.now, reason, say, out);
        }
    }

    pub(super) fn consider_while_active(&mut self, world: World<'_>, out: &mut Vec<Action>) {
        if self.is_fit()
            && let Mode::Active(active) = &mut self.mode
        {
            // A wish that was taken back before anybody took over.
            active.offer = None;
            active.kept = false;
        }
        if self.follow_reports(world, out) {
            return;
        }
        if !self.is_fit() && self.priority() != super::OWNER {
            self.try_to_give(world, out);
        }
        self.speak(world.now, out);
    }

    /// What the other hosts report of themselves. True when the addresses are not ours any more.
    fn follow_reports(&mut self, world: World<'_>, out: &mut Vec<Action>) -> bool {
        let Mode::Active(active) = &self.mode else { return true };
        if let Some(offer) = &active.offer {
            let taken = holders(world.group, &self.settings.name).any(|(node, ..)| *node == offer.to);
            if taken || world.now >= offer.until {
                let to = taken.then(|| offer.to.clone());
                self.hand_over(world.now, to, out);
                return true;
            }
            return false;
        }
        // One whose adverts came and come no more is cut off from where the addresses are used.
        let first = holders(world.group, &self.settings.name)
            .filter(|(node, ..)| self.rivals.hears(world.now, node))
            .max_by_key(|(_, _, rank)| *rank);
        let Some((_, _, theirs)) = first else { return false };
        if self.rank().is_none_or(|ours| theirs > ours) {
            self.give_way(world, theirs, false, out);
            return true;
        }
        self.assert(world.now, out);
        false
    }

    /// Not fit: whoever is, shall have them.
    fn try_to_give(&mut self, world: World<'_>, out: &mut Vec<Action>) {
        let Mode::Active(active) = &self.mode else { return };
        if active.offer.is_some() {
            return;
        }
        let kept = active.kept;
        if let Some(to) = self.heir(world.group).cloned() {
            let offer = Offer { to, until: world.now + PATIENCE };
            if let Mode::Active(active) = &mut self.mode {
                active.offer = Some(offer);
            }
        } else if self.stopping || (!kept && self.has_strangers(world.group)) {
            // Somebody of whom we know nothing may be there: letting go is the only question that it understands.
            self.hand_over(world.now, None, out);
        }
    }

    /// The end of a hand-over: the addresses go, then priority 0.
    fn hand_over(&mut self, now: Moment, to: Option<NodeName>, out: &mut Vec<Action>) {
        if self.stopping {
            self.leave(now, Farewell::Stop, to, out);
            return;
        }
        let why = match &self.proxy {
            Proxy::Unwell { why } if !self.yielded => Some(why.clone()),
            Proxy::Unwell { .. } | Proxy::Well => None,
        };
        let reason = why
            .map_or_else(|| Reason::Yielded { to: to.clone() }, |why| Reason::Unwell { why, to: to.clone() });
        self.let_go(out);
        self.become_backup(now, reason, out);
    }

    /// Adverts and announcements that are due.
    fn speak(&mut self, now: Moment, out: &mut Vec<Action>) {
        let Mode::Active(active) = &mut self.mode else { return };
        if active.offer.is_some() {
            return;
        }
        let advert_is_due = now >= active.advert_at;
        if active.announcements.due(now) {
            self.announce(out);
        }
        if advert_is_due {
            self.advertise_if_active(now, out);
        }
    }
}
