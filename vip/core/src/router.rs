//! The state machine of one virtual router (RFC 9568, section 6), with what the hosts tell each other beside VRRP.
//!
//! A router is told what happens and answers by pushing [`Action`]s, in the order in which they are to be carried out. VRRP's
//! timers decide everything by themselves; reports of other hosts only let the same happen sooner: who is [heir](Router::is_heir)
//! need not wait for the silence, and who wants to let go need not do so before somebody has taken over.
//!
//! * `backup.rs`: while somebody else holds the addresses. `active.rs`: while we do.
//! * `rivals.rs`: who else was heard. `announcements.rs`: when the neighbours are told. `alarms.rs`: what is wrong.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use pointsman_config::{IpNet, NodeName, TrackProxy, Vip, VipName, VrrpProtocol};

use crate::advert::{Advert, Reject};
use crate::event::{Action, Link, LinkFault, Proxy, State};
use crate::frame::Mac;
use crate::group::Group;
use crate::note::{Note, Reason, Repair, Transition};
use crate::report::{Report, RouterReport};
use crate::status::{Counters, Holder, RouterStatus, Said, millis};
use crate::time::Moment;

mod active;
mod alarms;
mod announcements;
mod backup;
mod rivals;
#[cfg(test)]
mod tests;

use active::{Active, Farewell};
use alarms::Alarms;
use backup::Backup;
use rivals::Rivals;

/// The priority of a router that owns its addresses: it is never changed (RFC 9568, section 5.2.4).
pub const OWNER: u8 = 255;
/// The priority of a router that shall hold the addresses only when nobody else can.
pub const LAST_RESORT: u8 = 1;

/// What the configuration says of a virtual router, as far as it decides anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its name, the same on all hosts.
    pub name: VipName,
    /// The network interface.
    pub interface: String,
    /// VRID.
    pub router_id: NonZeroU8,
    /// The priority of this host.
    pub priority: u8,
    /// The addresses with their prefixes, as they are put on the interface.
    pub addresses: Vec<IpNet>,
    /// The time between two adverts.
    pub interval: Duration,
    /// Version 2: its skew is counted in seconds, and intervals are not learned.
    pub version_2: bool,
    /// Take over from a lower priority.
    pub preempt: bool,
    /// How long to be well before doing so.
    pub preempt_delay: Duration,
    /// What the state of the proxy means.
    pub track: TrackProxy,
    /// Adverts go to single hosts.
    pub unicast: BTreeSet<IpAddr>,
}

impl Settings {
    /// What the configuration says.
    pub fn of(vip: &Vip) -> Self {
        Self {
            name: vip.name.clone(),
            interface: vip.interface.clone(),
            router_id: vip.router_id,
            priority: vip.priority.get(),
            addresses: vip.addresses.clone(),
            interval: vip.advert_interval(),
            version_2: matches!(vip.protocol, VrrpProtocol::V2 { .. }),
            preempt: vip.preempt,
            preempt_delay: vip.preempt_delay,
            track: vip.track.proxy,
            unicast: vip.unicast.iter().copied().collect(),
        }
    }

    /// Whether these settings are of the same virtual router on the wire, so that it can take them over in place.
    pub fn is_same_router(&self, other: &Self) -> bool {
        let key = |of: &Self| {
            let ipv6 = of.addresses.first().is_some_and(|net| net.addr().is_ipv6());
            (of.name.clone(), of.interface.clone(), of.router_id, of.version_2, ipv6, of.priority == OWNER)
        };
        key(self) == key(other)
    }

    /// The addresses alone.
    pub fn ips(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(IpNet::addr).collect()
    }

    /// The skew (RFC 9568, section 6.1; version 2: RFC 3768, section 6.1): the lower the priority, the longer the wait.
    fn skew(&self, priority: u8, interval: Duration) -> Duration {
        let interval = if self.version_2 { Duration::from_secs(1) } else { interval };
        interval * (256 - u32::from(priority)) / 256
    }
}

/// Whom a router would rather see hold the addresses: first by priority, then by address (RFC 9568, section 6.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    priority: u8,
    address: IpAddr,
}

/// A virtual router on this host.
#[derive(Clone, Debug)]
pub struct Router {
    settings: Settings,
    own: NodeName,
    /// Ours on the interface; the last one known while the link is down.
    source: Option<IpAddr>,
    fault: Option<LinkFault>,
    mode: Mode,
    /// Since when this state.
    since: Moment,
    proxy: Proxy,
    yielded: bool,
    stopping: bool,
    /// Since when nothing would have kept us from preempting.
    well_since: Moment,
    rivals: Rivals,
    /// Nobody knows that we may have held the addresses before, see [`Router::introduce`].
    unsaid: bool,
    alarms: Alarms,
    counters: Counters,
}

