//! `[vrrp]` and `[[vips]]`: what `pointsman-vip` does.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU8,
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

use crate::{Centiseconds, NodeName, Secret, VipName, choice::choice};

/// `[vrrp]`: `pointsman-vip` as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Vrrp {
    /// Its UNIX socket: status and metrics over HTTP.
    pub socket: PathBuf,
    /// The same over TCP, to look at only; for Prometheus. Empty: nowhere.
    pub bind: Vec<SocketAddr>,
    /// Fast signals between the hosts. `None`: VRRP alone.
    pub peers: Option<Peers>,
    /// Run before all programs that are not (`SCHED_FIFO`).
    pub realtime: bool,
    /// Keep all memory in memory (`mlockall`).
    pub lock_memory: bool,
}

/// The hosts that signal each other directly.
#[derive(Clone, Debug, PartialEq)]
pub struct Peers {
    /// Every host with its address, this one (`node`) among them.
    pub nodes: BTreeMap<NodeName, SocketAddr>,
    /// The key that all of them share; at least 16 bytes.
    pub key: Secret,
    /// The time between two signs of life.
    pub heartbeat: Duration,
}

/// One virtual router (RFC 9568) with its addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct Vip {
    /// Its name; `INTERFACE-VRID` unless given.
    pub name: VipName,
    /// The network interface.
    pub interface: String,
    /// The virtual router identifier.
    pub router_id: NonZeroU8,
    /// The priority of this host.
    pub priority: NonZeroU8,
    /// The priorities of all hosts, where the file names them.
    pub priorities: BTreeMap<NodeName, NonZeroU8>,
    /// At least one address with its prefix, all of one family.
    pub addresses: Vec<IpNet>,
    /// The version of the protocol with what only that version has.
    pub protocol: VrrpProtocol,
    /// Adverts go to these addresses (our own may be among them). Empty: multicast.
    pub unicast: Vec<IpAddr>,
    /// Take over from a lower priority.
    pub preempt: bool,
    /// How long to be well before doing so.
    pub preempt_delay: Duration,
    /// What else decides whether this host may hold the addresses.
    pub track: Track,
    /// A program that is told of each change of state.
    pub notify: Option<PathBuf>,
}

impl Vip {
    /// The time between two adverts.
    pub fn advert_interval(&self) -> Duration {
        match self.protocol {
            VrrpProtocol::V2 { interval_seconds, .. } => Duration::from_secs(interval_seconds.get().into()),
            VrrpProtocol::V3 { interval, .. } => interval.as_duration(),
        }
    }

    /// True when the addresses are IPv6.
    pub fn is_ipv6(&self) -> bool {
        matches!(self.addresses.first(), Some(IpNet::V6(_)))
    }
}

/// The version of VRRP with what only that version has.
#[derive(Clone, Debug, PartialEq)]
pub enum VrrpProtocol {
    /// RFC 3768, IPv4 only: whole seconds, and a plain-text password of up to 8 bytes (RFC 2338).
    V2 {
        /// Advertisement interval.
        interval_seconds: NonZeroU8,
        /// To join a keepalived group with `auth_type PASS`.
        auth: Option<Secret>,
    },
    /// RFC 9568.
    V3 {
        /// Advertisement interval.
        interval: Centiseconds,
        /// How the checksum of an IPv4 advert is computed.
        checksum: Checksum,
    },
}

choice!(
    /// What the checksum of a version 3 IPv4 advert covers. Both are accepted from others.
    Checksum {
        /// The packet and the IPv4 pseudo-header, as keepalived does.
        PseudoHeader = "pseudo-header",
        /// The packet alone, as RFC 9568 says.
        Packet = "packet",
    }
);

/// What decides, besides VRRP, whether this host may hold the addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    /// What the proxy's unreadiness does.
    pub proxy: TrackProxy,
    /// Interfaces without which this host gives the addresses up.
    pub interfaces: Vec<String>,
}

/// What happens while the proxy on this host is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackProxy {
    /// Give the addresses up.
    Release,
    /// Lower the priority by so much.
    Lower(NonZeroU8),
    /// Nothing.
    Ignore,
}
