//! VRRP's packets: RFC 9568 (version 3), RFC 3768 and 2338 (version 2), and what keepalived makes of them.
//!
//! Whether the *addresses* of an advert are ours is judged by the state machine; here its form is. What keepalived sends is
//! taken as it is; where the RFC and keepalived differ, either is taken and keepalived's way is sent (see [`Form`]).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU8;
use std::time::Duration;

use pointsman_config::{Checksum, IpNet, Vip, VrrpProtocol};

use crate::checksum;

mod reject;
#[cfg(test)]
mod tests;

pub use reject::{AuthType, Reject};

/// The IP protocol number.
pub const PROTOCOL: u8 = 112;
/// Where adverts go: 224.0.0.18 (RFC 9568, section 5.1.1.2).
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// Where adverts go: `ff02::12` (RFC 9568, section 5.1.2.2).
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// The TTL or hop limit of a packet that no router has passed on (RFC 9568, section 5.1.1.3). We always send it.
pub const HOP_LIMIT: u8 = 255;
/// The least that is taken from the hosts of `unicast`: keepalived sends IPv6 unicast with 64, and hosts in different
/// networks have routers between them.
pub const UNICAST_HOP_LIMIT: u8 = 64;

/// The type of the only message that there is (RFC 9568, section 5.2.2).
const ADVERTISEMENT: u8 = 1;
const HEADER: usize = 8;
/// Version 2 ends with so many bytes of authentication, even where there is none (RFC 2338, section 5.3.10).
const AUTH: usize = 8;
/// As many addresses as the count can name.
const MAX_ADDRESSES: usize = 255;

/// What an advert says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    /// The virtual router (VRID).
    pub router_id: NonZeroU8,
    /// 0: its sender stops holding the addresses. 255: it owns them.
    pub priority: u8,
    /// The time between two adverts (version 2: whole seconds; version 3: hundredths).
    pub interval: Duration,
    /// In the order of the packet.
    pub addresses: Vec<IpAddr>,
}

/// A packet as it came in, or its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Its sender.
    pub source: IpAddr,
    /// The group, or one host.
    pub destination: IpAddr,
    /// The TTL or hop limit that was left.
    pub hop_limit: u8,
}

/// A packet that is ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its way.
    pub envelope: Envelope,
    /// What follows the IP header.
    pub payload: Vec<u8>,
}

/// How the hosts of one virtual router speak with one another. All of them have to do it alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    protocol: VrrpProtocol,
    ipv6: bool,
    unicast: Vec<IpAddr>,
}

impl Form {
    /// As it is configured.
    pub fn of(vip: &Vip) -> Self {
        Self::new(vip.protocol.clone(), vip.is_ipv6(), vip.unicast.clone())
    }

    /// `unicast`: the hosts that adverts go to and come from, our own address may be among them; empty: multicast.
    pub fn new(protocol: VrrpProtocol, ipv6: bool, unicast: Vec<IpAddr>) -> Self {
        Self { protocol, ipv6, unicast }
    }

    /// The version of the protocol.
    pub fn version(&self) -> u8 {
        match self.protocol {
            VrrpProtocol::V2 { .. } => 2,
            VrrpProtocol::V3 { .. } => 3,
        }
    }

    /// The addresses are IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// The multicast group of the family.
    pub fn group(&self) -> IpAddr {
        if self.ipv6 { GROUP_V6.into() } else { GROUP_V4.into() }
    }

    /// Where adverts go: to the group, or to each of the other hosts. `source` is our own address.
    pub fn destinations(&self, source: IpAddr) -> Vec<IpAddr> {
        if self.unicast.is_empty() {
            return vec![self.group()];
        }
        self.unicast.iter().copied().filter(|host| *host != source).collect()
    }

    /// An advert as packets, one for each destination.
    pub fn packets(&self, advert: &Advert, source: IpAddr) -> Vec<Packet> {
        let packet = |destination| Packet {
            envelope: Envelope { source, destination, hop_limit: HOP_LIMIT },
            payload: advert.encode(self, source, destination),
        };
        self.destinations(source).into_iter().map(packet).collect()
    }

    /// The bytes of one address.
    fn address_size(&self) -> usize {
        if self.ipv6 { 16 } else { 4 }
    }

    /// The end of every version 2 packet: its type of authentication, and the password padded with zeros.
    fn auth(&self) -> Option<(AuthType, [u8; AUTH])> {
        let VrrpProtocol::V2 { auth, .. } = &self.protocol else { return None };
        let mut bytes = [0; AUTH];
        let Some(password) = auth else { return Some((AuthType::NONE, bytes)) };
        for (byte, letter) in bytes.iter_mut().zip(password.expose().bytes()) {
            *byte = letter;
        }
        Some((AuthType::PASSWORD, bytes))
    }

