//! The network interfaces of this host, as far as a virtual router uses or tracks them: what they are, and their sockets.
//!
//! Sockets belong to an interface and not to its name: one that is deleted and made again gets new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;

use futures_util::future::select_all;
use pointsman_config::{IpNet, Vip};
use pointsman_vrrp::advert::{Envelope, HOP_LIMIT};
use pointsman_vrrp::event::{Link, LinkFault};
use pointsman_vrrp::frame::{Mac, claim_of_arp, claim_of_neighbour_advertisement};

use crate::neighbours::{self, AdvertisementListener, ArpListener, FrameSender};
use crate::netlink::{LinkInfo, Netlink};
use crate::raw::{self, Family, RawError, VrrpSocket};

/// What came in by an interface.
#[derive(Debug)]
pub(super) enum Arrival<'b> {
    /// A VRRP packet.
    Vrrp(Envelope, &'b [u8]),
    /// Somebody says that it has an address.
    Claim(IpAddr, Mac),
}

/// All of them, by name.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    known: BTreeMap<String, Interface>,
}

/// One of them.
#[derive(Debug, Default)]
pub(super) struct Interface {
    /// As it was read last. `None`: there is none of this name.
    pub(super) info: Option<LinkInfo>,
    /// The virtual addresses here.
    ours: BTreeSet<IpAddr>,
    sockets: Option<Sockets>,
    /// The last attempt to read it failed.
    unread: bool,
}

/// Open while the interface is there.
#[derive(Debug)]
struct Sockets {
    index: u32,
    ours: BTreeSet<IpAddr>,
    vrrp: Vec<VrrpSocket>,
    frames: FrameSender,
    arp: Option<ArpListener>,
    advertisements: Option<AdvertisementListener>,
}

impl Sockets {
    fn open(index: u32, name: &str, ours: &BTreeSet<IpAddr>) -> Result<Self, RawError> {
        let families: BTreeSet<Family> = ours.iter().map(|address| Family::of(*address)).collect();
        let vrrp = families.iter().map(|family| VrrpSocket::open(*family, index, name));
        let v4: Vec<Ipv4Addr> = ours
            .iter()
            .filter_map(|address| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            })
            .collect();
        let arp = (!v4.is_empty()).then(|| ArpListener::open(index, name, &v4));
        let v6 = families.contains(&Family::V6);
        let advertisements = v6.then(|| AdvertisementListener::open(index, name));
        Ok(Self {
            index,
            ours: ours.clone(),
            vrrp: vrrp.collect::<Result<_, _>>()?,
            frames: FrameSender::open(index, name)?,
            arp: arp.transpose()?,
            advertisements: advertisements.transpose()?,
        })
    }

    /// What has arrived, if anything has.
    fn take<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Option<Arrival<'b>>, RawError> {
        // The borrow of the one that has something ends with the function: asked first, taken then.
        for number in 0..self.vrrp.len() {
            let Some(socket) = self.vrrp.get_mut(number) else { break };
            if let Some((envelope, length)) = take_vrrp(socket, buffer)? {
                return Ok(buffer.get(..length).map(|payload| Arrival::Vrrp(envelope, payload)));
            }
        }
        if let Some(arp) = &mut self.arp
            && let Some(frame) = arp.try_receive(buffer)?
        {
            // One that claims nothing is an arrival all the same: there may be more behind it.
            let claim = claim_of_arp(frame).map(|(address, mac)| Arrival::Claim(address.into(), mac));
            return Ok(Some(claim.unwrap_or(NOTHING)));
        }
        if let Some(listener) = &mut self.advertisements
            && let Some(advertisement) = listener.try_receive(buffer)?
        {
            let local = advertisement.hop_limit == HOP_LIMIT;
            let claim = claim_of_neighbour_advertisement(advertisement.message, advertisement.source);
            let claim = claim.filter(|_| local).map(|(address, mac)| Arrival::Claim(address.into(), mac));
            return Ok(Some(claim.unwrap_or(NOTHING)));
        }
        Ok(None)
    }

    fn readable<'s>(&'s self, all: &mut Vec<Readable<'s>>) {
        for socket in &self.vrrp {
            all.push(Box::pin(socket.readable()));
        }
        if let Some(arp) = &self.arp {
            all.push(Box::pin(arp.readable()));
        }
        if let Some(advertisements) = &self.advertisements {
            all.push(Box::pin(advertisements.readable()));
        }
    }
}

