//! What happens: packets, claims, interfaces, addresses, wishes.

use std::net::IpAddr;

use pointsman_config::{Vip, VipName};
use pointsman_vrrp::advert::{decode, peek};
use pointsman_vrrp::event::{Event, Link, LinkFault};
use pointsman_vrrp::time::Moment;
use tokio::time::sleep_until;

use super::interfaces::{Arrival, Interface};
use super::reload::finished;
use super::{Carried, ROUND, Woken, Worker};
use crate::netlink::{NetlinkError, NetlinkEvent, NetlinkEvents};
use crate::peers::Peers;
use crate::raw::Family;
use crate::side;

impl Worker {
    /// Waits for something to happen, or for the next thing to do. Cancel-safe.
    pub(super) async fn wait(&mut self) -> Woken {
        let held = self.routers.values().any(|router| router.held || router.lingers);
        let due = self.node.deadline().into_iter().chain([self.beat_at, self.show_at]);
        let due = due.chain(held.then_some(self.refresh_at)).min().unwrap_or(self.beat_at);
        let due = self.began + due.since(Moment::ZERO);
        let peers = async {
            match &mut self.peers {
                Some(peers) => peers.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            event = peers => Woken::Event(event),
            () = self.interfaces.readable() => Woken::Something,
            event = self.events.next() => Woken::Netlink(event),
            command = self.guard.command() => Woken::Guard(command),
            read = finished(&mut self.reading) => Woken::Read(Box::new(read)),
            Some(proxy) = self.ends.proxy.recv() => Woken::Event(Event::Proxy(proxy)),
            Some(command) = self.ends.commands.recv() => Woken::Side(command),
            () = sleep_until(due.into()) => Woken::Something,
        }
    }

    /// Whatever has arrived already.
    pub(super) fn take_all(&mut self) {
        for name in self.interfaces.names() {
            for _ in 0..ROUND {
                if !self.take_from(&name) {
                    break;
                }
            }
        }
        for _ in 0..ROUND {
            let Some(event) = self.peers.as_mut().and_then(Peers::take) else { break };
            self.tell(event);
        }
    }

    /// One packet. False when there was none.
    pub(super) fn take_from(&mut self, name: &str) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        let arrival = self.interfaces.take(name, &mut buffer);
        let took = arrival.is_some();
        let event = arrival.and_then(|arrival| self.understand(name, &arrival));
        self.buffer = buffer;
        if let Some(event) = event {
            self.tell(event);
        }
        took
    }

    pub(super) fn understand(&self, interface: &str, arrival: &Arrival<'_>) -> Option<Event> {
        let here = |router: &&Carried| router.vip.interface == interface;
        match arrival {
            Arrival::Vrrp(envelope, payload) => {
                let (_, router_id) = peek(payload)?;
                let family = Family::of(envelope.source);
                let ours = self.routers.values().filter(here).find(|router| {
                    router.vip.router_id == router_id && router.form.is_ipv6() == (family == Family::V6)
                });
                let from = envelope.source;
                let Some(ours) = ours else {
                    return Some(Event::Foreign { interface: interface.to_owned(), router_id, from });
                };
                let router = ours.vip.name.clone();
                Some(match decode(payload, envelope, &ours.form) {
                    Ok(advert) => Event::Advert { router, from, advert },
                    Err(reject) => Event::Rejected { router, from, reject },
                })
            }
            Arrival::Claim(address, mac) => {
                if self.interfaces.get(interface)?.mac() == Some(*mac) {
                    return None;
                }
                let has = |router: &&Carried| router.vip.addresses.iter().any(|net| net.addr() == *address);
                let router = self.routers.values().filter(here).find(has)?;
                Some(Event::Claimed { router: router.vip.name.clone(), address: *address, mac: *mac })
            }
        }
    }

