//! Frames of VRRP, ARP and neighbour discovery: read and forged. On purpose not with the codec that is tested.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ethernet's broadcast address.
pub const BROADCAST: Mac = Mac([0xff; 6]);
/// The UDP port of the reports between `pointsman-vip`.
pub const PEERS_PORT: u16 = 7001;

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VRRP: u8 = 112;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.map(|byte| format!("{byte:02x}"));
        f.write_str(&bytes.join(":"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// An advert.
    Advert {
        /// The version of VRRP.
        version: u8,
        /// The virtual router.
        router_id: u8,
        /// The priority; 0: the sender lets go.
        priority: u8,
        /// Who.
        source: IpAddr,
    },
    /// Any ARP packet.
    Arp {
        /// 1: request, 2: reply.
        operation: u16,
        /// Who.
        mac: Mac,
        /// The address that it says it has.
        sender: Ipv4Addr,
        /// The address that is asked for.
        target: Ipv4Addr,
    },
    /// A neighbour advertisement.
    Neighbour {
        /// The address.
        target: Ipv6Addr,
        /// Who says that it has it.
        mac: Mac,
    },
    /// A report between `pointsman-vip`.
    Report,
}

impl Packet {
    /// Reads a frame; `None`: something else.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let source = Mac(*frame.get(6..)?.first_chunk()?);
        let body = frame.get(ETHERNET..)?;
        match u16::from_be_bytes(*frame.get(12..)?.first_chunk()?) {
            ARP => Some(Self::Arp {
                operation: u16::from_be_bytes(*body.get(6..)?.first_chunk()?),
                mac: Mac(*body.get(8..)?.first_chunk()?),
                sender: Ipv4Addr::from(*body.get(14..)?.first_chunk::<4>()?),
                target: Ipv4Addr::from(*body.get(24..)?.first_chunk::<4>()?),
            }),
            IPV4 => {
                let header = usize::from(*body.first()? & 15) * 4;
                let source = Ipv4Addr::from(*body.get(12..)?.first_chunk::<4>()?);
                Self::read_ip(*body.get(9)?, IpAddr::V4(source), body.get(header..)?, None)
            }
            IPV6 => {
                let address = Ipv6Addr::from(*body.get(8..)?.first_chunk::<16>()?);
                Self::read_ip(*body.get(6)?, IpAddr::V6(address), body.get(40..)?, Some(source))
            }
            _ => None,
        }
    }

    fn read_ip(protocol: u8, source: IpAddr, payload: &[u8], mac: Option<Mac>) -> Option<Self> {
        match protocol {
            VRRP => Some(Self::Advert {
                version: payload.first()? >> 4,
                router_id: *payload.get(1)?,
                priority: *payload.get(2)?,
                source,
            }),
            UDP if payload.get(2..4)? == PEERS_PORT.to_be_bytes() => Some(Self::Report),
            ICMPV6 if *payload.first()? == NEIGHBOUR_ADVERTISEMENT => Some(Self::Neighbour {
                target: Ipv6Addr::from(*payload.get(8..)?.first_chunk::<16>()?),
                mac: mac?,
            }),
            _ => None,
        }
    }

    /// True when the frame says that `mac` has `address`.
    pub fn claims(&self, address: IpAddr) -> bool {
        match self {
            Self::Arp { sender, .. } => IpAddr::V4(*sender) == address,
            Self::Neighbour { target, .. } => IpAddr::V6(*target) == address,
            Self::Advert { .. } | Self::Report => false,
        }
    }
}

/// An advert to be forged, right in every way until something is changed. By multicast unless `destination` is set.
#[derive(Debug, Clone)]
pub struct Forged {
    /// 2 or 3.
    pub version: u8,
    /// The sender's Ethernet address.
    pub mac: Mac,
    /// Its address.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// The Ethernet address of the destination.
    pub destination_mac: Mac,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// The virtual router.
    pub router_id: u8,
    /// The priority.
    pub priority: u8,
    /// Version 2: seconds; version 3: hundredths.
    pub interval: u16,
    /// The addresses of the virtual router.
    pub addresses: Vec<IpAddr>,
    /// Version 2: the password.
    pub password: Option<[u8; 8]>,
    /// Is added to the right checksum.
    pub checksum_off_by: u16,
    /// Bytes after the packet's end.
    pub trailing: usize,
}