    /// Judges where a packet comes from and went to.
    ///
    /// Multicast: only what no router has passed on (RFC 9568, section 7.1). Unicast: only from the hosts that are
    /// configured, with [`UNICAST_HOP_LIMIT`]. keepalived takes unicast from anybody; there we are stricter, since a source
    /// address is all that tells a host from a stranger.
    fn admit(&self, envelope: &Envelope) -> Result<(), Reject> {
        let Envelope { source, destination, hop_limit } = *envelope;
        if source.is_ipv6() != self.ipv6 || destination.is_ipv6() != self.ipv6 {
            return Err(Reject::Family { ipv6: source.is_ipv6() });
        }
        if source.is_unspecified() || source.is_multicast() || source == Ipv4Addr::BROADCAST {
            return Err(Reject::Source { host: source });
        }
        let least = if self.unicast.is_empty() { HOP_LIMIT } else { UNICAST_HOP_LIMIT };
        match (self.unicast.is_empty(), destination == self.group()) {
            (true, false) => return Err(Reject::Unicast { destination }),
            (false, _) if destination.is_multicast() => return Err(Reject::Multicast),
            (false, _) if !self.unicast.contains(&source) => return Err(Reject::Stranger { host: source }),
            (true, true) | (false, _) => {}
        }
        if hop_limit < least { Err(Reject::HopLimit { hop_limit, least }) } else { Ok(()) }
    }

    /// True when the checksum is one that a router of this form may send. For IPv4 with version 3 that is the one with the
    /// pseudo-header (keepalived) and the one without (RFC 9568, section 5.2.8).
    fn checksum_is_right(&self, payload: &[u8], envelope: &Envelope) -> bool {
        let plain = checksum::is_right(payload, 0);
        let with_header = || checksum::is_right(payload, pseudo_header(envelope, payload.len()));
        match self.protocol {
            VrrpProtocol::V2 { .. } => plain,
            VrrpProtocol::V3 { .. } if self.ipv6 => with_header(),
            VrrpProtocol::V3 { .. } => plain || with_header(),
        }
    }

    /// What the checksum that we send covers beside the payload.
    fn pseudo_header(&self, envelope: &Envelope, length: usize) -> u64 {
        match self.protocol {
            VrrpProtocol::V2 { .. } => 0,
            VrrpProtocol::V3 { checksum: Checksum::Packet, .. } if !self.ipv6 => 0,
            VrrpProtocol::V3 { .. } => pseudo_header(envelope, length),
        }
    }

    /// Fields five and six: version 2 has the authentication and whole seconds, version 3 hundredths in twelve bits.
    fn write_interval(&self, interval: Duration) -> [u8; 2] {
        match self.auth() {
            Some((AuthType(kind), _)) => [kind, u8::try_from(interval.as_secs()).unwrap_or(u8::MAX)],
            None => u16::try_from(interval.as_millis() / 10).unwrap_or(u16::MAX).min(0x0fff).to_be_bytes(),
        }
    }

    /// The interval of a packet, and whether its authentication is ours.
    fn read_interval(&self, [fifth, sixth]: [u8; 2], rest: &[u8]) -> Result<Duration, Reject> {
        let VrrpProtocol::V2 { interval_seconds, .. } = self.protocol else {
            // The four upper bits are reserved and not looked at (RFC 9568, section 5.2.6).
            let hundredths = u16::from_be_bytes([fifth & 0x0f, sixth]);
            let interval = Duration::from_millis(u64::from(hundredths) * 10);
            return if hundredths == 0 { Err(Reject::NoInterval) } else { Ok(interval) };
        };
        let (ours, password) = self.auth().unwrap_or_default();
        let theirs = AuthType(fifth);
        if theirs != ours {
            return Err(Reject::AuthType { theirs, ours });
        }
        let given = rest.last_chunk::<AUTH>().copied().unwrap_or_default();
        // Compared as one number: it takes the same time wherever the difference is.
        if ours != AuthType::NONE && u64::from_be_bytes(given) != u64::from_be_bytes(password) {
            return Err(Reject::Password);
        }
        let ours = Duration::from_secs(interval_seconds.get().into());
        let theirs = Duration::from_secs(sixth.into());
        if theirs == ours { Ok(ours) } else { Err(Reject::Interval { theirs, ours }) }
    }
}

impl Advert {
    /// What this host says of a virtual router. Priority 0: that it lets go of the addresses.
    pub fn of(vip: &Vip, priority: u8) -> Self {
        Self {
            router_id: vip.router_id,
            priority,
            interval: vip.advert_interval(),
            addresses: vip.addresses.iter().map(IpNet::addr).collect(),
        }
    }

