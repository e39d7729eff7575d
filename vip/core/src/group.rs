//! The other load-balancer hosts: who lives, by whose word.
//!
//! A host is *lost* when its kernel has closed the connection to it, or when three of its heartbeats are missing. That is one
//! host's opinion; [`Group::agreed`] is the opinion of more than half of all hosts, which a claim before VRRP's timers needs: a
//! host that is cut off from everybody believes that everybody is lost.

use std::collections::BTreeMap;
use std::time::Duration;

use pointsman_config::NodeName;

use crate::event::Wire;
use crate::note::{Loss, PeerNews};
use crate::report::{Report, Sight};
use crate::time::Moment;

#[cfg(test)]
mod tests;

/// So many heartbeats may be missing before a host counts as lost.
pub const MISSING: u32 = 3;

/// All other hosts.
#[derive(Clone, Debug)]
pub struct Group {
    heartbeat: Duration,
    peers: BTreeMap<NodeName, Peer>,
    changed: Moment,
}

/// Another host.
#[derive(Clone, Debug)]
pub struct Peer {
    standing: Standing,
    /// Since when it stands so.
    since: Moment,
    heard: Moment,
    connected: bool,
    report: Option<Report>,
}

/// What we think of another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Never heard of, or it said good-bye.
    Unknown,
    /// It is heard.
    Alive,
    /// It was heard, and is lost.
    Lost(Loss),
}

impl Peer {
    /// What we think of it.
    pub const fn standing(&self) -> Standing {
        self.standing
    }

    /// When it was heard last.
    pub const fn heard(&self) -> Moment {
        self.heard
    }

    /// Whether there is a connection that would tell of its end.
    pub const fn is_connected(&self) -> bool {
        self.connected
    }

    /// Its last report.
    pub const fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    fn is_alive(&self) -> bool {
        self.standing == Standing::Alive
    }

    const fn sight(&self) -> Sight {
        match self.standing {
            Standing::Unknown => Sight::Unknown,
            Standing::Alive => Sight::Alive,
            Standing::Lost(_) => Sight::Lost,
        }
    }
}

impl Group {
    /// A group with these other hosts, none of which has been heard of.
    pub fn new(others: impl IntoIterator<Item = NodeName>, heartbeat: Duration) -> Self {
        let unknown = || Peer {
            standing: Standing::Unknown,
            since: Moment::ZERO,
            heard: Moment::ZERO,
            connected: false,
            report: None,
        };
        let peers = others.into_iter().map(|node| (node, unknown())).collect();
        Self { heartbeat, peers, changed: Moment::ZERO }
    }

    /// Takes another list of hosts and another heartbeat; what is known of those that stay is kept.
    pub fn reconfigure(&mut self, others: impl IntoIterator<Item = NodeName>, heartbeat: Duration) {
        let mut next = Self::new(others, heartbeat);
        for (node, peer) in &mut next.peers {
            if let Some(known) = self.peers.remove(node) {
                *peer = known;
            }
        }
        next.changed = self.changed;
        *self = next;
    }

    /// True when there are no other hosts, so that VRRP is all there is.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// The time between two heartbeats.
    pub const fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// All other hosts.
    pub fn peers(&self) -> impl Iterator<Item = (&NodeName, &Peer)> {
        self.peers.iter()
    }

    /// Those that are heard, with their reports.
    pub fn live(&self) -> impl Iterator<Item = (&NodeName, &Report)> {
        let live = self.peers.iter().filter(|(_, peer)| peer.is_alive());
        live.filter_map(|(node, peer)| Some((node, peer.report.as_ref()?)))
    }

    /// True when it is heard.
    pub fn is_alive(&self, node: &NodeName) -> bool {
        self.peers.get(node).is_some_and(Peer::is_alive)
    }

    /// True when it has been heard for at least a heartbeat. The first reports of a host that is back may be old: what it sent
    /// while it was cut off has waited in its own kernel, and comes at once, in its order.
    pub fn is_settled(&self, now: Moment, node: &NodeName) -> bool {
        let settled = |peer: &Peer| peer.is_alive() && now >= peer.since + self.heartbeat;
        self.peers.get(node).is_some_and(settled)
    }

