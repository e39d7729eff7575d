//! Netlink messages, made and read.
//!
//! Of what describes an interface only the few attributes that we need are looked at. A newer kernel says more than any
//! library knows, and what we do not need must not be able to fail.

use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NlasIterator, Parseable as _,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressMessage, CacheInfo,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use pointsman_vrrp::frame::Mac;

use super::{Address, Lifetime, LinkState};

const ERROR: u16 = 2; // NLMSG_ERROR of linux/netlink.h
const DONE: u16 = 3; // NLMSG_DONE
/// The lifetime that never ends.
const FOREVER: u32 = u32::MAX;

/// One message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Incoming {
    /// The number of the request that it answers; 0 for an event.
    pub(super) sequence: u32,
    pub(super) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The request was done (0), or was not (an `errno`).
    Acknowledged(i32),
    /// The end of a list; with an `errno` if it is not complete.
    End(i32),
    Link(LinkState),
    LinkGone(LinkState),
    Address(u32, Address),
    AddressGone(u32, Address),
    /// Nothing that we asked about.
    Other,
    /// It should be of use, and is not.
    Senseless(String),
}

/// All messages of a datagram.
pub(super) fn read(mut datagram: &[u8]) -> Vec<Incoming> {
    let mut messages = Vec::new();
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        let content = content(message.message_type(), message.payload());
        messages.push(Incoming { sequence: message.sequence_number(), content });
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        let next = length.next_multiple_of(4).max(16);
        datagram = datagram.get(next..).unwrap_or_default();
    }
    messages
}

fn content(kind: u16, payload: &[u8]) -> Content {
    let result = match kind {
        ERROR => return Content::Acknowledged(code(payload)),
        DONE => return Content::End(code(payload)),
        // A bridge tells of its ports in messages of the same kinds: a port that leaves it is not gone.
        libc::RTM_NEWLINK | libc::RTM_DELLINK if payload.first() != Some(&0) => return Content::Other,
        libc::RTM_NEWLINK => link(payload).map(Content::Link),
        libc::RTM_DELLINK => link(payload).map(Content::LinkGone),
        libc::RTM_NEWADDR => address(payload).map(|(index, address)| Content::Address(index, address)),
        libc::RTM_DELADDR => address(payload).map(|(index, address)| Content::AddressGone(index, address)),
        _ => return Content::Other,
    };
    result.unwrap_or_else(Content::Senseless)
}

/// The positive `errno` at the start of an answer; 0 for success.
fn code(payload: &[u8]) -> i32 {
    let code = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    code.saturating_neg()
}

/// `struct ifinfomsg`, then attributes.
fn link(payload: &[u8]) -> Result<LinkState, String> {
    let word =
        |at: usize| payload.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_ne_bytes(*bytes));
    // ifi_family and padding, ifi_type; ifi_index; ifi_flags; ifi_change.
    let (Some(index), Some(flags), Some(attributes)) = (word(4), word(8), payload.get(16..)) else {
        return Err("an interface in too few bytes".to_owned());
    };
    let flags = LinkFlags::from_bits_retain(flags);
    let (mut name, mut mac) = (None, None);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let value = attribute.value();
        match attribute.kind() {
            libc::IFLA_IFNAME => {
                name = std::str::from_utf8(value).ok().map(|name| name.trim_end_matches('\0').to_owned());
            }
            libc::IFLA_ADDRESS => mac = value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    Ok(LinkState {
        index,
        name: name.ok_or("an interface without a name")?,
        mac,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp) && !flags.contains(LinkFlags::Dormant),
    })
}

fn address(payload: &[u8]) -> Result<(u32, Address), String> {
    let message = AddressMessage::parse(payload).map_err(|error| error.to_string())?;
    let AddressHeader { prefix_len, index, flags, .. } = message.header;
    let mut flags = AddressFlags::from_bits_retain(flags.bits().into());
    let (mut local, mut address, mut lifetime) = (None, None, Lifetime::Permanent);
    for attribute in message.attributes {
        #[expect(clippy::wildcard_enum_match_arm, reason = "the library may know more one day")]
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            AddressAttribute::Flags(all) => flags = all,
            AddressAttribute::CacheInfo(info) if info.ifa_valid != FOREVER => {
                lifetime = Lifetime::For(Duration::from_secs(info.ifa_valid.into()));
            }
            _ => {}
        }
    }
    // On a point-to-point interface IFA_ADDRESS is the other end.
    let address = local.or(address).ok_or("an address message without an address")?;
    let net = IpNet::new(address, prefix_len).map_err(|error| error.to_string())?;
    let usable = !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
    // The bit means something else in IPv6: a temporary address.
    let secondary = address.is_ipv4() && flags.contains(AddressFlags::Secondary);
    Ok((index, Address { net, usable, secondary, lifetime }))
}