    /// Something has happened to an interface or an address.
    pub(super) fn changed(&mut self, event: Result<NetlinkEvent, NetlinkError>) {
        match event {
            Ok(NetlinkEvent::Link(link) | NetlinkEvent::LinkGone(link)) => {
                if self.interfaces.concerns(link.index, Some(&link.name)) {
                    self.look_again();
                }
            }
            Ok(NetlinkEvent::AddressAdded { index, address }) => {
                // Those that we refresh ourselves are told twice a second.
                if self.interfaces.concerns(index, None) && !self.is_virtual(address.net.addr()) {
                    self.look_again();
                }
            }
            Ok(NetlinkEvent::AddressRemoved { index, address }) => {
                if self.is_virtual(address.net.addr()) {
                    self.was_removed(index, address.net.addr());
                } else if self.interfaces.concerns(index, None) {
                    self.look_again();
                }
            }
            Ok(NetlinkEvent::Lagging) => self.look_again(),
            Err(error) => {
                self.complain("netlink", &error);
                match NetlinkEvents::open() {
                    Ok(events) => self.events = events,
                    Err(error) => self.complain("netlink", &error),
                }
                self.look_again();
            }
        }
    }

    pub(super) fn is_virtual(&self, address: IpAddr) -> bool {
        let has = |router: &Carried| router.vip.addresses.iter().any(|net| net.addr() == address);
        self.routers.values().any(has)
    }

    /// One of our addresses is gone: by us, or by somebody else. An old event may tell of one that is back already.
    pub(super) fn was_removed(&mut self, index: u32, address: IpAddr) {
        let held = self.routers.values().find(|router| {
            router.held
                && router.vip.addresses.iter().any(|net| net.addr() == address)
                && self.index(&router.vip.interface) == Some(index)
        });
        let Some(router) = held.map(|router| router.vip.name.clone()) else { return };
        let there = self.netlink.addresses(index);
        let there = there.is_ok_and(|all| all.iter().any(|one| one.net.addr() == address));
        if !there {
            self.tell(Event::AddressGone { router, address });
        }
    }

    pub(super) fn index(&self, interface: &str) -> Option<u32> {
        self.interfaces.get(interface).and_then(Interface::index)
    }

    pub(super) fn read_interfaces(&mut self) {
        for name in self.interfaces.names() {
            self.interfaces.read(&self.netlink, &name);
        }
    }

    /// Reads the interfaces, and tells whoever is concerned.
    pub(super) fn look_again(&mut self) {
        self.read_interfaces();
        if let Err(error) = self.cover() {
            self.complain("guard", &error);
        }
        self.tell_links(None);
    }

    /// Tells virtual routers what their interfaces are: those for which that has changed, or these.
    pub(super) fn tell_links(&mut self, new: Option<&[VipName]>) {
        let all: Vec<VipName> = self.routers.keys().cloned().collect();
        for name in all {
            let Some(router) = self.routers.get(&name) else { continue };
            let link = self.link(&router.vip);
            let source = match link {
                Link::Up { source } => Some(source),
                Link::Down(_) => None,
            };
            let fresh = new.is_some_and(|new| new.contains(&name));
            if let Some(router) = self.routers.get_mut(&name) {
                router.source = source.or(router.source);
            }
            if fresh || new.is_none() {
                self.tell(Event::Link { router: name, link });
            }
        }
    }

    pub(super) fn link(&self, vip: &Vip) -> Link {
        let link = self.interfaces.link(vip);
        let open = self.interfaces.get(&vip.interface).is_some_and(Interface::is_open);
        match link {
            Link::Up { .. } if !open => Link::Down(LinkFault::Missing(vip.interface.clone())),
            Link::Up { .. } | Link::Down(_) => link,
        }
    }

    /// An operator's wish.
    pub(super) fn obey(&mut self, command: side::Command) {
        let (event, answer) = match command {
            side::Command::Yield { router, answer } => (Event::Yield { router }, answer),
            side::Command::Resume { router, answer } => (Event::Resume { router }, answer),
        };
        self.tell(event);
        self.show();
        let _ = answer.send(()); // who asked may have gone
    }
}
