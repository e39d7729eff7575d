//! What tells neighbours who has an address: gratuitous ARP (RFC 826, RFC 5227) and unsolicited neighbour advertisements
//! (RFC 4861).
//!
//! Written as whole Ethernet frames, for a packet socket. Read: who claims which address, so that a claim of somebody else
//! on one of ours is seen. A claim is only what a neighbour would believe.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum;

#[cfg(test)]
mod tests;

/// Where neighbour advertisements to everybody go: `ff02::1` (RFC 4291, section 2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ETHERNET: usize = 14;
const ARP_TYPE: [u8; 2] = [0x08, 0x06];
const IPV6_TYPE: [u8; 2] = [0x86, 0xdd];
/// Ethernet, IPv4, addresses of 6 and of 4 bytes (RFC 826).
const ARP_FOR_IPV4: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;

const IPV6_HEADER: usize = 40;
const ICMPV6: u8 = 58;
/// RFC 4861, section 4.4: type, code, checksum, flags, target.
const ADVERTISEMENT: u8 = 136;
const ADVERTISEMENT_HEADER: usize = 24;
const FLAG_ROUTER: u8 = 0x80;
const FLAG_OVERRIDE: u8 = 0x20;
/// RFC 4861, section 4.6.1; its length counts units of eight bytes.
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
const OPTION: usize = 8;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// Where frames for [`ALL_NODES`] go (RFC 2464, section 7).
    pub const ALL_NODES: Self = Self([0x33, 0x33, 0, 0, 0, 1]);

    /// Many hosts at once, or nobody: no address of one network card.
    const fn is_nobody(self) -> bool {
        let [first, ..] = self.0;
        first & 1 != 0 || matches!(self.0, [0, 0, 0, 0, 0, 0])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The frame that tells all neighbours that `mac` has `address`, in the way of its family. `router`: we forward packets.
pub fn announcement(address: IpAddr, mac: Mac, router: bool) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => gratuitous_arp(address, mac).to_vec(),
        IpAddr::V6(address) => neighbour_advertisement(address, mac, router).to_vec(),
    }
}

/// A gratuitous ARP request: sender and target are the same address. Requests are believed by more neighbours than replies
/// (RFC 5227, section 3).
pub fn gratuitous_arp(address: Ipv4Addr, mac: Mac) -> [u8; 42] {
    let mut frame = [0; 42];
    let address = address.octets();
    let everybody = Mac::BROADCAST.0;
    let opcode = [0, ARP_REQUEST];
    fill(
        &mut frame,
        &[&everybody, &mac.0, &ARP_TYPE, &ARP_FOR_IPV4, &opcode, &mac.0, &address, &everybody, &address],
    );
    frame
}

/// An unsolicited neighbour advertisement to all nodes, which overrides what they knew (RFC 4861, section 7.2.6). It comes
/// from the address itself. `router`: we forward packets; who says otherwise is taken out of neighbours' default routes.
pub fn neighbour_advertisement(address: Ipv6Addr, mac: Mac, router: bool) -> [u8; 86] {
    const LENGTH: u8 = 32;
    let flags = if router { FLAG_ROUTER | FLAG_OVERRIDE } else { FLAG_OVERRIDE };
    let mut message = [0; LENGTH as usize];
    let option = [TARGET_LINK_LAYER_ADDRESS, 1];
    fill(&mut message, &[&[ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0], &address.octets(), &option, &mac.0]);
    let sum = checksum::of(&message, pseudo_header(address, ALL_NODES, message.len()));
    if let Some(place) = message.get_mut(2..4) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
    let mut frame = [0; 86];
    let header = [0x60, 0, 0, 0, 0, LENGTH, ICMPV6, 255];
    let (source, destination) = (address.octets(), ALL_NODES.octets());
    fill(&mut frame, &[&Mac::ALL_NODES.0, &mac.0, &IPV6_TYPE, &header, &source, &destination, &message]);
    frame
}

