//! What people and machines are shown of a host: one description, from which JSON, the table of `pointsman-vip status`, metrics and
//! the dashboard are made.
//!
//! A description is a whole, made after each change and at least once a second. Its ages are those of the moment at which it
//! was made ([`Status::aged`] brings them up to date). Every label of a counter is there from the start, with zero.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::time::Duration;

use pointsman_config::{NodeName, VipName};
use serde::Serialize;

use crate::event::{self, LinkFault, State};
use crate::note::{Alarm, Reason, Repair};

/// Everything of one host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// This host.
    pub node: NodeName,
    /// The version of the program.
    pub version: &'static str,
    /// What is known of the proxy on this host.
    pub proxy: ProxyStatus,
    /// In the order of the file.
    pub routers: Vec<RouterStatus>,
    /// The other hosts that signal directly. Empty: VRRP alone.
    pub peers: Vec<PeerStatus>,
    /// The time between two signs of life of a host. `None`: no peers.
    pub heartbeat_ms: Option<u64>,
    /// Virtual routers of others that were heard on our interfaces; a bounded list.
    pub foreign: Vec<Foreign>,
}

/// One virtual router.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouterStatus {
    /// Its name.
    pub name: VipName,
    /// The network interface.
    pub interface: String,
    /// The virtual router identifier.
    pub router_id: NonZeroU8,
    /// Of the protocol: 2 or 3.
    pub version: u8,
    /// With their prefix, in the order of the file.
    pub addresses: Vec<String>,
    /// What we are in it.
    pub state: State,
    /// For how long.
    pub since_ms: u64,
    /// As configured for this host.
    pub base_priority: u8,
    /// As it counts now.
    pub priority: u8,
    /// This host may hold the addresses: its proxy is well, and no operator wished it to yield.
    pub fit: bool,
    /// Why it may not, in words.
    pub unfit: Option<String>,
    /// An operator wished us to yield.
    pub yielded: bool,
    /// Who holds the addresses, as far as we know; we ourselves when we are Active.
    pub holder: Option<Holder>,
    /// Where our adverts come from. `None`: the interface cannot be used.
    pub source: Option<IpAddr>,
    /// Why the interface cannot be used.
    pub link_fault: Option<Said>,
    /// What was counted since the process started.
    #[serde(flatten)]
    pub counters: Counters,
    /// How many hosts hold the addresses now, by their adverts and reports, we among them. More than one: look at the alarms.
    pub holders_seen: u64,
    /// What somebody should look at.
    pub alarms: Vec<Said>,
}

/// Who holds the addresses of a virtual router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Where its adverts come from.
    pub address: IpAddr,
    /// The priority that they carry.
    pub priority: u8,
    /// Its name, if it is one of our hosts.
    pub node: Option<NodeName>,
}

/// What is counted of one virtual router. A counter never falls while the process runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Changes of state by [`Reason::label`].
    pub transitions: BTreeMap<&'static str, u64>,
    /// Adverts, ours and theirs.
    pub adverts: Adverts,
    /// How often the neighbours were told that the addresses are here.
    pub announcements: u64,
    /// Claims of others that were answered, by [`Repair::label`].
    pub repairs: BTreeMap<&'static str, u64>,
}

/// Adverts of one virtual router.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Adverts {
    /// By us.
    pub sent: u64,
    /// By others, and in order.
    pub received: u64,
    /// By others, and not in order: by the label of what was wrong with them.
    pub rejected: BTreeMap<&'static str, u64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            transitions: Reason::LABELS.into_iter().map(|label| (label, 0)).collect(),
            adverts: Adverts::default(),
            announcements: 0,
            repairs: Repair::ALL.into_iter().map(|repair| (repair.label(), 0)).collect(),
        }
    }
}

impl Counters {
    /// All of them zero; `rejects`: the labels of what can be wrong with an advert.
    pub fn new(rejects: impl IntoIterator<Item = &'static str>) -> Self {
        let mut counters = Self::default();
        counters.adverts.rejected = rejects.into_iter().map(|label| (label, 0)).collect();
        counters
    }

    /// Counts a change of state.
    pub fn transition(&mut self, reason: &Reason) {
        count(&mut self.transitions, reason.label());
    }

    /// Counts an answer to somebody else's claim.
    pub fn repair(&mut self, repair: Repair) {
        count(&mut self.repairs, repair.label());
    }

    /// Counts an advert that counts for nothing.
    pub fn rejected(&mut self, label: &'static str) {
        count(&mut self.adverts.rejected, label);
    }
}

fn count(counters: &mut BTreeMap<&'static str, u64>, label: &'static str) {
    let counter = counters.entry(label).or_default();
    *counter = counter.saturating_add(1);
}

/// A label for machines and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Said {
    /// One of a finite set.
    pub kind: &'static str,
    /// The sentence.
    pub text: String,
}

