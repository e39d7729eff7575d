//! Those who are asked: a connection for each, whether it is in use, and what was wrong last time.

use std::collections::BTreeMap;
use std::time::Duration;

use pointsman_config::Rest;
use pointsman_core::event::AskError;
use pointsman_core::time::Moment;
use pointsman_core::view::ApiUrl;

use crate::ask::rest::Patroni;

/// Nobody is asked the same more often than this.
const SPACING: Duration = Duration::from_millis(250);
/// Who fails is asked less and less often: every 2 s in the end.
const DOUBLINGS: u32 = 3;

/// One Patroni, as it is asked for one purpose.
pub(super) struct Peer {
    pub(super) api: ApiUrl,
    /// None: in use.
    line: Option<Patroni>,
    begun: Option<Moment>,
    failures: u32,
    fails_since: Option<Moment>,
    /// How much the last failure says, and what.
    failure: Option<(u8, String)>,
    /// Why its last answer counted for nothing.
    stale: Option<String>,
}

impl Peer {
    pub(super) fn new(api: ApiUrl, rest: &Rest) -> Self {
        let line = Some(Patroni::new(rest));
        Self { api, line, begun: None, failures: 0, fails_since: None, failure: None, stale: None }
    }

    /// Whether its last answer was none.
    pub(super) fn fails(&self) -> bool {
        self.failures > 0
    }

    pub(super) fn fails_since(&self) -> Option<Moment> {
        self.fails_since
    }

    /// It has answered. Returns what was wrong before.
    pub(super) fn answered(&mut self) -> Option<String> {
        self.failures = 0;
        self.fails_since = None;
        self.stale = None;
        self.failure.take().map(|(_, why)| why)
    }

    /// It has failed. Says whether that is news.
    pub(super) fn failed(&mut self, kind: AskError, why: &str, now: Moment) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.fails_since.get_or_insert(now);
        let news = self.failure.as_ref().is_none_or(|(_, known)| known != why);
        self.failure = Some((rank(kind), why.to_owned()));
        news
    }

    /// It has answered, but speaks of a time that is over.
    pub(super) fn is_stale(&mut self, why: String) {
        self.stale = Some(why);
    }

    /// How much its failure says about the cause, among others'.
    pub(super) fn rank(&self) -> u8 {
        let stale = u8::from(self.stale.is_some()) * 3;
        self.failure.as_ref().map_or(stale, |(rank, _)| *rank)
    }

    /// Why it tells nothing, for people.
    pub(super) fn why(&self) -> &str {
        let failure = self.failure.as_ref().map(|(_, why)| why.as_str());
        failure.or(self.stale.as_deref()).unwrap_or("no answer yet")
    }

    fn due(&self) -> Moment {
        let spacing = SPACING * (1 << self.failures.min(DOUBLINGS));
        self.begun.map_or(Moment::ZERO, |begun| begun + spacing)
    }
}

/// A wrong password says more than a closed port.
fn rank(kind: AskError) -> u8 {
    match kind {
        AskError::Refused => 1,
        AskError::TimedOut | AskError::NotReady => 2,
        AskError::Unreachable => 3,
        AskError::Nonsense | AskError::Stranger | AskError::Denied => 4,
    }
}

/// Those who are asked for one purpose, by address or by name.
pub(super) struct Peers<K>(BTreeMap<K, Peer>);

impl<K: Ord + Clone> Peers<K> {
    pub(super) fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, key: &K) -> Option<&Peer> {
        self.0.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut Peer> {
        self.0.get_mut(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.0.values()
    }

    /// From now on these are asked; who was there already is kept.
    pub(super) fn set(&mut self, wanted: impl IntoIterator<Item = (K, ApiUrl)>, rest: &Rest) {
        let mut old = std::mem::take(&mut self.0);
        for (key, api) in wanted {
            let known = old.remove(&key).filter(|peer| peer.api == api);
            let peer = known.unwrap_or_else(|| Peer::new(api, rest));
            self.0.entry(key).or_insert(peer);
        }
    }

    /// Who has waited longest of those who may be asked now.
    pub(super) fn next(&self, now: Moment, suits: impl Fn(&K, &Peer) -> bool) -> Option<K> {
        let free = self.0.iter().filter(|(key, peer)| peer.line.is_some() && suits(key, peer));
        let due = free.filter(|(_, peer)| peer.due() <= now);
        due.min_by_key(|(_, peer)| peer.begun).map(|(key, _)| key.clone())
    }

    /// When the next of them may be asked. None while all are being asked.
    pub(super) fn free_at(&self, suits: impl Fn(&K, &Peer) -> bool) -> Option<Moment> {
        let free = self.0.iter().filter(|(key, peer)| peer.line.is_some() && suits(key, peer));
        free.map(|(_, peer)| peer.due()).min()
    }

    /// Takes the line of a peer, to ask it.
    pub(super) fn take(&mut self, key: &K, now: Moment) -> Option<(ApiUrl, Patroni)> {
        let peer = self.0.get_mut(key)?;
        let line = peer.line.take()?;
        peer.begun = Some(now);
        Some((peer.api.clone(), line))
    }

    /// Gives it back, unless the peer has gone or moved meanwhile.
    pub(super) fn put_back(&mut self, key: &K, api: &ApiUrl, line: Patroni) {
        if let Some(peer) = self.0.get_mut(key).filter(|peer| peer.api == *api) {
            peer.line = Some(line);
        }
    }
}

impl<K: Ord> FromIterator<(K, Peer)> for Peers<K> {
    fn from_iter<I: IntoIterator<Item = (K, Peer)>>(peers: I) -> Self {
        Self(peers.into_iter().collect())
    }
}