#[derive(Clone, Debug)]
enum Mode {
    Initialize,
    Backup(Backup),
    Active(Active),
}

/// What a router looks at besides itself while it decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World<'a> {
    pub(crate) now: Moment,
    pub(crate) group: &'a Group,
}

impl Router {
    /// A router that waits for its interface.
    pub fn new(own: NodeName, settings: Settings, proxy: Proxy) -> Self {
        Self {
            settings,
            own,
            source: None,
            fault: None,
            mode: Mode::Initialize,
            since: Moment::ZERO,
            proxy,
            yielded: false,
            stopping: false,
            well_since: Moment::ZERO,
            rivals: Rivals::default(),
            unsaid: true,
            alarms: Alarms::default(),
            counters: Counters::new(Reject::LABELS),
        }
    }

    /// What the configuration says.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its state.
    pub const fn state(&self) -> State {
        match self.mode {
            Mode::Initialize => State::Initialize,
            Mode::Backup(_) => State::Backup,
            Mode::Active(_) => State::Active,
        }
    }

    /// Able to serve, and not asked to leave it to others.
    pub fn is_fit(&self) -> bool {
        let released =
            matches!(self.proxy, Proxy::Unwell { .. }) && self.settings.track == TrackProxy::Release;
        !self.yielded && !self.stopping && !released
    }

    /// The priority that we have now; 255 is never changed.
    pub fn priority(&self) -> u8 {
        let base = self.settings.priority;
        match (&self.proxy, self.settings.track) {
            _ if base == OWNER && !self.stopping && !self.yielded => OWNER,
            _ if !self.is_fit() => LAST_RESORT,
            (Proxy::Unwell { .. }, TrackProxy::Lower(by)) => base.saturating_sub(by.get()).max(LAST_RESORT),
            (Proxy::Unwell { .. } | Proxy::Well, _) => base,
        }
    }

    /// What we tell the other hosts.
    pub(crate) fn report(&self) -> RouterReport {
        let offer = match &self.mode {
            Mode::Active(active) => active.offered_to().cloned(),
            Mode::Initialize | Mode::Backup(_) => None,
        };
        RouterReport {
            state: self.state(),
            priority: self.priority(),
            fit: self.is_fit(),
            source: self.source.filter(|_| self.state() != State::Initialize),
            offer,
        }
    }

    // ---- What happens ------------------------------------------------------------------------------------------------

    /// The interface can be used, or no more.
    pub(crate) fn link(&mut self, world: World<'_>, link: Link, out: &mut Vec<Action>) {
        match link {
            Link::Up { source } => {
                self.source = Some(source);
                self.fault = None;
                if self.state() == State::Initialize && !self.stopping {
                    self.start(world, out);
                }
            }
            Link::Down(fault) => {
                self.fault = Some(fault.clone());
                if self.state() != State::Initialize {
                    self.leave(world.now, Farewell::Link(fault), None, out);
                }
            }
        }
    }

    /// RFC 9568, section 6.4.1.
    fn start(&mut self, world: World<'_>, out: &mut Vec<Action>) {
        self.well_since = world.now;
        self.rivals.forget();
        if self.priority() == OWNER {
            self.become_active(world.now, Reason::Owner, out);
        } else {
            self.become_backup(world.now, Reason::Started, out);
        }
    }

    /// An advert was received.
    pub(crate) fn advert(&mut self, world: World<'_>, from: IpAddr, advert: &Advert, out: &mut Vec<Action>) {
        if self.state() == State::Initialize || self.source == Some(from) {
            return;
        }
        self.counters.adverts.received += 1;
        if !self.belongs(world.now, from, advert, out) {
            return;
        }
        self.rivals.heard(world, &self.settings.name, from, advert);
        if advert.priority == self.settings.priority && advert.priority != OWNER {
            self.alarms.same_priority(world.now, &self.settings.name, from, advert.priority, out);
        }
        match self.mode {
            Mode::Initialize => {}
            Mode::Backup(_) => {
                self.advert_in_backup(world, from, advert);
                self.introduce(world, from, advert, out);
            }
            Mode::Active(_) => self.advert_while_active(world, from, advert, out),
        }
    }

