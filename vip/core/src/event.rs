//! What can happen to the virtual routers of a host, and what is to be done then.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU8;

use pointsman_config::{NodeName, VipName};
use serde::Serialize;

use crate::advert::{Advert, Reject};
use crate::frame::Mac;
use crate::note::Note;
use crate::report::Report;

/// Something has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The network interface of a virtual router, or one that it tracks, changed. The first one starts the router.
    Link {
        /// The virtual router.
        router: VipName,
        /// What it is now.
        link: Link,
    },
    /// An advert for one of ours was received, and its form is right.
    Advert {
        /// The virtual router.
        router: VipName,
        /// Its sender.
        from: IpAddr,
        /// What it says.
        advert: Advert,
    },
    /// A packet for one of ours was received that is not as it has to be.
    Rejected {
        /// The virtual router.
        router: VipName,
        /// Its sender.
        from: IpAddr,
        /// What is wrong with it.
        reject: Reject,
    },
    /// An advert of a virtual router that is none of ours was seen on an interface of ours.
    Foreign {
        /// The interface.
        interface: String,
        /// Its VRID.
        router_id: NonZeroU8,
        /// Its sender.
        from: IpAddr,
    },
    /// Somebody else told the neighbours that it has one of our addresses (ARP or neighbour advertisement).
    Claimed {
        /// The virtual router.
        router: VipName,
        /// The address.
        address: IpAddr,
        /// Who says so.
        mac: Mac,
    },
    /// An address that we hold was removed from its interface, and not by us.
    AddressGone {
        /// The virtual router.
        router: VipName,
        /// The address.
        address: IpAddr,
    },
    /// What the proxy on this host says of itself, after [`crate::health`] has thought about it.
    Proxy(Proxy),
    /// A report of another host; its seal was right and it is newer than all before.
    Report {
        /// Its sender.
        node: NodeName,
        /// What it says.
        report: Report,
    },
    /// The connection to another host, whose end tells that its process has ended.
    Wire {
        /// The other host.
        node: NodeName,
        /// What became of it.
        wire: Wire,
    },
    /// An operator: hand the addresses over, and take them again only when nobody else can.
    Yield {
        /// One virtual router, or all.
        router: Option<VipName>,
    },
    /// An operator: the end of [`Event::Yield`].
    Resume {
        /// One virtual router, or all.
        router: Option<VipName>,
    },
    /// The process ends: hand the addresses over, or let them go.
    Stop,
}

/// The state of a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// It can be used; adverts are sent from this address.
    Up {
        /// Our address in the virtual router's family.
        source: IpAddr,
    },
    /// It cannot.
    Down(LinkFault),
}

/// Why an interface cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "fault", content = "interface")]
pub enum LinkFault {
    /// There is no such interface.
    Missing(String),
    /// It is set down.
    Down(String),
    /// It has no carrier: a cable, a switch, a host that is gone.
    NoCarrier(String),
    /// It has no address of its own to send adverts from.
    NoAddress(String),
}

/// What the proxy on this host says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// It serves.
    Well,
    /// It does not.
    Unwell {
        /// In words, for people.
        why: String,
    },
}

/// The connection to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// It is made, and the other side has proved that it knows the key.
    Connected,
    /// The other side's kernel has closed it: its process has ended.
    Ended,
    /// It broke in another way, which proves nothing of the process.
    Broken,
    /// The other side said that it closes it: a process that stops in good order, or a new configuration.
    Farewell,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put the addresses of a virtual router on its interface.
    Hold {
        /// The virtual router.
        router: VipName,
    },
    /// Take them away.
    Release {
        /// The virtual router.
        router: VipName,
    },
    /// Send one advert, to the group or to each host of `unicast`.
    Advertise {
        /// The virtual router.
        router: VipName,
        /// The priority that it carries.
        priority: u8,
    },
    /// Tell the neighbours, once, that the addresses are here.
    Announce {
        /// The virtual router.
        router: VipName,
    },
    /// Send this to every host that we are connected to, now.
    Report(Report),
    /// Somebody should know: log, metrics, hooks.
    Note(Note),
}

/// The states of a virtual router (RFC 9568, section 6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not taking part: the interface cannot be used, or the process is starting or stopping.
    Initialize,
    /// Somebody else holds the addresses, or shall.
    Backup,
    /// We hold the addresses.
    Active,
}

impl State {
    /// As it is written in logs, metrics and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::Backup => "backup",
            Self::Active => "active",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
