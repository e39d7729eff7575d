//! Patroni's keys in Consul's KV store.
//!
//! One address at a time: read everything below the prefix, then again and again as a *blocking query*, which Consul
//! answers when something has changed, or after [`WAIT`]. Each answer is the whole state, so there is nothing to
//! resume and nothing to miss. The short wait is the heartbeat: an answer each second comes from Consul's leader,
//! through whatever is between; an agent that hangs is noticed by [`SILENCE`].
//!
//! Reads are in Consul's default mode. When they fail for want of a leader, the other addresses are tried first; when
//! all have failed, the keys as one server remembers them (`stale`) say whom to ask, and no more than that.
//!
//! A list leaves out what the token may not read, without a word: a key that is missing all of a sudden is asked for
//! by itself before it is believed to be gone. The catalogue of services is not read, and Patroni's own entries there
//! (`register_service`) are not needed.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use pointsman_config::{Cluster, Consul, Endpoint};
use pointsman_core::consul::KvEntry;
use pointsman_core::patroni::Keyspace;
use pointsman_core::time::Moment;
use pointsman_core::view::{ClusterView, Revision};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::endpoints::{Endpoints, Failure};
use super::guard::{Guard, Verdict};
use super::{NOWHERE, Outlet};

mod agent;
mod error;
mod files;
mod pace;

use agent::{Agent, Answer};
use error::ConsulError;
use pace::Pace;

/// Any call that does not wait for a change, with the connection that it needs.
const CALL: Duration = Duration::from_secs(2);
/// How long Consul waits for a change before it answers all the same. (It adds up to a sixteenth of it.)
const WAIT: Duration = Duration::from_secs(1);
/// An address that has not answered a blocking query for so long hangs: the wait, its sixteenth, and two seconds.
const SILENCE: Duration = Duration::from_millis(3_063);
/// A `stale` read asks nobody else.
const STALE_CALL: Duration = Duration::from_millis(500);
/// While Consul elects a leader nobody can read. Only when that takes longer is the store lost.
const ELECTION: Duration = Duration::from_secs(3);
/// So many missing keys are asked for by themselves.
const MAX_SUSPECTS: usize = 16;

/// Follows a cluster's keys for ever.
pub(super) async fn run(cluster: &Cluster, consul: &Consul, outlet: Outlet<'_>) -> Infallible {
    let path = format!("{}/{}/", cluster.namespace, cluster.scope);
    let mut source = Source {
        prefix: path.trim_start_matches('/').to_owned(),
        consul,
        outlet,
        keys: Keyspace::leading_to(cluster.connect_to),
        last: Bytes::new(),
        known: BTreeSet::new(),
        guard: Guard::default(),
        endpoints: Endpoints::new("Consul", consul.addresses.len()),
        memory: None,
        election_over: None,
    };
    loop {
        source.turn().await;
    }
}

struct Source<'a> {
    /// `service/main/`: what every key begins with. Consul's keys have no slash before them.
    prefix: String,
    consul: &'a Consul,
    outlet: Outlet<'a>,
    keys: Keyspace,
    /// The last answer that was taken over, byte by byte.
    last: Bytes,
    /// The names of its keys.
    known: BTreeSet<String>,
    guard: Guard,
    endpoints: Endpoints,
    /// The newest that a server without a leader remembers, since an address worked.
    memory: Option<ClusterView>,
    /// When an election would be over that perhaps goes on.
    election_over: Option<Instant>,
}

