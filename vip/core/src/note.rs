//! What people are told: transitions with their reasons, alarms, repairs. Sentences for logs, finite labels for metrics.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use pointsman_config::{NodeName, VipName};
use serde::Serialize;

use crate::event::{LinkFault, State};
use crate::frame::Mac;

/// Something that people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A virtual router has changed its state.
    Transition(Transition),
    /// Something is wrong that somebody should look at; said once until it is over.
    Alarm {
        /// The virtual router.
        router: VipName,
        /// What is wrong.
        alarm: Alarm,
    },
    /// It is over.
    AlarmOver {
        /// The virtual router.
        router: VipName,
        /// What was wrong.
        kind: AlarmKind,
    },
    /// Another host claimed what we hold; the neighbours are told anew whose it is.
    Repaired {
        /// The virtual router.
        router: VipName,
        /// What it was seen by.
        by: Repair,
    },
    /// Another host is heard of, or no more.
    Peer {
        /// The other host.
        node: NodeName,
        /// What became of it.
        news: PeerNews,
    },
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The virtual router.
    pub router: VipName,
    /// Before.
    pub from: State,
    /// Now.
    pub to: State,
    /// Why.
    pub reason: Reason,
    /// The priority that we have now.
    pub priority: u8,
}

/// Why a virtual router changed its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// To Backup: the interface can be used.
    Started,
    /// To Active: we own the addresses (priority 255).
    Owner,
    /// To Active: no advert came for so long.
    Silence {
        /// Since the last sign of the holder, or since we listen.
        waited: Duration,
        /// Who was heard last.
        last: Option<IpAddr>,
    },
    /// To Active: the holder let go (priority 0) and nobody else came.
    LetGo {
        /// Who it was.
        by: IpAddr,
    },
    /// To Active: the host that held them has ended or fallen silent, and enough of the others say so, too.
    HostLost {
        /// The host.
        node: NodeName,
        /// How we know.
        how: Loss,
        /// How many hosts say so, we among them.
        votes: usize,
    },
    /// To Active: the holder handed them to us.
    HandedOver {
        /// The host.
        by: NodeName,
    },
    /// To Active: the holder has a lower priority than we, or is unwell.
    Preempted {
        /// Its address.
        holder: IpAddr,
        /// Its priority.
        priority: u8,
    },
    /// To Backup: somebody with a higher priority, or the same and a higher address, holds them.
    Outranked {
        /// Who.
        by: IpAddr,
        /// Its priority.
        priority: u8,
    },
    /// To Backup: an operator wished it.
    Yielded {
        /// Who took them; `None`: nobody could be asked.
        to: Option<NodeName>,
    },
    /// To Backup: the proxy on this host does not serve.
    Unwell {
        /// What it says.
        why: String,
        /// Who took them; `None`: whoever hears that we let go.
        to: Option<NodeName>,
    },
    /// To Backup: this process did not run for so long that others will have taken over.
    Paused {
        /// How long.
        by: Duration,
    },
    /// To Initialize: the interface cannot be used.
    LinkLost(LinkFault),
    /// To Initialize: the process ends.
    Stopped {
        /// Who took them.
        to: Option<NodeName>,
    },
    /// To Initialize: the configuration has changed, or has no such virtual router any more.
    Reconfigured,
}

/// How the loss of another host shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Its kernel closed the connection: the process has ended.
    Ended,
    /// Three heartbeats are missing.
    Silent,
    /// It says itself that it holds them no more.
    LetGo,
}

/// How a claim of somebody else was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// An advert of lower priority.
    Advert,
    /// An ARP packet or a neighbour advertisement.
    Neighbour,
    /// A host is back that was lost, and may have held them meanwhile.
    Return,
    /// A report of another host that said it was active.
    Report,
    /// Our own address was removed from the interface and put back.
    Restored,
}

/// What became of another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerNews {
    /// It is heard.
    Alive,
    /// It is lost, in our eyes.
    Lost(Loss),
    /// It said good-bye.
    Farewell,
}

