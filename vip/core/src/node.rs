//! Everything of one load-balancer host: its virtual routers and what it knows of the other hosts.
//!
//! The shell tells a [`Node`] what happens, carries out what it answers, in that order, and wakes it at [`Node::deadline`]. What
//! has arrived is told before time is: a process that was not scheduled for a while must hear first what happened meanwhile.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::time::Duration;

use pointsman_config::{NodeName, VipName};

use crate::event::{Action, Event, Proxy, State, Wire};
use crate::group::{Group, Standing};
use crate::note::{Note, PeerNews, Repair};
use crate::report::Report;
use crate::router::{Router, Settings, World};
use crate::status::{Foreign, PeerState, PeerStatus, ProxyStatus, Status, millis};
use crate::time::Moment;

/// Virtual routers of others that are remembered.
const FOREIGN: usize = 64;

/// A delay of a timer that is no pause of the process yet.
const JITTER: Duration = Duration::from_millis(100);

/// What the configuration says of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// Its name.
    pub node: NodeName,
    /// Its virtual routers, in the order of the file.
    pub routers: Vec<Settings>,
    /// The other hosts that it exchanges reports with.
    pub peers: BTreeMap<NodeName, SocketAddr>,
    /// The time between two reports.
    pub heartbeat: Duration,
}

/// A host.
#[derive(Clone, Debug)]
pub struct Node {
    settings: NodeSettings,
    group: Group,
    routers: BTreeMap<VipName, Router>,
    proxy: Option<Proxy>,
    stopping: bool,
    foreign: BTreeMap<(String, NonZeroU8), (IpAddr, u64)>,
    reported: Report,
    report_at: Moment,
    /// What [`Self::deadline`] said last: how late we are tells whether the process was stopped.
    promised: Option<Moment>,
}

impl Node {
    /// A host whose virtual routers wait for their interfaces.
    pub fn new(now: Moment, settings: NodeSettings) -> Self {
        let group = Group::new(settings.peers.keys().cloned(), settings.heartbeat);
        let router =
            |of: &Settings| (of.name.clone(), Router::new(settings.node.clone(), of.clone(), Proxy::Well));
        let routers = settings.routers.iter().map(router).collect();
        let mut node = Self {
            settings,
            group,
            routers,
            proxy: None,
            stopping: false,
            foreign: BTreeMap::new(),
            reported: Report::default(),
            report_at: now,
            promised: None,
        };
        node.reported = node.report();
        node
    }

    /// The virtual routers.
    pub fn routers(&self) -> impl Iterator<Item = &Router> {
        self.routers.values()
    }

    /// True when no virtual router takes part in anything: after [`Event::Stop`], the process can end.
    pub fn is_idle(&self) -> bool {
        self.routers.values().all(|router| router.state() == State::Initialize)
    }

    /// Something has happened.
    pub fn handle(&mut self, now: Moment, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.notice_pause(now, &mut out);
        self.take(now, event, &mut out);
        self.conclude(now, &mut out);
        out
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment) -> Vec<Action> {
        let mut out = Vec::new();
        self.notice_pause(now, &mut out);
        self.conclude(now, &mut out);
        out
    }

