//! What is to be done: addresses, adverts, announcements, and what the guard has to know of them.

use pointsman_config::{IpNet, Vip, VipName};
use pointsman_vrrp::advert::{Advert, Packet};
use pointsman_vrrp::event::{Action, Event, Link};
use pointsman_vrrp::frame::announcement;

use super::interfaces::Interface;
use super::{Carried, RETRY, Worker};
use crate::guard::{Cover, Farewell, LinkError};
use crate::netlink::Lifetime;
use crate::side::Notice;

impl Worker {
    pub(super) fn tell(&mut self, event: Event) {
        let actions = self.node.handle(self.now(), event);
        self.carry_out(actions);
    }

    pub(super) fn carry_out(&mut self, actions: Vec<Action>) {
        let mut news = false;
        for action in actions {
            match action {
                Action::Hold { router } => self.hold(&router),
                Action::Release { router } => self.release(&router),
                Action::Advertise { router, priority } => self.advertise(&router, priority),
                Action::Announce { router } => self.announce(&router),
                Action::Report(report) => {
                    if let Some(peers) = &mut self.peers {
                        peers.send(&report);
                    }
                }
                Action::Note(note) => {
                    news = true;
                    self.note(note);
                }
            }
        }
        if news {
            self.show();
        }
    }

    pub(super) fn hold(&mut self, name: &VipName) {
        if let Some(router) = self.routers.get_mut(name) {
            router.held = true;
            router.lingers = false;
            self.guard.held(name, true);
        }
        self.put(name);
    }

    /// Puts the addresses of a virtual router on its interface, or makes them last.
    pub(super) fn put(&mut self, name: &VipName) {
        let Some(router) = self.routers.get(name) else { return };
        let Some(index) = self.index(&router.vip.interface) else { return };
        let addresses =
            if router.is_owner() { self.not_there(index, &router.vip) } else { router.vip.addresses.clone() };
        if let Err(error) = self.netlink.add_all(index, &addresses, Lifetime::HELD) {
            self.complain("hold", &error);
            self.refresh_at = self.now() + RETRY;
        }
    }

    /// An owner's addresses that are not on the interface: those that are there are there for good.
    pub(super) fn not_there(&self, index: u32, vip: &Vip) -> Vec<IpNet> {
        let there = self.netlink.addresses(index).unwrap_or_default();
        let permanent = |net: &&IpNet| {
            !there.iter().any(|one| one.net.addr() == net.addr() && one.lifetime == Lifetime::Permanent)
        };
        vip.addresses.iter().filter(permanent).copied().collect()
    }

    pub(super) fn release(&mut self, name: &VipName) {
        if let Some(router) = self.routers.get_mut(name) {
            router.held = false;
            router.lingers = true;
        }
        self.remove(name);
        if let Some(router) = self.routers.get(name) {
            let addresses = router.vip.addresses.iter().map(IpNet::addr).collect();
            self.ends.tell(Notice::Left { router: name.clone(), addresses });
        }
    }

    pub(super) fn remove(&mut self, name: &VipName) {
        let Some(router) = self.routers.get(name) else { return };
        let index = self.index(&router.vip.interface);
        let owner = router.is_owner();
        let removed = match index {
            Some(index) if !owner => {
                let all = router.vip.addresses.iter().map(|net| (index, *net)).collect();
                self.netlink.remove_all(all)
            }
            Some(_) | None => Ok(()), // gone with its interface, or there for good
        };
        match removed {
            Ok(()) => {
                if let Some(router) = self.routers.get_mut(name) {
                    router.lingers = false;
                }
                self.guard.held(name, false);
            }
            Err(error) => {
                self.complain("release", &error);
                self.refresh_at = self.now() + RETRY;
            }
        }
    }

    pub(super) fn advertise(&mut self, name: &VipName, priority: u8) {
        let Some(router) = self.routers.get(name) else { return };
        let Some(source) = router.source else { return };
        let advert = Advert::of(&router.vip, priority);
        let interface = router.vip.interface.clone();
        for packet in router.form.packets(&advert, source) {
            let sent = self.interfaces.send(&interface, source, packet.envelope.destination, &packet.payload);
            // An interface that is down takes nothing; that it is down is told elsewhere.
            if let Err(error) = sent
                && self.is_usable(name)
            {
                self.complain("advert", &error);
            }
        }
    }

    pub(super) fn is_usable(&self, name: &VipName) -> bool {
        self.routers.get(name).is_some_and(|router| matches!(self.link(&router.vip), Link::Up { .. }))
    }

    pub(super) fn announce(&mut self, name: &VipName) {
        let Some(router) = self.routers.get(name) else { return };
        let interface = router.vip.interface.clone();
        let Some(mac) = self.interfaces.get(&interface).and_then(Interface::mac) else { return };
        let frames: Vec<_> =
            router.vip.addresses.iter().map(|net| announcement(net.addr(), mac, router.forwards)).collect();
        for frame in frames {
            if let Err(error) = self.interfaces.send_frame(&interface, &frame)
                && self.is_usable(name)
            {
                self.complain("announcement", &error);
            }
        }
    }

    /// What the guard has to know to clean up behind us.
    pub(super) fn cover(&mut self) -> Result<(), LinkError> {
        let covers: Vec<Cover> = self.routers.values().filter_map(|router| self.cover_of(router)).collect();
        self.guard.describe(&covers)
    }

    pub(super) fn cover_of(&self, router: &Carried) -> Option<Cover> {
        let interface = router.vip.interface.clone();
        let source = match self.interfaces.link(&router.vip) {
            Link::Up { source } => Some(source),
            Link::Down(_) => router.source,
        };
        let farewells = source.map(|source| router.form.packets(&Advert::of(&router.vip, 0), source));
        let farewell = |packet: Packet| Farewell { envelope: packet.envelope, packet: packet.payload };
        Some(Cover {
            router: router.vip.name.clone(),
            index: self.index(&interface)?,
            interface,
            addresses: if router.is_owner() { Vec::new() } else { router.vip.addresses.clone() },
            farewells: farewells.unwrap_or_default().into_iter().map(farewell).collect(),
        })
    }
}