/// Something is wrong that somebody should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Somebody else is Active, too, and does not step down.
    TwoHolders {
        /// Who.
        other: IpAddr,
        /// Its priority.
        priority: u8,
    },
    /// Another router of this virtual router announces other addresses.
    OtherAddresses {
        /// Who.
        from: IpAddr,
        /// What only it announces.
        theirs: BTreeSet<IpAddr>,
        /// What only we have.
        ours: BTreeSet<IpAddr>,
    },
    /// A router with our VRID announces none of our addresses: it belongs to another group.
    Collision {
        /// Who.
        from: IpAddr,
        /// What it announces.
        theirs: BTreeSet<IpAddr>,
    },
    /// Another router has the same priority: who is first is decided by the address.
    SamePriority {
        /// Who.
        other: IpAddr,
        /// The priority.
        priority: u8,
    },
    /// Packets of this virtual router are refused, so its sender counts for nothing.
    Refused {
        /// Who.
        from: IpAddr,
        /// Why, in words.
        why: String,
    },
    /// A host reports that it is Active, and its adverts do not arrive.
    AdvertsBlocked {
        /// The host.
        node: NodeName,
    },
    /// Somebody removes our address from the interface again and again.
    AddressRemoved {
        /// The address.
        address: IpAddr,
    },
    /// A stranger tells the neighbours that it has our address.
    ClaimedByStranger {
        /// The address.
        address: IpAddr,
        /// Who.
        mac: Mac,
    },
}

/// The kinds of [`Alarm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlarmKind {
    /// [`Alarm::TwoHolders`].
    TwoHolders,
    /// [`Alarm::OtherAddresses`].
    OtherAddresses,
    /// [`Alarm::Collision`].
    Collision,
    /// [`Alarm::SamePriority`].
    SamePriority,
    /// [`Alarm::Refused`].
    Refused,
    /// [`Alarm::AdvertsBlocked`].
    AdvertsBlocked,
    /// [`Alarm::AddressRemoved`].
    AddressRemoved,
    /// [`Alarm::ClaimedByStranger`].
    ClaimedByStranger,
}

impl Reason {
    /// The label of metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Owner => "owner",
            Self::Silence { .. } => "silence",
            Self::LetGo { .. } => "let-go",
            Self::HostLost { .. } => "host-lost",
            Self::HandedOver { .. } => "handed-over",
            Self::Preempted { .. } => "preempted",
            Self::Outranked { .. } => "outranked",
            Self::Yielded { .. } => "yielded",
            Self::Unwell { .. } => "unwell",
            Self::Paused { .. } => "paused",
            Self::LinkLost(_) => "link-lost",
            Self::Stopped { .. } => "stopped",
            Self::Reconfigured => "reconfigured",
        }
    }

    /// Every label, for counters that begin at zero.
    pub const LABELS: [&'static str; 14] = [
        "started",
        "owner",
        "silence",
        "let-go",
        "host-lost",
        "handed-over",
        "preempted",
        "outranked",
        "yielded",
        "unwell",
        "paused",
        "link-lost",
        "stopped",
        "reconfigured",
    ];
}

impl Repair {
    /// The label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Advert => "advert",
            Self::Neighbour => "neighbour",
            Self::Return => "return",
            Self::Report => "report",
            Self::Restored => "restored",
        }
    }

    /// All of them.
    pub const ALL: [Self; 5] = [Self::Advert, Self::Neighbour, Self::Return, Self::Report, Self::Restored];
}

impl Alarm {
    /// Its kind.
    pub const fn kind(&self) -> AlarmKind {
        match self {
            Self::TwoHolders { .. } => AlarmKind::TwoHolders,
            Self::OtherAddresses { .. } => AlarmKind::OtherAddresses,
            Self::Collision { .. } => AlarmKind::Collision,
            Self::SamePriority { .. } => AlarmKind::SamePriority,
            Self::Refused { .. } => AlarmKind::Refused,
            Self::AdvertsBlocked { .. } => AlarmKind::AdvertsBlocked,
            Self::AddressRemoved { .. } => AlarmKind::AddressRemoved,
            Self::ClaimedByStranger { .. } => AlarmKind::ClaimedByStranger,
        }
    }
}

impl AlarmKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::TwoHolders,
        Self::OtherAddresses,
        Self::Collision,
        Self::SamePriority,
        Self::Refused,
        Self::AdvertsBlocked,
        Self::AddressRemoved,
        Self::ClaimedByStranger,
    ];

    /// The label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TwoHolders => "two-holders",
            Self::OtherAddresses => "other-addresses",
            Self::Collision => "collision",
            Self::SamePriority => "same-priority",
            Self::Refused => "refused",
            Self::AdvertsBlocked => "adverts-blocked",
            Self::AddressRemoved => "address-removed",
            Self::ClaimedByStranger => "claimed-by-stranger",
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ended => "its process has ended",
            Self::Silent => "it has fallen silent",
            Self::LetGo => "it says that it holds the addresses no more",
        })
    }
}