    /// The payload of an IP packet from `source` to `destination`, with its checksum.
    ///
    /// Addresses keep their order, but for IPv6 a link-local one goes first (RFC 9568, section 5.2.9). The count has one
    /// byte: addresses beyond the 255th are left out.
    pub fn encode(&self, form: &Form, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        let addresses = self.in_order(form);
        let count = u8::try_from(addresses.len()).unwrap_or(u8::MAX);
        let mut out = Vec::with_capacity(HEADER + addresses.len() * form.address_size() + AUTH);
        out.extend([form.version() << 4 | ADVERTISEMENT, self.router_id.get(), self.priority, count]);
        out.extend(form.write_interval(self.interval));
        out.extend([0, 0]);
        for address in addresses {
            match address {
                IpAddr::V4(address) => out.extend(address.octets()),
                IpAddr::V6(address) => out.extend(address.octets()),
            }
        }
        if let Some((_, password)) = form.auth() {
            out.extend(password);
        }
        let envelope = Envelope { source, destination, hop_limit: HOP_LIMIT };
        let sum = checksum::of(&out, form.pseudo_header(&envelope, out.len()));
        if let Some(place) = out.get_mut(6..HEADER) {
            place.copy_from_slice(&sum.to_be_bytes());
        }
        out
    }

    fn in_order(&self, form: &Form) -> Vec<IpAddr> {
        let ours = self.addresses.iter().copied().filter(|address| address.is_ipv6() == form.ipv6);
        let mut addresses: Vec<IpAddr> = ours.collect();
        // Stable: the others stay as they are written in the configuration.
        addresses.sort_by_key(|address| !is_link_local(*address));
        addresses.truncate(MAX_ADDRESSES);
        addresses
    }
}

fn pseudo_header(envelope: &Envelope, length: usize) -> u64 {
    checksum::pseudo_header(envelope.source, envelope.destination, PROTOCOL, length)
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Reads the payload of an IP packet as an advert of a virtual router that speaks in this form (RFC 9568, section 7.1).
pub fn decode(payload: &[u8], envelope: &Envelope, form: &Form) -> Result<Advert, Reject> {
    form.admit(envelope)?;
    let Some((&[kind, router_id, priority, count, fifth, sixth, _, _], rest)) = payload.split_first_chunk()
    else {
        return Err(Reject::Length { length: payload.len(), expected: HEADER });
    };
    let (theirs, ours) = (kind >> 4, form.version());
    if theirs != ours {
        return Err(Reject::Version { theirs, ours });
    }
    if kind & 0x0f != ADVERTISEMENT {
        return Err(Reject::Type { theirs: kind & 0x0f });
    }
    let router_id = NonZeroU8::new(router_id).ok_or(Reject::RouterId)?;
    if count == 0 {
        return Err(Reject::NoAddresses);
    }
    let addresses = usize::from(count) * form.address_size();
    let expected = HEADER + addresses + if ours == 2 { AUTH } else { 0 };
    if payload.len() != expected {
        return Err(Reject::Length { length: payload.len(), expected });
    }
    if !form.checksum_is_right(payload, envelope) {
        return Err(Reject::Checksum);
    }
    let interval = form.read_interval([fifth, sixth], rest)?;
    let addresses = read_addresses(rest.get(..addresses).unwrap_or_default(), form);
    Ok(Advert { router_id, priority, interval, addresses })
}

fn read_addresses(bytes: &[u8], form: &Form) -> Vec<IpAddr> {
    if form.ipv6 {
        bytes.as_chunks::<16>().0.iter().map(|octets| IpAddr::from(*octets)).collect()
    } else {
        bytes.as_chunks::<4>().0.iter().map(|octets| IpAddr::from(*octets)).collect()
    }
}

/// The version and the virtual router of a packet, before anything else of it is looked at: whose is it?
pub fn peek(payload: &[u8]) -> Option<(u8, NonZeroU8)> {
    let (&[kind, router_id], _) = payload.split_first_chunk()?;
    Some((kind >> 4, NonZeroU8::new(router_id)?))
}

/// Takes the IPv4 header off a packet, which a raw socket delivers with it (RFC 791, section 3.1).
///
/// What the link has added behind the packet is cut off. The header's checksum was looked at by the kernel.
pub fn split_ipv4(packet: &[u8]) -> Result<(Envelope, &[u8]), Reject> {
    let Some((header, _)) = packet.split_first_chunk::<20>() else { return Err(Reject::Header) };
    let [kind, _, length_high, length_low, _, _, fragment_high, fragment_low, ..] = *header;
    let [.., hop_limit, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let header_length = usize::from(kind & 0x0f) * 4;
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    if kind >> 4 != 4 || header_length < header.len() {
        return Err(Reject::Header);
    }
    let payload = packet.get(header_length..length).ok_or(Reject::Header)?;
    if protocol != PROTOCOL {
        return Err(Reject::Protocol { theirs: protocol });
    }
    // More of them follow, or this is not the first.
    if u16::from_be_bytes([fragment_high, fragment_low]) & 0x3fff != 0 {
        return Err(Reject::Fragment);
    }
    let source = Ipv4Addr::new(s0, s1, s2, s3).into();
    let destination = Ipv4Addr::new(d0, d1, d2, d3).into();
    Ok((Envelope { source, destination, hop_limit }, payload))
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}, hop limit {}", self.source, self.destination, self.hop_limit)
    }
}