/// One of several that are waited for.
type Readable<'s> = Pin<Box<dyn Future<Output = Result<(), RawError>> + 's>>;

/// A claim of an address that nobody has.
const NOTHING: Arrival<'static> = Arrival::Claim(IpAddr::V4(Ipv4Addr::UNSPECIFIED), Mac::BROADCAST);

/// The payload at the beginning of the buffer.
fn take_vrrp(socket: &mut VrrpSocket, buffer: &mut [u8]) -> Result<Option<(Envelope, usize)>, RawError> {
    let mut packet = [0; raw::BUFFER];
    let Some((envelope, payload)) = socket.try_receive(&mut packet)? else { return Ok(None) };
    let length = payload.len().min(buffer.len());
    if let (Some(to), Some(from)) = (buffer.get_mut(..length), payload.get(..length)) {
        to.copy_from_slice(from);
    }
    Ok(Some((envelope, length)))
}

/// Room for whatever may arrive.
pub(super) const BUFFER: usize =
    if raw::BUFFER > neighbours::BUFFER { raw::BUFFER } else { neighbours::BUFFER };

impl Interfaces {
    /// Knows those that these virtual routers need, and no others.
    pub(super) fn set(&mut self, vips: &[Vip]) {
        let mut wanted: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        for vip in vips {
            let ours = wanted.entry(vip.interface.clone()).or_default();
            ours.extend(vip.addresses.iter().map(IpNet::addr));
            for tracked in &vip.track.interfaces {
                wanted.entry(tracked.clone()).or_default();
            }
        }
        self.known.retain(|name, _| wanted.contains_key(name));
        for (name, ours) in wanted {
            self.known.entry(name).or_default().ours = ours;
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.known.keys().cloned().collect()
    }

    /// Whether an event of the kernel concerns one of them.
    pub(super) fn concerns(&self, index: u32, name: Option<&str>) -> bool {
        let has_index =
            |interface: &Interface| interface.info.as_ref().is_some_and(|info| info.index == index);
        name.is_some_and(|name| self.known.contains_key(name)) || self.known.values().any(has_index)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Interface> {
        self.known.get(name)
    }

    /// Those that are there: their number, and whether they were up with a carrier when they were read last.
    pub(super) fn present(&self) -> impl Iterator<Item = (&str, u32, bool)> {
        self.known.iter().filter_map(|(name, interface)| {
            let info = interface.info.as_ref()?;
            Some((name.as_str(), info.index, info.up && info.carrier))
        })
    }

    /// Whether one of them could not be read, or its sockets not be opened: no event will tell when they can.
    pub(super) fn are_unsure(&self) -> bool {
        let closed = |one: &Interface| one.info.is_some() && !one.ours.is_empty() && one.sockets.is_none();
        self.known.values().any(|interface| interface.unread || closed(interface))
    }

    /// Reads one anew, and opens or closes its sockets accordingly.
    pub(super) fn read(&mut self, netlink: &Netlink, name: &str) {
        let Some(interface) = self.known.get_mut(name) else { return };
        let read = netlink.link(name);
        interface.unread = read.is_err();
        match read {
            Ok(info) => interface.info = info,
            Err(error) => {
                tracing::warn!(%error, "an interface cannot be read; it is taken for what it was");
            }
        }
        interface.attend(name);
    }

    /// What has arrived anywhere.
    pub(super) fn take<'b>(&mut self, name: &str, buffer: &'b mut [u8]) -> Option<Arrival<'b>> {
        let sockets = self.known.get_mut(name)?.sockets.as_mut()?;
        match sockets.take(buffer) {
            Ok(arrival) => arrival,
            Err(error) => {
                tracing::warn!(%error, "the sockets of an interface are opened anew");
                let interface = self.known.get_mut(name)?;
                interface.sockets = None;
                interface.attend(name);
                None
            }
        }
    }