impl Source<'_> {
    /// One address, for as long as it works; then the move to the next.
    async fn turn(&mut self) {
        let index = self.endpoints.index();
        let Some(endpoint) = self.consul.addresses.get(index) else {
            return std::future::pending().await; // no addresses at all: the configuration forbids it
        };
        let mut agent = Agent::open(self.consul, endpoint, &self.prefix, &self.outlet.stats.requests).await;
        let Err(error) = self.follow(index, &mut agent).await;
        if self.outlet.stats.connected.swap(NOWHERE, Ordering::Relaxed) != NOWHERE {
            self.outlet.stats.watch_restarts.fetch_add(1, Ordering::Relaxed);
        }
        let error = if error.may_lack_leader() { self.remember(&mut agent, error).await } else { error };
        self.failed(index, endpoint, &error).await;
        sleep(self.endpoints.next()).await;
        self.outlet.stats.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads at one address until something fails.
    async fn follow(&mut self, index: usize, agent: &mut Agent) -> Result<Infallible, ConsulError> {
        let mut pace = Pace::new();
        let mut at = self.first(index, agent).await?;
        loop {
            pace.next().await;
            let answer = agent.list(at).await?;
            self.endpoints.proved();
            // An index that goes back (its highest key was deleted long ago, or the store is another) starts anew.
            let back = answer.index < at;
            at = if back { None } else { answer.index };
            if back {
                debug!(cluster = %self.outlet.cluster.name, "Consul's index went back; reading anew");
            }
            self.next(agent, answer).await?;
        }
    }

    /// The first read at an address: its view is news, whatever it is. Returns the index to wait from.
    async fn first(&mut self, index: usize, agent: &mut Agent) -> Result<Option<u64>, ConsulError> {
        let answer = agent.list(None).await?;
        let (read_at, at) = (self.outlet.now(), answer.index);
        self.take_over(agent, answer).await?;
        self.outlet.stats.connected.store(index, Ordering::Relaxed);
        if let Some(known) = self.endpoints.answered(index) {
            let (cluster, endpoint) = (&self.outlet.cluster.name, agent.endpoint());
            info!(%cluster, %endpoint, was = known.text, "Consul endpoint works again");
        }
        (self.memory, self.election_over) = (None, None);
        self.outlet.view(self.keys.view(), read_at).await;
        Ok(at)
    }

    /// A later answer: news, or the end of a wait.
    async fn next(&mut self, agent: &mut Agent, answer: Answer) -> Result<(), ConsulError> {
        let read_at = self.outlet.now();
        if answer.body == self.last {
            self.outlet.alive(answer.revision()).await;
            return Ok(());
        }
        let before = self.keys.view();
        self.take_over(agent, answer).await?;
        self.tell(before, read_at).await;
        Ok(())
    }

    /// Sends the new view, unless it says what the old one said.
    async fn tell(&mut self, before: ClusterView, read_at: Moment) {
        let view = self.keys.view();
        if (ClusterView { revision: view.revision, ..before }) == view {
            self.outlet.alive(view.revision).await;
        } else {
            self.outlet.view(view, read_at).await;
        }
    }

    /// Makes sure that an answer can be believed, and mirrors its keys.
    async fn take_over(&mut self, agent: &mut Agent, answer: Answer) -> Result<(), ConsulError> {
        let entries = answer.entries(&self.prefix)?;
        let names: BTreeSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
        // Deletions that Consul has forgotten take the index back; what says the same as before is not older.
        if answer.body != self.last {
            self.admit(answer.revision())?;
        }
        for key in self.suspects(&names) {
            if !agent.may_read(&key).await? {
                return Err(ConsulError::Hidden { key });
            }
        }
        let revision = answer.revision();
        self.keys.replace_all(revision, by_name(&entries));
        self.known = names;
        self.last = answer.body;
        debug!(cluster = %self.outlet.cluster.name, endpoint = %agent.endpoint(), revision = revision.0, keys = entries.len(), "read");
        Ok(())
    }

    /// Keys that are missing, either because they are gone or because the token may not read them.
    fn suspects(&self, names: &BTreeSet<String>) -> Vec<String> {
        let mut suspects: Vec<String> = self.known.difference(names).take(MAX_SUSPECTS).cloned().collect();
        if !names.contains("leader") && !self.known.contains("leader") {
            suspects.push("leader".to_owned());
        }
        if !names.iter().any(|name| name.starts_with("members/")) {
            suspects.push("members/".to_owned());
        }
        suspects
    }

    /// Makes sure that time does not run backwards: a server that still thinks itself leader may say what was.
    fn admit(&mut self, revision: Revision) -> Result<(), ConsulError> {
        let cluster = &self.outlet.cluster.name;
        let revision = i64::try_from(revision.0).unwrap_or(i64::MAX);
        match self.guard.judge(0, revision) {
            Verdict::Fine | Verdict::OtherStore => Ok(()),
            Verdict::Restored { before } => {
                warn!(%cluster, revision, before, "Consul went back to an older index and stays there: it was restored, or is another");
                Ok(())
            }
            Verdict::Behind { before } => Err(ConsulError::Behind { revision, before }),
        }
    }

    /// A read has failed, perhaps because Consul has no leader. What does this server remember?
    async fn remember(&mut self, agent: &mut Agent, error: ConsulError) -> ConsulError {
        let stale = match agent.stale().await {
            Ok(stale) if !stale.knows_leader => stale,
            Ok(_) => return error, // it has one: the read failed for another reason
            Err(why) => {
                debug!(%why, "no stale read either");
                return error;
            }
        };
        let Ok(entries) = stale.entries(&self.prefix) else { return error };
        // Our own mirror stays what it was: this is not news.
        let mut keys = Keyspace::leading_to(self.outlet.cluster.connect_to);
        keys.replace_all(stale.revision(), by_name(&entries));
        let view = keys.view();
        if self.memory.as_ref().is_none_or(|memory| memory.revision <= view.revision) {
            self.memory = Some(view);
        }
        ConsulError::NoLeader { keys: entries.len(), index: stale.revision().0 }
    }

    /// Says why an address does not work; and that the store is lost, once none is left that does.
    async fn failed(&mut self, index: usize, endpoint: &Endpoint, error: &ConsulError) {
        let cluster = &self.outlet.cluster.name;
        let text = format!("{endpoint}: {}", error.explain(self.consul, endpoint, &self.prefix));
        if self.endpoints.failed(index, Failure { rank: error.rank(), text: text.clone() }) {
            warn!(%cluster, error = text, "Consul endpoint does not work");
        }
        let none_is_left = self.endpoints.none_is_left();
        if error.may_be_an_election() {
            self.election_over.get_or_insert_with(|| Instant::now() + ELECTION);
        }
        if none_is_left && self.election_over.is_none_or(|over| over <= Instant::now()) {
            if let Some(memory) = self.memory.take() {
                self.outlet.remembered(memory).await;
            }
            self.outlet.lost(self.endpoints.summary()).await;
        }
    }
}

/// As a [`Keyspace`] takes them.
fn by_name(entries: &[KvEntry]) -> impl Iterator<Item = (&str, &[u8], Revision)> {
    entries.iter().map(|entry| (entry.key.as_str(), entry.value.as_slice(), entry.revision))
}