    /// Whether an advert is of our group, by its addresses. Other addresses than ours are an error on some host, but two hosts
    /// that hold the common ones would be worse; no common one at all is a stranger's.
    fn belongs(&mut self, now: Moment, from: IpAddr, advert: &Advert, out: &mut Vec<Action>) -> bool {
        let ours = self.settings.ips();
        let theirs: BTreeSet<IpAddr> = advert.addresses.iter().copied().collect();
        if ours == theirs {
            return true;
        }
        let stranger = ours.is_disjoint(&theirs);
        self.alarms.other_addresses(now, &self.settings.name, from, &ours, &theirs, out);
        !stranger
    }

    /// A packet for us was refused.
    pub(crate) fn rejected(&mut self, now: Moment, from: IpAddr, reject: &Reject, out: &mut Vec<Action>) {
        self.counters.rejected(reject.label());
        if self.state() != State::Initialize {
            self.alarms.refused(now, &self.settings.name, from, reject, out);
        }
    }

    /// Somebody tells the neighbours that it has one of our addresses.
    pub(crate) fn claimed(&mut self, world: World<'_>, address: IpAddr, mac: Mac, out: &mut Vec<Action>) {
        if self.state() != State::Active {
            return;
        }
        if !self.rivals.any_active(world.now) {
            self.alarms.claimed(world.now, &self.settings.name, address, mac, out);
        }
        self.repair(world.now, Repair::Neighbour, out);
    }

    /// Somebody took an address away that we hold.
    pub(crate) fn address_gone(&mut self, world: World<'_>, address: IpAddr, out: &mut Vec<Action>) {
        if self.state() != State::Active {
            return;
        }
        self.alarms.removed(world.now, &self.settings.name, address, out);
        out.push(Action::Hold { router: self.settings.name.clone() });
        self.repair(world.now, Repair::Restored, out);
    }

    /// The proxy is well, or no more.
    pub(crate) fn proxy(&mut self, world: World<'_>, proxy: Proxy, out: &mut Vec<Action>) {
        self.change(world.now, |router| router.proxy = proxy, out);
    }

    /// An operator's wish.
    pub(crate) fn set_yielded(&mut self, world: World<'_>, yielded: bool, out: &mut Vec<Action>) {
        self.change(world.now, |router| router.yielded = yielded, out);
    }

    /// The process ends.
    pub(crate) fn stop(&mut self, world: World<'_>, out: &mut Vec<Action>) {
        self.change(world.now, |router| router.stopping = true, out);
        if self.state() == State::Backup {
            self.leave(world.now, Farewell::Stop, None, out);
        }
    }

    /// The configuration has no such router any more, or one that cannot be taken over in place.
    pub(crate) fn remove(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.state() != State::Initialize {
            self.leave(now, Farewell::Reconfigured, None, out);
        }
    }

    /// Takes settings that differ in nothing that ties us to the network. New addresses are put on the interface by the caller.
    pub(crate) fn reconfigure(&mut self, now: Moment, settings: Settings, out: &mut Vec<Action>) {
        let addresses = self.settings.addresses != settings.addresses;
        self.change(now, |router| router.settings = settings, out);
        if addresses && self.state() == State::Active {
            out.push(Action::Hold { router: self.settings.name.clone() });
            self.repair(now, Repair::Restored, out);
        }
    }

    /// Changes what our priority depends on: who hears our adverts learns it at once.
    fn change(&mut self, now: Moment, change: impl FnOnce(&mut Self), out: &mut Vec<Action>) {
        let (priority, fit) = (self.priority(), self.is_fit());
        change(self);
        if self.is_fit() && !fit {
            self.well_since = now;
        }
        // Who will not hold the addresses much longer says nothing before it knows to whom they go.
        if self.is_fit() && self.priority() != priority {
            self.advertise_if_active(now, out);
        }
    }

    // ---- What follows ------------------------------------------------------------------------------------------------

    /// After anything has happened, and when time has passed: whether it is time to take, to give, or to speak.
    pub(crate) fn consider(&mut self, world: World<'_>, out: &mut Vec<Action>) {
        if self.rivals.look(world, &self.settings.name) {
            self.repair(world.now, Repair::Report, out); // it may have spoken last
        }
        self.alarms.expire(world.now, &self.settings.name, out);
        match self.mode {
            Mode::Initialize => {}
            Mode::Backup(_) => self.consider_in_backup(world, out),
            Mode::Active(_) => self.consider_while_active(world, out),
        }
    }