/// Adds an address, or changes how long it lives. `shares_route`: another address of the interface brings the route to its
/// network, and that route must not get our lifetime.
pub(super) fn add(index: u32, net: IpNet, lifetime: Lifetime, shares_route: bool, sequence: u32) -> Vec<u8> {
    let mut message = address_message(index, net);
    let mut cache = CacheInfo::default();
    (cache.ifa_valid, cache.ifa_preferred) = match (lifetime, net) {
        (Lifetime::Permanent, _) => (FOREVER, FOREVER),
        (Lifetime::For(time), IpNet::V4(_)) => (seconds(time), seconds(time)),
        (Lifetime::For(time), IpNet::V6(_)) => (seconds(time), 0), // deprecated: never chosen as a source
    };
    message.attributes.push(AddressAttribute::CacheInfo(cache));
    if net.addr().is_ipv6() {
        let mut flags = AddressFlags::Nodad;
        flags.set(AddressFlags::Noprefixroute, shares_route);
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    request(RouteNetlinkMessage::NewAddress(message), flags, sequence)
}

pub(super) fn remove(index: u32, net: IpNet, sequence: u32) -> Vec<u8> {
    request(RouteNetlinkMessage::DelAddress(address_message(index, net)), NLM_F_ACK, sequence)
}

pub(super) fn list_addresses(index: u32, sequence: u32) -> Vec<u8> {
    let mut message = AddressMessage::default();
    message.header.index = index;
    request(RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP, sequence)
}

pub(super) fn get_link_by_name(name: &str, sequence: u32) -> Vec<u8> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    request(RouteNetlinkMessage::GetLink(message), NLM_F_ACK, sequence)
}

pub(super) fn get_link(index: u32, sequence: u32) -> Vec<u8> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    request(RouteNetlinkMessage::GetLink(message), NLM_F_ACK, sequence)
}

fn address_message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    message
}

fn request(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, message.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(FOREVER - 1).clamp(1, FOREVER - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn only(bytes: &[u8]) -> Content {
        let mut messages = read(bytes);
        assert_eq!(messages.len(), 1);
        messages.remove(0).content
    }

    #[test]
    fn what_is_added_reads_as_the_kernel_would_tell_it() {
        let net: IpNet = "fd99::50/64".parse().unwrap();
        let bytes = add(7, net, Lifetime::HELD, true, 3);
        let expected = Address { net, usable: true, secondary: false, lifetime: Lifetime::HELD };
        assert_eq!(only(&bytes), Content::Address(7, expected));
        let net: IpNet = "192.0.2.1/24".parse().unwrap();
        let bytes = add(7, net, Lifetime::Permanent, false, 3);
        let expected = Address { net, usable: true, secondary: false, lifetime: Lifetime::Permanent };
        assert_eq!(only(&bytes), Content::Address(7, expected));
    }

    #[test]
    fn several_messages_of_one_datagram_are_read() {
        let mut bytes = remove(1, "192.0.2.1/24".parse().unwrap(), 10);
        bytes.extend(remove(1, "192.0.2.2/24".parse().unwrap(), 11));
        let sequences: Vec<u32> = read(&bytes).iter().map(|message| message.sequence).collect();
        assert_eq!(sequences, [10, 11]);
    }

    proptest! {
        #[test]
        fn no_bytes_are_fatal(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read(&bytes);
        }

        #[test]
        fn no_payload_is_fatal(
            kind in 0_u16..40,
            payload in proptest::collection::vec(any::<u8>(), 0..120),
        ) {
            let mut bytes = u32::try_from(payload.len() + 16).unwrap().to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(payload);
            prop_assert_eq!(read(&bytes).len(), 1);
        }
    }
}