impl Forged {
    /// A version 3 advert with priority 200 for `addresses`, sent by `source`.
    pub fn new(mac: Mac, source: IpAddr, router_id: u8, addresses: &[IpAddr]) -> Self {
        let (destination, destination_mac) = match source {
            IpAddr::V4(_) => {
                (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 18)), Mac([0x01, 0x00, 0x5e, 0x00, 0x00, 0x12]))
            }
            IpAddr::V6(_) => (
                IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12)),
                Mac([0x33, 0x33, 0x00, 0x00, 0x00, 0x12]),
            ),
        };
        Self {
            version: 3,
            mac,
            source,
            destination,
            destination_mac,
            ttl: 255,
            router_id,
            priority: 200,
            interval: 10,
            addresses: addresses.to_vec(),
            password: None,
            checksum_off_by: 0,
            trailing: 0,
        }
    }

    /// The whole Ethernet frame.
    pub fn frame(&self) -> Vec<u8> {
        let payload = self.payload();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = vec![0x45, 0xc0];
                ip.extend(u16_of(20 + payload.len()).to_be_bytes());
                ip.extend([0x12, 0x34, 0, 0, self.ttl, VRRP, 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                let sum = checksum(&[&ip]);
                put(&mut ip, 10, sum);
                self.ethernet(IPV4, &[ip, payload].concat())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut ip = vec![0x6c, 0, 0, 0];
                ip.extend(u16_of(payload.len()).to_be_bytes());
                ip.extend([VRRP, self.ttl]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                self.ethernet(IPV6, &[ip, payload].concat())
            }
            _ => Vec::new(),
        }
    }

    fn payload(&self) -> Vec<u8> {
        let count = u8::try_from(self.addresses.len()).unwrap_or(u8::MAX);
        let mut payload = vec![(self.version << 4) | 1, self.router_id, self.priority, count];
        if self.version == 2 {
            let [_, seconds] = self.interval.to_be_bytes();
            payload.extend([u8::from(self.password.is_some()), seconds]);
        } else {
            payload.extend((self.interval & 0x0fff).to_be_bytes());
        }
        payload.extend([0, 0]);
        for address in &self.addresses {
            payload.extend(octets(*address));
        }
        if self.version == 2 {
            payload.extend(self.password.unwrap_or_default());
        }
        let length = u32::from(u16_of(payload.len())).to_be_bytes();
        let sum = if self.version == 2 {
            checksum(&[&payload])
        } else {
            let pseudo = match (self.source, self.destination) {
                (IpAddr::V4(_), _) => vec![0, VRRP, length[2], length[3]],
                (IpAddr::V6(_), _) => [length, [0, 0, 0, VRRP]].concat(),
            };
            checksum(&[&octets(self.source), &octets(self.destination), &pseudo, &payload])
        };
        put(&mut payload, 6, sum.wrapping_add(self.checksum_off_by));
        payload.resize(payload.len() + self.trailing, 0);
        payload
    }

    fn ethernet(&self, kind: u16, body: &[u8]) -> Vec<u8> {
        ethernet(self.destination_mac, self.mac, kind, body)
    }
}

/// A gratuitous ARP request: `mac` says to all that it has `address`.
pub fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend(mac.0);
    body.extend(address.octets());
    body.extend(BROADCAST.0);
    body.extend(address.octets());
    ethernet(BROADCAST, mac, ARP, &body)
}

/// An unsolicited neighbour advertisement: `mac` says to all that it has `address`.
pub fn unsolicited_advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut icmp = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0x20, 0, 0, 0];
    icmp.extend(address.octets());
    icmp.extend([2, 1]);
    icmp.extend(mac.0);
    let length = u16_of(icmp.len()).to_be_bytes();
    let pseudo = [0, 0, length[0], length[1], 0, 0, 0, ICMPV6];
    let sum = checksum(&[&address.octets(), &all_nodes.octets(), &pseudo, &icmp]);
    put(&mut icmp, 2, sum);
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend(length);
    ip.extend([ICMPV6, 255]);
    ip.extend(address.octets());
    ip.extend(all_nodes.octets());
    ethernet(Mac([0x33, 0x33, 0, 0, 0, 1]), mac, IPV6, &[ip, icmp].concat())
}