    /// When a host was heard of for the first time, or lost, or came back, most lately.
    pub const fn changed(&self) -> Moment {
        self.changed
    }

    /// The connection to a host changed.
    pub fn wire(&mut self, now: Moment, node: &NodeName, wire: Wire) -> Option<PeerNews> {
        let peer = self.peers.get_mut(node)?;
        peer.connected = wire == Wire::Connected;
        let standing = match wire {
            // It has proved that it lives; what it said before its restart is void.
            Wire::Connected => {
                if !peer.is_alive() {
                    peer.report = None;
                }
                peer.heard = now;
                Standing::Alive
            }
            Wire::Ended if peer.standing == Standing::Unknown => return None,
            Wire::Ended => Standing::Lost(Loss::Ended),
            Wire::Broken => return None, // its heartbeats tell
            Wire::Farewell => {
                peer.report = None;
                Standing::Unknown
            }
        };
        self.stand(now, node, standing)
    }

    /// A host has reported.
    pub fn report(&mut self, now: Moment, node: &NodeName, report: Report) -> Option<PeerNews> {
        let peer = self.peers.get_mut(node)?;
        if peer.standing == Standing::Lost(Loss::Ended) {
            return None; // overtaken by the end of its sender
        }
        peer.heard = now;
        peer.report = Some(report);
        self.stand(now, node, Standing::Alive)
    }

    /// Finds those whose heartbeats are missing.
    pub fn tick(&mut self, now: Moment) -> Vec<(NodeName, PeerNews)> {
        let silence = self.heartbeat * MISSING;
        let silent = self.peers.iter().filter(|(_, peer)| peer.is_alive() && now >= peer.heard + silence);
        let silent: Vec<_> = silent.map(|(node, _)| node.clone()).collect();
        let lost = |node: NodeName| {
            let news = self.stand(now, &node, Standing::Lost(Loss::Silent))?;
            Some((node, news))
        };
        silent.into_iter().filter_map(lost).collect()
    }

    /// This process did not run for a while: silence meanwhile says nothing of the others.
    pub fn forgive(&mut self, now: Moment) {
        for peer in self.peers.values_mut().filter(|peer| peer.is_alive()) {
            peer.heard = now;
        }
    }

    /// When [`Self::tick`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        let live = self.peers.values().filter(|peer| peer.is_alive());
        live.map(|peer| peer.heard + self.heartbeat * MISSING).min()
    }

    fn stand(&mut self, now: Moment, node: &NodeName, standing: Standing) -> Option<PeerNews> {
        let peer = self.peers.get_mut(node)?;
        let before = std::mem::replace(&mut peer.standing, standing);
        if before == standing {
            return None;
        }
        peer.since = now;
        self.changed = now;
        Some(match standing {
            Standing::Unknown => PeerNews::Farewell,
            Standing::Alive => PeerNews::Alive,
            Standing::Lost(loss) => PeerNews::Lost(loss),
        })
    }

    /// How a host was lost and how many hosts say so, if that is enough to act on: more than half of all hosts, we among them.
    /// In a group of two nobody else can be asked; there the end of the process is enough, since the other host's kernel told
    /// it, and silence is not.
    pub fn agreed(&self, node: &NodeName) -> Option<(Loss, usize)> {
        let Standing::Lost(loss) = self.peers.get(node)?.standing else { return None };
        let says_so = |report: &Report| report.sees.get(node) == Some(&Sight::Lost);
        let votes = 1 + self.live().filter(|(_, report)| says_so(report)).count();
        let hosts = self.peers.len() + 1;
        let enough = votes > hosts / 2 || (hosts == 2 && loss == Loss::Ended);
        enough.then_some((loss, votes))
    }

    /// What our own report says of the others.
    pub fn sees(&self) -> BTreeMap<NodeName, Sight> {
        self.peers.iter().map(|(node, peer)| (node.clone(), peer.sight())).collect()
    }
}