    /// When something is due.
    pub(crate) fn deadline(&self, group: &Group) -> Option<Moment> {
        let own = match &self.mode {
            Mode::Initialize => None,
            Mode::Backup(backup) => Some(self.backup_deadline(backup, group)),
            Mode::Active(active) => Some(active.deadline()),
        };
        own.into_iter().chain(self.alarms.deadline()).min()
    }

    /// This process did not run for so long. Whoever was active can no more believe that it still is.
    pub(crate) fn paused(&mut self, now: Moment, by: Duration, out: &mut Vec<Action>) {
        let patience = self.settings.interval * 3;
        let down = self.down_interval(self.settings.interval);
        match &mut self.mode {
            Mode::Active(_) if by >= patience && self.settings.priority != OWNER => {
                self.step_down(now, Reason::Paused { by }, false, out);
            }
            // The kernel drops addresses that nobody refreshes, and nobody did: they have to be there before they are announced.
            Mode::Active(_) => out.push(Action::Hold { router: self.settings.name.clone() }),
            // What was said meanwhile was not heard.
            Mode::Backup(backup) => backup.listen(now, down),
            Mode::Initialize => {}
        }
    }

    // ---- Transitions -------------------------------------------------------------------------------------------------

    fn become_active(&mut self, now: Moment, reason: Reason, out: &mut Vec<Action>) {
        let router = || self.settings.name.clone();
        // The address is here before anybody is told, so that nobody finds it closed.
        out.push(Action::Hold { router: router() });
        out.push(Action::Announce { router: router() });
        out.push(Action::Advertise { router: router(), priority: self.priority() });
        self.counters.announcements += 1;
        self.counters.adverts.sent += 1;
        self.change_mode(
            now,
            Mode::Active(Active::new(now, self.settings.interval, !self.is_fit())),
            reason,
            out,
        );
    }

    fn become_backup(&mut self, now: Moment, reason: Reason, out: &mut Vec<Action>) {
        let backup = Backup::new(now, self.settings.interval, self.down_interval(self.settings.interval));
        self.unsaid = true;
        self.change_mode(now, Mode::Backup(backup), reason, out);
    }

    /// From Active to Backup, the addresses first. `say`: one advert of our lower priority, so that a winner that has not heard
    /// of us tells the neighbours anew that the addresses are there.
    fn step_down(&mut self, now: Moment, reason: Reason, say: bool, out: &mut Vec<Action>) {
        let router = self.settings.name.clone();
        out.push(Action::Release { router: router.clone() });
        if say {
            out.push(Action::Advertise { router, priority: self.priority() });
            self.counters.adverts.sent += 1;
        }
        self.become_backup(now, reason, out);
        self.unsaid = !say;
    }

    /// Out of the election: the addresses first, then priority 0.
    fn leave(&mut self, now: Moment, why: Farewell, to: Option<NodeName>, out: &mut Vec<Action>) {
        if self.state() == State::Active {
            self.let_go(out);
        }
        let reason = match why {
            Farewell::Link(fault) => Reason::LinkLost(fault),
            Farewell::Stop => Reason::Stopped { to },
            Farewell::Reconfigured => Reason::Reconfigured,
        };
        self.change_mode(now, Mode::Initialize, reason, out);
        self.alarms.clear(&self.settings.name, out);
    }

    /// The addresses, then priority 0.
    fn let_go(&mut self, out: &mut Vec<Action>) {
        let router = self.settings.name.clone();
        out.push(Action::Release { router: router.clone() });
        out.push(Action::Advertise { router, priority: 0 });
        self.counters.adverts.sent += 1;
    }

    fn change_mode(&mut self, now: Moment, mode: Mode, reason: Reason, out: &mut Vec<Action>) {
        let from = self.state();
        self.mode = mode;
        self.since = now;
        self.counters.transition(&reason);
        let transition = Transition {
            router: self.settings.name.clone(),
            from,
            to: self.state(),
            reason,
            priority: self.priority(),
        };
        out.push(Action::Note(Note::Transition(transition)));
    }

    // ---- What is shown -----------------------------------------------------------------------------------------------

