//! VRRP's packets: RFC 9568 (version 3), RFC 3768 and 2338 (version 2), and what keepalived makes of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU8;
use std::time::Duration;

/// The IP protocol number.
pub const PROTOCOL: u8 = 112;
/// Where adverts go: 224.0.0.18 (RFC 9568, section 5.1.1.2).
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// Where adverts go: `ff02::12` (RFC 9568, section 5.1.2.2).
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// The TTL or hop limit of a packet that no router has passed on.
pub const HOP_LIMIT: u8 = 255;

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

/// Why a packet counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reject {
    /// Shorter or longer than it says itself.
    #[error("its length does not fit its content")]
    Length,
}

impl Reject {
    /// Every label, for counters that begin at zero.
    pub const LABELS: [&'static str; 1] = ["length"];

    /// The label of metrics.
    pub const fn label(&self) -> &'static str {
        "length"
    }
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}, hop limit {}", self.source, self.destination, self.hop_limit)
    }
}