fn fill(frame: &mut [u8], parts: &[&[u8]]) {
    for (place, byte) in frame.iter_mut().zip(parts.iter().copied().flatten()) {
        *place = *byte;
    }
}

/// Which address the sender of an ARP frame says it has, and where. Requests count as well as replies, since neighbours
/// believe both. `None`: no such frame, or it claims nothing; a probe (RFC 5227, section 2.1.1) does not.
pub fn claim_of_arp(frame: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    let body = frame.get(ETHERNET..)?;
    let (kind, rest) = body.split_first_chunk::<6>()?;
    let (&[0, ARP_REQUEST | ARP_REPLY], rest) = rest.split_first_chunk()? else { return None };
    let (mac, rest) = rest.split_first_chunk()?;
    let (address, rest) = rest.split_first_chunk::<4>()?;
    let (mac, address) = (Mac(*mac), Ipv4Addr::from(*address));
    let is_arp = frame.get(12..ETHERNET) == Some(&ARP_TYPE) && *kind == ARP_FOR_IPV4 && rest.len() >= 10;
    let is_host = !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast();
    (is_arp && is_host && !mac.is_nobody()).then_some((address, mac))
}

/// Which address a neighbour advertisement says somebody has, and where. `payload` is an `ICMPv6` message; whoever received
/// it has seen to it that its hop limit is 255 and its checksum right (RFC 4861, section 7.1.2), as the kernel does for a
/// raw socket's checksum. A source of `::` claims nothing.
pub fn claim_of_neighbour_advertisement(payload: &[u8], source: Ipv6Addr) -> Option<(Ipv6Addr, Mac)> {
    let (header, mut options) = payload.split_first_chunk::<ADVERTISEMENT_HEADER>()?;
    let (&[ADVERTISEMENT, 0, ..], target) = header.split_last_chunk::<16>()? else { return None };
    let target = Ipv6Addr::from(*target);
    if target.is_multicast() || target.is_unspecified() || source.is_unspecified() || source.is_multicast() {
        return None;
    }
    let mut found = None;
    while let Some((&[kind, units], _)) = options.split_first_chunk() {
        // A length of zero or beyond the end spoils the whole message (RFC 4861, section 4.6).
        let length = usize::from(units) * OPTION;
        let option = options.get(..length).filter(|option| !option.is_empty())?;
        if let (TARGET_LINK_LAYER_ADDRESS, [_, _, mac @ ..]) = (kind, option) {
            found = found.or(mac.first_chunk().copied().map(Mac));
        }
        options = options.get(length..)?;
    }
    found.filter(|mac| options.is_empty() && !mac.is_nobody()).map(|mac| (target, mac))
}

/// The same for a whole Ethernet frame, as a packet socket delivers it; hop limit and checksum are looked at.
pub fn claim_of_neighbour_frame(frame: &[u8]) -> Option<(Ipv6Addr, Mac)> {
    let packet = frame.get(ETHERNET..)?;
    let (header, rest) = packet.split_first_chunk::<IPV6_HEADER>()?;
    let (&[version, _, _, _, high, low, ICMPV6, 255], addresses) = header.split_first_chunk()? else {
        return None;
    };
    let (source, destination) = addresses.split_first_chunk::<16>()?;
    let (source, destination) = (Ipv6Addr::from(*source), Ipv6Addr::from(*destination.first_chunk::<16>()?));
    let message = rest.get(..usize::from(u16::from_be_bytes([high, low])))?;
    let is_ipv6 = frame.get(12..ETHERNET) == Some(&IPV6_TYPE) && version >> 4 == 6;
    let is_right = is_ipv6 && checksum::is_right(message, pseudo_header(source, destination, message.len()));
    if is_right { claim_of_neighbour_advertisement(message, source) } else { None }
}

fn pseudo_header(source: Ipv6Addr, destination: Ipv6Addr, length: usize) -> u64 {
    checksum::pseudo_header(source.into(), destination.into(), ICMPV6, length)
}
