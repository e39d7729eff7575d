//! Who else was heard to hold the addresses, by adverts and by reports.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use pointsman_config::{NodeName, VipName};

use crate::advert::Advert;
use crate::event::State;
use crate::group::Group;
use crate::report::Report;
use crate::router::{Rank, World, holders};
use crate::time::Moment;

/// Senders that are remembered; more are strangers at play.
const MOST: usize = 16;

/// Everybody else who speaks for this virtual router.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rivals {
    heard: BTreeMap<IpAddr, Rival>,
    claims: BTreeMap<NodeName, Claim>,
    vacated: Option<NodeName>,
}

/// A sender of adverts.
#[derive(Clone, Copy, Debug)]
struct Rival {
    priority: u8,
    at: Moment,
    /// Since when it has been heard without a gap.
    since: Moment,
    interval: Duration,
    /// None of the hosts that report to us.
    stranger: bool,
}

/// A host that reports that it is active, or was when it was heard last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) since: Moment,
    pub(crate) source: IpAddr,
    /// An advert of it has arrived since then.
    pub(crate) heard: bool,
}

impl Rival {
    fn is_active(&self, now: Moment) -> bool {
        self.priority > 0 && now.since(self.at) <= self.interval * 3
    }
}

impl Rivals {
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// An advert.
    pub(crate) fn heard(&mut self, world: World<'_>, router: &VipName, from: IpAddr, advert: &Advert) {
        if self.heard.len() >= MOST && !self.heard.contains_key(&from) {
            let oldest = self.heard.iter().min_by_key(|(_, rival)| rival.at).map(|(address, _)| *address);
            oldest.and_then(|address| self.heard.remove(&address));
        }
        let before = self.heard.get(&from).filter(|rival| rival.is_active(world.now));
        let since = before.map_or(world.now, |rival| rival.since);
        let stranger = !is_peer(world.group, router, from);
        let (priority, interval) = (advert.priority, advert.interval);
        self.heard.insert(from, Rival { priority, at: world.now, since, interval, stranger });
        for claim in self.claims.values_mut().filter(|claim| claim.source == from) {
            claim.heard = true;
        }
        if priority > 0 {
            self.vacated = None;
        }
    }

    /// Compares the reports with what is known. True when a host has stopped to hold the addresses.
    pub(crate) fn look(&mut self, world: World<'_>, router: &VipName) -> bool {
        // Whose advert was here before its first report is no stranger any more.
        let sources = world.group.live().filter_map(|(_, report)| report.routers.get(router)?.source);
        for source in sources {
            if let Some(rival) = self.heard.get_mut(&source) {
                rival.stranger = false;
            }
        }
        let mut found = false;
        for (node, _, rank) in holders(world.group, router) {
            found = true;
            let heard = self.heard.get(&rank.address).is_some_and(|rival| rival.is_active(world.now));
            let claim = Claim { since: world.now, source: rank.address, heard };
            self.claims.entry(node.clone()).or_insert(claim);
        }
        let left = self.claims.keys().find(|node| has_let_go(world.group, router, node)).cloned();
        if let Some(node) = &left {
            self.claims.remove(node);
            self.vacated = Some(node.clone());
        }
        if found {
            self.vacated = None;
        }
        left.is_some()
    }

    /// Hosts that are lost, and held the addresses when they were heard last.
    pub(crate) fn lost_holders<'a>(
        &'a self,
        group: &'a Group,
    ) -> impl Iterator<Item = (&'a NodeName, &'a Claim)> {
        self.claims.iter().filter(|(node, _)| !group.is_alive(node))
    }

    /// A live host that held the addresses, and says that it does no more; nobody else has been heard to hold them since.
    pub(crate) fn vacated(&self) -> Option<&NodeName> {
        self.vacated.as_ref()
    }

    /// We hold them now: who held them before matters no more, unless it lives and still says so.
    pub(crate) fn settle(&mut self, group: &Group) {
        self.claims.retain(|node, _| group.is_alive(node));
        self.vacated = None;
    }

    pub(crate) fn claim(&self, node: &NodeName) -> Option<&Claim> {
        self.claims.get(node)
    }

    /// Whether the adverts of a host arrive as they should: they do now, or none ever did, so that something is in their way.
    pub(crate) fn hears(&self, now: Moment, node: &NodeName) -> bool {
        let Some(claim) = self.claims.get(node) else { return true };
        !claim.heard || self.heard.get(&claim.source).is_some_and(|rival| rival.is_active(now))
    }

    /// Somebody other than `except` is heard to hold the addresses.
    pub(crate) fn active_besides(&self, now: Moment, except: IpAddr) -> bool {
        self.heard.iter().any(|(address, rival)| *address != except && rival.is_active(now))
    }

    pub(crate) fn any_active(&self, now: Moment) -> bool {
        self.heard.values().any(|rival| rival.is_active(now))
    }

    pub(crate) fn count_active(&self, now: Moment) -> usize {
        self.heard.values().filter(|rival| rival.is_active(now)).count()
    }

    /// Since when an address has been heard without a gap.
    pub(crate) fn heard_since(&self, now: Moment, from: IpAddr) -> Option<Moment> {
        self.heard.get(&from).filter(|rival| rival.is_active(now)).map(|rival| rival.since)
    }

    /// A stranger of higher rank is heard to hold the addresses.
    pub(crate) fn outranked(&self, now: Moment, ours: Rank) -> bool {
        self.heard.iter().any(|(address, rival)| {
            let theirs = Rank { priority: rival.priority, address: *address };
            rival.stranger && theirs > ours && rival.is_active(now)
        })
    }

    /// Somebody speaks VRRP with us that is none of the hosts that report to us.
    pub(crate) fn strangers(&self) -> bool {
        self.heard.values().any(|rival| rival.stranger)
    }

    /// The first of those that are heard to hold the addresses.
    pub(crate) fn first(&self, now: Moment) -> Option<Rank> {
        let active = self.heard.iter().filter(|(_, rival)| rival.is_active(now));
        active.map(|(address, rival)| Rank { priority: rival.priority, address: *address }).max()
    }
}

fn has_let_go(group: &Group, router: &VipName, node: &NodeName) -> bool {
    let mut live = group.live();
    live.any(|(live, report)| {
        live == node && report.routers.get(router).is_none_or(|theirs| theirs.state != State::Active)
    })
}

/// The host among those that report to us that sends its adverts from there.
pub(crate) fn node_at(group: &Group, router: &VipName, address: IpAddr) -> Option<NodeName> {
    let at = |report: &Report| report.routers.get(router).and_then(|theirs| theirs.source) == Some(address);
    let mut peers = group.peers().filter(|(_, peer)| peer.report().is_some_and(at));
    peers.next().map(|(node, _)| node.clone())
}

/// Whether one of the hosts that report to us sends its adverts from there.
pub(crate) fn is_peer(group: &Group, router: &VipName, address: IpAddr) -> bool {
    node_at(group, router, address).is_some()
}