    /// When [`Self::tick`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        let routers = self.routers.values().filter_map(|router| router.deadline(&self.group));
        let report = (!self.group.is_empty()).then_some(self.report_at);
        routers.chain(self.group.deadline()).chain(report).min()
    }

    /// A process that was stopped, or a machine that was, cannot know who holds the addresses now.
    fn notice_pause(&mut self, now: Moment, out: &mut Vec<Action>) {
        let late = self.promised.map_or(Duration::ZERO, |promised| now.since(promised));
        if late < JITTER {
            return;
        }
        self.promised = Some(now);
        self.group.forgive(now);
        for router in self.routers.values_mut() {
            router.paused(now, late, out);
        }
    }

    fn take(&mut self, now: Moment, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Report { node, report } => {
                let news = self.group.report(now, &node, report);
                self.tell(now, node, news, out);
            }
            Event::Wire { node, wire } => {
                let news = self.group.wire(now, &node, wire);
                if wire == Wire::Connected {
                    self.report_at = now; // it wants to know
                }
                self.tell(now, node, news, out);
            }
            Event::Foreign { interface, router_id, from } => self.foreign(interface, router_id, from),
            Event::Proxy(proxy) => {
                self.proxy = Some(proxy.clone());
                self.each(now, None, |router, world| router.proxy(world, proxy.clone(), out));
            }
            Event::Yield { router } => {
                self.each(now, router.as_ref(), |router, world| router.set_yielded(world, true, out));
            }
            Event::Resume { router } => {
                self.each(now, router.as_ref(), |router, world| router.set_yielded(world, false, out));
            }
            Event::Stop => {
                self.stopping = true;
                self.each(now, None, |router, world| router.stop(world, out));
            }
            Event::Link { router, link } => {
                self.each(now, Some(&router), |router, world| router.link(world, link.clone(), out));
            }
            Event::Advert { router, from, advert } => {
                self.each(now, Some(&router), |router, world| router.advert(world, from, &advert, out));
            }
            Event::Rejected { router, from, reject } => {
                self.each(now, Some(&router), |router, world| router.rejected(world.now, from, &reject, out));
            }
            Event::Claimed { router, address, mac } => {
                self.each(now, Some(&router), |router, world| router.claimed(world, address, mac, out));
            }
            Event::AddressGone { router, address } => {
                self.each(now, Some(&router), |router, world| router.address_gone(world, address, out));
            }
        }
    }

    /// One virtual router, or all.
    fn each(&mut self, now: Moment, name: Option<&VipName>, mut act: impl FnMut(&mut Router, World<'_>)) {
        let world = World { now, group: &self.group };
        let chosen = self.routers.iter_mut().filter(|(known, _)| name.is_none_or(|name| name == *known));
        chosen.for_each(|(_, router)| act(router, world));
    }

    fn foreign(&mut self, interface: String, router_id: NonZeroU8, from: IpAddr) {
        let room = self.foreign.len() < FOREIGN;
        let key = (interface, router_id);
        if let Some((sender, count)) = self.foreign.get_mut(&key) {
            *sender = from;
            *count += 1;
        } else if room {
            self.foreign.insert(key, (from, 1));
        }
    }

    /// News of another host.
    fn tell(&mut self, now: Moment, node: NodeName, news: Option<PeerNews>, out: &mut Vec<Action>) {
        let Some(news) = news else { return };
        if news == PeerNews::Alive {
            // It may have held the addresses while it was cut off.
            self.each(now, None, |router, world| router.repair(world.now, Repair::Return, out));
        }
        out.push(Action::Note(Note::Peer { node, news }));
    }

    /// What follows from all that is known, until nothing more does.
    fn conclude(&mut self, now: Moment, out: &mut Vec<Action>) {
        for (node, news) in self.group.tick(now) {
            self.tell(now, node, Some(news), out);
        }
        let world = World { now, group: &self.group };
        for router in self.routers.values_mut() {
            router.consider(world, out);
        }
        self.report_if_due(now, out);
        self.promised = self.deadline();
    }

    /// Every heartbeat, and at once when there is something new.
    fn report_if_due(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.group.is_empty() {
            return;
        }
        let report = self.report();
        let changed = report != self.reported;
        if changed || now >= self.report_at {
            self.report_at = now + self.group.heartbeat();
            self.reported = report.clone();
            out.push(Action::Report(report));
        }
    }

    fn report(&self) -> Report {
        let routers = self.routers.iter().map(|(name, router)| (name.clone(), router.report())).collect();
        Report { routers, sees: self.group.sees() }
    }

    /// Takes a new configuration. Virtual routers that stay what they are keep their state; others leave the election, and new
    /// ones wait for [`Event::Link`]. Answers whose interface has to be looked at.
    pub fn reconfigure(&mut self, now: Moment, settings: NodeSettings) -> (Vec<Action>, Vec<VipName>) {
        let mut out = Vec::new();
        self.group.reconfigure(settings.peers.keys().cloned(), settings.heartbeat);
        let mut old = std::mem::take(&mut self.routers);
        let mut new = Vec::new();
        for of in &settings.routers {
            let kept = old.remove(&of.name).filter(|router| router.settings().is_same_router(of));
            let router = if let Some(mut router) = kept {
                router.reconfigure(now, of.clone(), &mut out);
                router
            } else {
                new.push(of.name.clone());
                Router::new(settings.node.clone(), of.clone(), self.proxy.clone().unwrap_or(Proxy::Well))
            };
            self.routers.insert(of.name.clone(), router);
        }
        self.settings = settings;
        self.conclude(now, &mut out);
        (out, new)
    }

    /// Before [`Self::reconfigure`]: lets go of the virtual routers that the new configuration does not have as they are.
    pub fn abandon(&mut self, now: Moment, settings: &NodeSettings) -> Vec<Action> {
        let mut out = Vec::new();
        let stays = |router: &Router| settings.routers.iter().any(|of| router.settings().is_same_router(of));
        for router in self.routers.values_mut().filter(|router| !stays(router)) {
            router.remove(now, &mut out);
        }
        out
    }

    /// For people and machines.
    pub fn status(&self, now: Moment) -> Status {
        let routers = self.settings.routers.iter().filter_map(|of| self.routers.get(&of.name));
        let mut status = Status::new(self.settings.node.clone());
        status.proxy = self.proxy.as_ref().map(ProxyStatus::from).unwrap_or_default();
        status.routers = routers.map(|router| router.status(now, &self.group)).collect();
        status.peers = self.peers(now);
        status.heartbeat_ms = (!self.group.is_empty()).then(|| millis(self.group.heartbeat()));
        let foreign = self.foreign.iter().map(|((interface, router_id), (from, count))| Foreign {
            interface: interface.clone(),
            router_id: *router_id,
            from: *from,
            count: *count,
        });
        status.foreign = foreign.collect();
        status
    }

    fn peers(&self, now: Moment) -> Vec<PeerStatus> {
        let peers = self.group.peers().filter_map(|(node, peer)| {
            let (state, how) = match peer.standing() {
                Standing::Unknown if peer.is_connected() => (PeerState::Connecting, None),
                Standing::Unknown => (PeerState::Unknown, None),
                Standing::Alive if peer.report().is_none() => (PeerState::Connecting, None),
                Standing::Alive if !peer.is_connected() => {
                    (PeerState::Alive, Some("its end would be seen by its silence only".to_owned()))
                }
                Standing::Alive => (PeerState::Alive, None),
                Standing::Lost(loss) => (PeerState::Lost, Some(loss.to_string())),
            };
            Some(PeerStatus {
                node: node.clone(),
                address: *self.settings.peers.get(node)?,
                state,
                how,
                heard_ms: peer.report().is_some().then(|| millis(now.since(peer.heard()))),
            })
        });
        peers.collect()
    }
}