impl From<&Alarm> for Said {
    fn from(alarm: &Alarm) -> Self {
        Self { kind: alarm.kind().as_str(), text: alarm.to_string() }
    }
}

impl From<&LinkFault> for Said {
    fn from(fault: &LinkFault) -> Self {
        let kind = match fault {
            LinkFault::Missing(_) => "missing",
            LinkFault::Down(_) => "down",
            LinkFault::NoCarrier(_) => "no-carrier",
            LinkFault::NoAddress(_) => "no-address",
        };
        Self { kind, text: fault.to_string() }
    }
}

/// What is known of the proxy on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProxyStatus {
    /// Where it stands.
    pub state: ProxyState,
    /// Why it does not serve, in words.
    pub why: Option<String>,
}

impl From<&event::Proxy> for ProxyStatus {
    fn from(proxy: &event::Proxy) -> Self {
        match proxy {
            event::Proxy::Well => Self { state: ProxyState::Well, why: None },
            event::Proxy::Unwell { why } => Self { state: ProxyState::Unwell, why: Some(why.clone()) },
        }
    }
}

/// Where the proxy on this host stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyState {
    /// It has not been asked yet, or no virtual router wants to know.
    #[default]
    Unknown,
    /// It serves.
    Well,
    /// It does not.
    Unwell,
}

impl ProxyState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Well, Self::Unwell];

    /// As it is written in tables and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Well => "well",
            Self::Unwell => "unwell",
        }
    }
}

/// Another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// Its name.
    pub node: NodeName,
    /// Where it is reached.
    pub address: SocketAddr,
    /// What we think of it.
    pub state: PeerState,
    /// Why we think so, in words, if there is something to say.
    pub how: Option<String>,
    /// The age of its last report. `None`: it never sent one.
    pub heard_ms: Option<u64>,
}

/// What we think of another host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// Never heard of since we started, or it said good-bye.
    #[default]
    Unknown,
    /// A connection is there, or being made; no report has come over yet.
    Connecting,
    /// It is heard.
    Alive,
    /// It was heard, and is lost.
    Lost,
}

impl PeerState {
    /// As it is written in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Connecting => "connecting",
            Self::Alive => "alive",
            Self::Lost => "lost",
        }
    }
}

/// A virtual router of somebody else on one of our interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Foreign {
    /// The interface.
    pub interface: String,
    /// Its VRID.
    pub router_id: NonZeroU8,
    /// Who sent the last of its adverts.
    pub from: IpAddr,
    /// How many adverts were seen.
    pub count: u64,
}

impl Status {
    /// The description of a host of which nothing is known yet.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            version: env!("CARGO_PKG_VERSION"),
            proxy: ProxyStatus::default(),
            routers: Vec::new(),
            peers: Vec::new(),
            heartbeat_ms: None,
            foreign: Vec::new(),
        }
    }

    /// The same description `by` later: only ages differ.
    #[must_use]
    pub fn aged(&self, by: Duration) -> Self {
        let by = millis(by);
        let add = |age: &mut u64| *age = age.saturating_add(by);
        let mut status = self.clone();
        status.routers.iter_mut().for_each(|router| add(&mut router.since_ms));
        status.peers.iter_mut().filter_map(|peer| peer.heard_ms.as_mut()).for_each(add);
        status
    }
}

/// Whole milliseconds.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_is_there_from_the_start() {
        let mut counters = Counters::new(["length", "hop-limit"]);
        assert_eq!(counters.transitions.len(), Reason::LABELS.len());
        assert_eq!(counters.repairs.len(), Repair::ALL.len());
        assert_eq!(counters.adverts.rejected.len(), 2);
        counters.transition(&Reason::Started);
        counters.repair(Repair::Return);
        counters.rejected("length");
        assert_eq!(counters.transitions.get("started"), Some(&1));
        assert_eq!(counters.repairs.get("return"), Some(&1));
        assert_eq!(counters.adverts.rejected.get("length"), Some(&1));
        assert_eq!(counters.adverts.rejected.get("hop-limit"), Some(&0));
    }

    #[test]
    fn a_description_grows_old() {
        let mut status = Status::new(NodeName::new("lb1").unwrap());
        status.peers.push(PeerStatus {
            node: NodeName::new("lb2").unwrap(),
            address: "10.0.0.12:7001".parse().unwrap(),
            state: PeerState::Alive,
            how: None,
            heard_ms: Some(7),
        });
        let aged = status.aged(Duration::from_millis(100));
        assert_eq!(aged.peers.first().and_then(|peer| peer.heard_ms), Some(107));
        assert_eq!((aged.node, aged.version), (status.node, status.version));
    }

    #[test]
    fn what_machines_read_is_written_as_words() {
        let said = Said::from(&LinkFault::NoCarrier("eth0".to_owned()));
        let json = serde_json::to_value(&said).unwrap();
        assert_eq!(
            json,
            serde_json::json!({ "kind": "no-carrier", "text": "the interface eth0 has no carrier" })
        );
        for state in ProxyState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