    /// Waits until something may have arrived. Cancel-safe.
    pub(super) async fn readable(&self) {
        let mut all = Vec::new();
        for sockets in self.known.values().filter_map(|interface| interface.sockets.as_ref()) {
            sockets.readable(&mut all);
        }
        if all.is_empty() {
            std::future::pending::<()>().await;
        }
        // An error is found again, and told, by whoever takes.
        let _ = select_all(all).await;
    }

    pub(super) fn send(
        &mut self,
        name: &str,
        source: IpAddr,
        to: IpAddr,
        packet: &[u8],
    ) -> Result<(), RawError> {
        let sockets = self.known.get_mut(name).and_then(|interface| interface.sockets.as_mut());
        let family = Family::of(to);
        let socket = sockets.and_then(|sockets| sockets.vrrp.iter_mut().find(|one| one.family() == family));
        socket.map_or(Ok(()), |socket| socket.send(source, to, packet))
    }

    pub(super) fn send_frame(&self, name: &str, frame: &[u8]) -> Result<(), RawError> {
        let sockets = self.known.get(name).and_then(|interface| interface.sockets.as_ref());
        sockets.map_or(Ok(()), |sockets| sockets.frames.send(frame))
    }

    /// What an interface is for a virtual router, and those that it tracks.
    pub(super) fn link(&self, vip: &Vip) -> Link {
        let tracked = std::iter::once(&vip.interface).chain(&vip.track.interfaces);
        for name in tracked {
            if let Some(fault) = self.fault(name) {
                return Link::Down(fault);
            }
        }
        match self.source(vip) {
            Some(source) => Link::Up { source },
            None => Link::Down(LinkFault::NoAddress(vip.interface.clone())),
        }
    }

    fn fault(&self, name: &str) -> Option<LinkFault> {
        match self.known.get(name).and_then(|interface| interface.info.as_ref()) {
            None => Some(LinkFault::Missing(name.to_owned())),
            Some(info) if !info.up => Some(LinkFault::Down(name.to_owned())),
            Some(info) if !info.carrier => Some(LinkFault::NoCarrier(name.to_owned())),
            Some(_) => None,
        }
    }

    /// Where the adverts of a virtual router come from. By multicast: the interface's own address, in IPv6 the link-local one.
    /// By unicast: the one that the others know us by.
    fn source(&self, vip: &Vip) -> Option<IpAddr> {
        let interface = self.known.get(&vip.interface)?;
        let info = interface.info.as_ref()?;
        let virtual_addresses: Vec<IpNet> =
            interface.ours.iter().map(|address| IpNet::from(*address)).collect();
        if vip.unicast.is_empty() {
            return info.source(vip.is_ipv6(), &virtual_addresses);
        }
        let is_own =
            |address: &IpAddr| !interface.ours.contains(address) && address.is_ipv6() == vip.is_ipv6();
        let usable = info.addresses.iter().filter(|address| address.usable).map(|address| address.net.addr());
        let own: Vec<IpAddr> = usable.filter(is_own).collect();
        let is_link_local =
            |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let named = own.iter().find(|address| vip.unicast.contains(address));
        let global = || own.iter().find(|address| !is_link_local(address));
        named.or_else(global).or_else(|| own.first()).copied()
    }
}

impl Interface {
    /// Sockets as the interface is now.
    fn attend(&mut self, name: &str) {
        let index = self.info.as_ref().map(|info| info.index);
        let fits =
            self.sockets.as_ref().is_some_and(|open| Some(open.index) == index && open.ours == self.ours);
        if fits {
            return;
        }
        self.sockets = None;
        let Some(index) = index.filter(|_| !self.ours.is_empty()) else { return };
        match Sockets::open(index, name, &self.ours) {
            Ok(sockets) => self.sockets = Some(sockets),
            Err(error) => tracing::error!(interface = %name, %error, "this interface cannot be used"),
        }
    }

    pub(super) fn index(&self) -> Option<u32> {
        self.info.as_ref().map(|info| info.index)
    }

    pub(super) fn mac(&self) -> Option<Mac> {
        self.info.as_ref().and_then(|info| info.mac)
    }

    /// Whether the sockets could be opened: without them an interface is as good as none.
    pub(super) fn is_open(&self) -> bool {
        self.sockets.is_some()
    }
}

/// Whether this host forwards IPv6 packets from an interface: what neighbour advertisements have to say then.
pub(super) fn forwards_ipv6(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/forwarding");
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
}