    /// For people and machines.
    pub fn status(&self, now: Moment, group: &Group) -> RouterStatus {
        let settings = &self.settings;
        let holders_seen = self.rivals.count_active(now) + usize::from(self.state() == State::Active);
        RouterStatus {
            name: settings.name.clone(),
            interface: settings.interface.clone(),
            router_id: settings.router_id,
            version: if settings.version_2 { 2 } else { 3 },
            addresses: settings.addresses.iter().map(ToString::to_string).collect(),
            state: self.state(),
            since_ms: millis(now.since(self.since)),
            base_priority: settings.priority,
            priority: self.priority(),
            fit: self.is_fit(),
            unfit: self.unfit(),
            yielded: self.yielded,
            holder: self.holder(now, group),
            source: self.source.filter(|_| self.fault.is_none()),
            link_fault: self.fault.as_ref().map(Said::from),
            counters: self.counters.clone(),
            holders_seen: holders_seen as u64,
            alarms: self.alarms.current().map(Said::from).collect(),
        }
    }

    fn unfit(&self) -> Option<String> {
        match &self.proxy {
            _ if self.is_fit() => None,
            _ if self.stopping => Some("pointsman-vip stops".to_owned()),
            _ if self.yielded => Some("an operator wished it to yield".to_owned()),
            Proxy::Unwell { why } => Some(format!("the proxy does not serve: {why}")),
            Proxy::Well => None,
        }
    }

    fn holder(&self, now: Moment, group: &Group) -> Option<Holder> {
        let (rank, ours) = match &self.mode {
            Mode::Initialize => (None, None),
            Mode::Backup(backup) => (backup.holder().or_else(|| self.rivals.first(now)), None),
            Mode::Active(_) => (self.rank(), Some(self.own.clone())),
        };
        let Rank { priority, address } = rank?;
        let node = ours.or_else(|| rivals::node_at(group, &self.settings.name, address));
        Some(Holder { address, priority, node })
    }

    // ---- Who is first ------------------------------------------------------------------------------------------------

    fn rank(&self) -> Option<Rank> {
        Some(Rank { priority: self.priority(), address: self.source? })
    }

    /// How long nothing may be heard (RFC 9568: `Active_Down_Interval`).
    fn down_interval(&self, interval: Duration) -> Duration {
        interval * 3 + self.settings.skew(self.priority(), interval)
    }

    /// Whether we are the first of those who could take over now: fit before unfit, then by rank.
    fn is_heir(&self, group: &Group) -> bool {
        let Some(rank) = self.rank() else { return false };
        let ours = (self.is_fit(), rank);
        candidates(group, &self.settings.name).all(|(_, fit, rank)| (fit, rank) < ours)
    }

    /// The first of the other hosts that could take over from us, and would be better than we are.
    fn heir<'a>(&self, group: &'a Group) -> Option<&'a NodeName> {
        let fit = candidates(group, &self.settings.name).filter(|(_, fit, _)| *fit);
        fit.max_by_key(|(_, _, rank)| *rank).map(|(node, _, _)| node)
    }

    /// Whether we may take over from somebody who holds the addresses rightly.
    fn may_preempt(&self, world: World<'_>) -> bool {
        self.is_fit() && self.settings.preempt && world.now >= self.preempt_at(world.group)
    }

    /// Not before we, and the other hosts, have been well for a while.
    fn preempt_at(&self, group: &Group) -> Moment {
        if self.settings.priority == OWNER {
            return self.well_since;
        }
        self.well_since.max(group.changed()) + self.settings.preempt_delay
    }

    /// Whether there may be routers in our group of which we know nothing but their adverts: keepalived, or a host that the
    /// other hosts' signals do not reach.
    fn has_strangers(&self, group: &Group) -> bool {
        group.is_empty() || self.rivals.strangers()
    }
}

/// The other live hosts that take part: who, whether it is fit, and its rank.
fn candidates<'a>(
    group: &'a Group,
    router: &VipName,
) -> impl Iterator<Item = (&'a NodeName, bool, Rank)> + use<'a> {
    let router = router.clone();
    group.live().filter_map(move |(node, report)| {
        let theirs = report.routers.get(&router)?;
        let rank = rank_of(theirs)?;
        (theirs.state != State::Initialize).then_some((node, theirs.fit, rank))
    })
}

fn rank_of(report: &RouterReport) -> Option<Rank> {
    Some(Rank { priority: report.priority, address: report.source? })
}

/// The live hosts that say that they are active.
fn holders<'a>(
    group: &'a Group,
    router: &VipName,
) -> impl Iterator<Item = (&'a NodeName, &'a RouterReport, Rank)> + use<'a> {
    let router = router.clone();
    group.live().filter_map(move |(node, report): (&NodeName, &Report)| {
        let theirs = report.routers.get(&router)?;
        (theirs.state == State::Active).then_some((node, theirs, rank_of(theirs)?))
    })
}