/// A UDP datagram.
pub fn datagram(
    (from_mac, from): (Mac, Ipv4Addr),
    (to_mac, to): (Mac, Ipv4Addr),
    port: u16,
    payload: &[u8],
) -> Vec<u8> {
    // A checksum of 0 is none.
    let mut udp = [port.to_be_bytes(), port.to_be_bytes()].concat();
    udp.extend(u16_of(8 + payload.len()).to_be_bytes());
    udp.extend([0, 0]);
    let mut ip = vec![0x45, 0];
    ip.extend(u16_of(28 + payload.len()).to_be_bytes());
    ip.extend([0x12, 0x34, 0, 0, 64, UDP, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum = checksum(&[&ip]);
    put(&mut ip, 10, sum);
    ethernet(to_mac, from_mac, IPV4, &[&ip, &udp, payload].concat())
}

fn ethernet(to: Mac, from: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0[..], &kind.to_be_bytes()[..], body].concat()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn u16_of(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// RFC 1071. Each part but the last has an even number of bytes.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([pair.first().copied().unwrap_or(0), low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames that a keepalived sent.
    const V2: &str = "01005e000012020000000001080045c0002c00010000ff70d0200a63000be0000012213364020101\
        29490a6300320a63003c7333637233743132";
    const V3: &str = "01005e000012020000000002080045c0002400010000ff70d0270a63000ce0000012313363020\
        00a6b8a0a6300320a63003c";
    const V6: &str = "33330000001202000000000386dd6c0f4fc4002870fffe80000000000000000000fffe000003ff02\
        00000000000000000000000000123134620200647279fe800000000000000000000000000050fd9900000000000000\
        00000000000050";
    const UNSOLICITED: &str = "33330000000102000000000386dd6000000000203afffd990000000000000000000000000050ff\
        020000000000000000000000000001880058c920000000fd9900000000000000000000000000500201020000000003";
    const GRATUITOUS: &str =
        "ffffffffffff020000000001080600010800060400010200000000010a630032ffffffffffff0a630032";

    fn hex(text: &str) -> Vec<u8> {
        let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
        text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    #[test]
    fn an_announcement_is_keepaliveds_to_the_byte() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let address = Ipv4Addr::new(10, 99, 0, 50);
        assert_eq!(gratuitous_arp(mac, address), hex(GRATUITOUS));
        assert_eq!(
            Packet::read(&hex(GRATUITOUS)),
            Some(Packet::Arp { operation: 1, mac, sender: address, target: address })
        );
        let (mac, address) = (Mac([2, 0, 0, 0, 0, 3]), "fd99::50".parse().unwrap());
        assert_eq!(unsolicited_advertisement(mac, address), hex(UNSOLICITED));
        assert_eq!(Packet::read(&hex(UNSOLICITED)), Some(Packet::Neighbour { target: address, mac }));
    }

    fn forged(last: u8, source: &str, addresses: &[&str]) -> Forged {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Forged::new(Mac([2, 0, 0, 0, 0, last]), source.parse().unwrap(), 51, &addresses)
    }

    #[test]
    fn an_advert_is_keepaliveds_to_the_byte() {
        let addresses = ["10.99.0.50", "10.99.0.60"];
        let v2 = Forged {
            version: 2,
            priority: 100,
            interval: 1,
            password: Some(*b"s3cr3t12"),
            ..forged(1, "10.99.0.11", &addresses)
        };
        assert_eq!(v2.frame()[34..], hex(V2)[34..]);
        let v3 = Forged { priority: 99, ..forged(2, "10.99.0.12", &addresses) };
        assert_eq!(v3.frame()[34..], hex(V3)[34..]);
        assert_eq!(v3.frame()[..18], hex(V3)[..18]);
        let v6 = Forged {
            router_id: 52,
            priority: 98,
            interval: 100,
            ..forged(3, "fe80::ff:fe00:3", &["fe80::50", "fd99::50"])
        };
        // The flow label is free.
        assert_eq!(v6.frame()[18..], hex(V6)[18..]);
        let seen = Packet::Advert { version: 3, router_id: 51, priority: 99, source: v3.source };
        assert_eq!(Packet::read(&hex(V3)), Some(seen));
    }
}
