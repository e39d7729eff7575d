//! What the hosts tell each other beside VRRP: what each holds, and whom each hears.
//!
//! A report is the whole truth of its sender and not a change of it, so that one that is lost costs nothing but time. It is
//! sent with every heartbeat, and at once when something in it has changed. It is sealed with the key that all hosts share.

use std::collections::BTreeMap;
use std::net::IpAddr;

use pointsman_config::{NodeName, VipName};

use crate::event::State;

/// What a host says of itself and of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Its virtual routers.
    pub routers: BTreeMap<VipName, RouterReport>,
    /// What it thinks of each of the other hosts.
    pub sees: BTreeMap<NodeName, Sight>,
}

/// What a host says of one of its virtual routers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterReport {
    /// Its state.
    pub state: State,
    /// The priority that it has now.
    pub priority: u8,
    /// It can serve: its proxy is well, and no operator wished it to yield.
    pub fit: bool,
    /// Where its adverts come from.
    pub source: Option<IpAddr>,
    /// It wants to hand the addresses to this host.
    pub offer: Option<NodeName>,
}

/// What one host thinks of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// Never heard of, or it said good-bye.
    Unknown,
    /// It is heard.
    Alive,
    /// It was heard, and is lost.
    Lost,
}
