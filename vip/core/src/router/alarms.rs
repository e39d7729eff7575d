//! What is wrong with a virtual router: said once, shown while it lasts, and said again when it is over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use pointsman_config::{NodeName, VipName};

use crate::advert::Reject;
use crate::event::Action;
use crate::frame::Mac;
use crate::note::{Alarm, AlarmKind, Note};
use crate::time::Moment;

/// An alarm that is not given again for so long is over.
const LASTS: Duration = Duration::from_secs(30);
/// The same for two holders: either of them would be heard much sooner.
const TWO_HOLDERS_LASTS: Duration = Duration::from_secs(3);

/// What may happen so often within [`WINDOW`] before it is an alarm.
const SOME: u32 = 3;
const WINDOW: Duration = Duration::from_secs(10);

/// The alarms of a virtual router.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alarms {
    current: BTreeMap<AlarmKind, (Alarm, Moment)>,
    removals: Often,
    claims: Often,
}

/// Counts what happens within a while.
#[derive(Clone, Copy, Debug, Default)]
struct Often {
    since: Moment,
    count: u32,
}

impl Often {
    /// Once more; true when it has become too often.
    fn again(&mut self, now: Moment) -> bool {
        if now.since(self.since) > WINDOW {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count > SOME
    }
}

impl Alarms {
    /// The alarms that last.
    pub(crate) fn current(&self) -> impl Iterator<Item = &Alarm> {
        self.current.values().map(|(alarm, _)| alarm)
    }

    pub(crate) fn raise(&mut self, now: Moment, router: &VipName, alarm: Alarm, out: &mut Vec<Action>) {
        let lasts = if alarm.kind() == AlarmKind::TwoHolders { TWO_HOLDERS_LASTS } else { LASTS };
        let known = self.current.insert(alarm.kind(), (alarm.clone(), now + lasts));
        if known.is_none() {
            out.push(Action::Note(Note::Alarm { router: router.clone(), alarm }));
        }
    }

    /// Ends those that have not been given again.
    pub(crate) fn expire(&mut self, now: Moment, router: &VipName, out: &mut Vec<Action>) {
        self.end(router, |until| until <= now, out);
    }

    /// Ends all of them: nobody looks any more.
    pub(crate) fn clear(&mut self, router: &VipName, out: &mut Vec<Action>) {
        self.end(router, |_| true, out);
    }

    fn end(&mut self, router: &VipName, over: impl Fn(Moment) -> bool, out: &mut Vec<Action>) {
        self.current.retain(|kind, (_, until)| {
            if over(*until) {
                out.push(Action::Note(Note::AlarmOver { router: router.clone(), kind: *kind }));
            }
            !over(*until)
        });
    }

    /// When [`Self::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.current.values().map(|(_, until)| *until).min()
    }

    pub(crate) fn same_priority(
        &mut self,
        now: Moment,
        router: &VipName,
        other: IpAddr,
        priority: u8,
        out: &mut Vec<Action>,
    ) {
        self.raise(now, router, Alarm::SamePriority { other, priority }, out);
    }

    pub(crate) fn other_addresses(
        &mut self,
        now: Moment,
        router: &VipName,
        from: IpAddr,
        ours: &BTreeSet<IpAddr>,
        theirs: &BTreeSet<IpAddr>,
        out: &mut Vec<Action>,
    ) {
        let alarm = if ours.is_disjoint(theirs) {
            Alarm::Collision { from, theirs: theirs.clone() }
        } else {
            Alarm::OtherAddresses { from, theirs: theirs - ours, ours: ours - theirs }
        };
        self.raise(now, router, alarm, out);
    }

    pub(crate) fn refused(
        &mut self,
        now: Moment,
        router: &VipName,
        from: IpAddr,
        reject: &Reject,
        out: &mut Vec<Action>,
    ) {
        self.raise(now, router, Alarm::Refused { from, why: reject.to_string() }, out);
    }

    pub(crate) fn blocked(&mut self, now: Moment, router: &VipName, node: NodeName, out: &mut Vec<Action>) {
        self.raise(now, router, Alarm::AdvertsBlocked { node }, out);
    }

    /// An address was taken off the interface: once is somebody's mistake.
    pub(crate) fn removed(&mut self, now: Moment, router: &VipName, address: IpAddr, out: &mut Vec<Action>) {
        if self.removals.again(now) {
            self.raise(now, router, Alarm::AddressRemoved { address }, out);
        }
    }

    /// Somebody who is not heard as a router claims an address: a loser's last word is none.
    pub(crate) fn claimed(
        &mut self,
        now: Moment,
        router: &VipName,
        address: IpAddr,
        mac: Mac,
        out: &mut Vec<Action>,
    ) {
        if self.claims.again(now) {
            self.raise(now, router, Alarm::ClaimedByStranger { address, mac }, out);
        }
    }
}