impl fmt::Display for PeerNews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alive => f.write_str("it is heard"),
            Self::Lost(loss) => loss.fmt(f),
            Self::Farewell => f.write_str("it stops, and has said so"),
        }
    }
}

impl fmt::Display for LinkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name) => write!(f, "there is no interface {name}"),
            Self::Down(name) => write!(f, "the interface {name} is down"),
            Self::NoCarrier(name) => write!(f, "the interface {name} has no carrier"),
            Self::NoAddress(name) => {
                write!(f, "the interface {name} has no address of its own to send adverts from")
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let taken = |to: &Option<NodeName>| match to {
            Some(node) => format!("{node} has taken over"),
            None => "nobody took over directly".to_owned(),
        };
        match self {
            Self::Started => f.write_str("the interface can be used"),
            Self::Owner => f.write_str("this host owns the addresses (priority 255)"),
            Self::Silence { waited, last: Some(last) } => {
                write!(f, "nothing was heard of {last} for {} ms", waited.as_millis())
            }
            Self::Silence { waited, last: None } => {
                write!(f, "nobody was heard for {} ms", waited.as_millis())
            }
            Self::LetGo { by } => write!(f, "{by} let go of the addresses, and nobody else took them"),
            Self::HostLost { node, how, votes: 1 } => write!(f, "{node} is lost: {how}"),
            Self::HostLost { node, how, votes } => {
                write!(f, "{node} is lost: {how}; {votes} hosts say so")
            }
            Self::HandedOver { by } => write!(f, "{by} handed the addresses over"),
            Self::Preempted { holder, priority } => {
                write!(f, "{holder} held the addresses with the lower priority {priority}")
            }
            Self::Outranked { by, priority } => {
                write!(f, "{by} holds the addresses with priority {priority}")
            }
            Self::Yielded { to } => write!(f, "an operator wished it; {}", taken(to)),
            Self::Unwell { why, to } => write!(f, "the proxy does not serve ({why}); {}", taken(to)),
            Self::Paused { by } => {
                write!(f, "this process did not run for {} ms; others may hold the addresses", by.as_millis())
            }
            Self::LinkLost(fault) => fault.fmt(f),
            Self::Stopped { to: Some(node) } => write!(f, "pointsman-vip stops; {node} has taken over"),
            Self::Stopped { to: None } => f.write_str("pointsman-vip stops"),
            Self::Reconfigured => f.write_str("the configuration has changed"),
        }
    }
}

fn list(addresses: &BTreeSet<IpAddr>) -> String {
    if addresses.is_empty() {
        return "nothing".to_owned();
    }
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoHolders { other, priority } => write!(
                f,
                "{other} holds the addresses, too, with priority {priority}, and does not give way: do packets of this \
                 host reach it, and is it configured alike (version, addresses, password, multicast or unicast)?"
            ),
            Self::OtherAddresses { from, theirs, ours } => write!(
                f,
                "{from} announces other addresses in this virtual router: only there {}, only here {}; all hosts have \
                 to have the same",
                list(theirs),
                list(ours)
            ),
            Self::Collision { from, theirs } => write!(
                f,
                "{from} uses our router_id for {}, which is none of ours: give one of the two groups another router_id",
                list(theirs)
            ),
            Self::SamePriority { other, priority } => write!(
                f,
                "{other} has the same priority, {priority}: the higher address wins; give each host its own priority"
            ),
            Self::Refused { from, why } => {
                write!(f, "adverts of {from} for this virtual router count for nothing: {why}")
            }
            Self::AdvertsBlocked { node } => write!(
                f,
                "{node} reports that it is active, but its adverts do not arrive: is multicast blocked between the \
                 hosts, or does one of them use unicast?"
            ),
            Self::AddressRemoved { address } => write!(
                f,
                "something on this host removes {address} from its interface again and again: does a network manager \
                 (systemd-networkd: KeepConfiguration, ManageForeignRoutingPolicyRules) think it is its own?"
            ),
            Self::ClaimedByStranger { address, mac } => {
                write!(f, "{mac} tells the neighbours that it has {address}, without being heard as a router")
            }
        }
    }
}
