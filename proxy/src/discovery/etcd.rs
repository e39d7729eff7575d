//! Patroni's keys in etcd (version 3 API).
//!
//! One endpoint at a time: connect, read the whole prefix, watch from the revision after that. Whatever goes
//! wrong (an error, a cancelled or compacted watch, the stream's end, silence) ends with the next endpoint
//! and a new full read; there is no other way to resume, and so no other way to miss a change.
//!
//! A watch can die without a word, so its progress is asked for every second; when nothing has come for
//! three, the endpoint is left. Every call has a deadline, and a leader of etcd is required throughout: a
//! member that is cut off from the others says so instead of showing old keys.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_client::{GetOptions, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use pointsman_config::{Cluster, Endpoint, Etcd};
use pointsman_core::patroni::Keyspace;
use pointsman_core::view::Revision;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::endpoints::{Endpoints, Failure};
use super::guard::{Guard, Verdict};
use super::{NOWHERE, Outlet};

mod connection;
mod error;

use connection::Store;
use error::EtcdError;

/// TCP and TLS.
const CONNECT: Duration = Duration::from_secs(2);
/// Any call.
const CALL: Duration = Duration::from_secs(3);
/// Between two questions for the watch's progress.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A watch that has not said anything for so long is dead.
const SILENCE: Duration = Duration::from_secs(3);
/// Keys for each page of a full read.
const PAGE: i64 = 500;
/// A cluster has some dozens of keys; with more than this the prefix is not Patroni's.
const MAX_KEYS: usize = 10_000;

/// Watches a cluster's keys for ever.
pub(super) async fn run(cluster: &Cluster, etcd: &Etcd, outlet: Outlet<'_>) -> Infallible {
    let prefix = format!("{}/{}/", cluster.namespace, cluster.scope);
    let mut source = Source {
        prefix,
        etcd,
        outlet,
        keys: Keyspace::leading_to(cluster.connect_to),
        guard: Guard::default(),
        endpoints: Endpoints::new("etcd", etcd.endpoints.len()),
    };
    loop {
        source.turn().await;
    }
}

struct Source<'a> {
    /// `/service/main/`: what every key begins with.
    prefix: String,
    etcd: &'a Etcd,
    outlet: Outlet<'a>,
    keys: Keyspace,
    guard: Guard,
    endpoints: Endpoints,
}

/// How the work with an endpoint ended.
enum End {
    /// It does not answer, or refuses.
    Endpoint(EtcdError),
    /// It did answer; only the watch is over. The next read will tell.
    Watch(EtcdError),
}

impl Source<'_> {
    /// One endpoint, for as long as it works; then the move to the next.
    async fn turn(&mut self) {
        let index = self.endpoints.index();
        let Some(endpoint) = self.etcd.endpoints.get(index) else {
            return std::future::pending().await; // no endpoints at all: the configuration forbids it
        };
        let Err(end) = self.follow(index, endpoint).await;
        self.outlet.stats.connected.store(NOWHERE, Ordering::Relaxed);
        match end {
            End::Watch(error) => {
                info!(cluster = %self.outlet.cluster.name, %endpoint, %error, "the watch ended; reading anew");
            }
            End::Endpoint(error) => self.failed(index, endpoint, &error).await,
        }
        sleep(self.endpoints.next()).await;
        self.outlet.stats.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads and watches at one endpoint until something fails.
    async fn follow(&mut self, index: usize, endpoint: &Endpoint) -> Result<Infallible, End> {
        let store = Box::pin(connection::open(self.etcd, endpoint, self.endpoints.round()))
            .await
            .map_err(End::Endpoint)?;
        let revision = self.read(&store).await.map_err(End::Endpoint)?;
        let read_at = self.outlet.now();
        self.outlet.stats.connected.store(index, Ordering::Relaxed);
        if let Some(known) = self.endpoints.answered(index) {
            info!(cluster = %self.outlet.cluster.name, %endpoint, was = known.text, "etcd endpoint works again");
        }
        self.outlet.view(self.keys.view(), read_at).await;
        let watched = self.watch(&store, revision).await;
        self.outlet.stats.watch_restarts.fetch_add(1, Ordering::Relaxed);
        watched.map_err(|error| {
            let hangs = matches!(error, EtcdError::Silent { .. } | EtcdError::CallTimeout { .. });
            if hangs { End::Endpoint(error) } else { End::Watch(error) }
        })
    }

    /// Reads every key of the prefix as of one revision.
    async fn read(&mut self, store: &Store) -> Result<i64, EtcdError> {
        let mut options = GetOptions::new().with_range(self.end()).with_limit(PAGE);
        let mut from = self.prefix.clone().into_bytes();
        let mut found = Vec::new();
        let mut at = None;
        loop {
            self.outlet.stats.requests.add(1);
            let mut page = store.call("a read", store.kv().get(from, Some(options.clone()))).await?;
            let header = page.header().ok_or(EtcdError::NoHeader)?;
            let (cluster, revision) = *at.get_or_insert((header.cluster_id(), header.revision()));
            found.extend(page.take_kvs());
            if !page.more() {
                self.admit(cluster, revision)?;
                break;
            }
            if found.len() > MAX_KEYS {
                return Err(EtcdError::TooManyKeys { prefix: self.prefix.clone(), limit: MAX_KEYS });
            }
            from = found.last().map(|kv| [kv.key(), b"\0"].concat()).unwrap_or_default();
            options = options.with_revision(revision);
        }
        let (_, revision) = at.unwrap_or_default();
        let all = found
            .iter()
            .filter_map(|kv| Some((self.suffix(kv.key())?, kv.value(), number(kv.mod_revision()))));
        let all: Vec<_> = all.collect();
        let keys = all.len();
        self.keys.replace_all(number(revision), all);
        debug!(cluster = %self.outlet.cluster.name, endpoint = %store.endpoint, revision, keys, "read");
        Ok(revision)
    }

    /// Makes sure that time does not run backwards.
    fn admit(&mut self, cluster_id: u64, revision: i64) -> Result<(), EtcdError> {
        let cluster = &self.outlet.cluster.name;
        match self.guard.judge(cluster_id, revision) {
            Verdict::Fine => Ok(()),
            Verdict::OtherStore => {
                warn!(%cluster, cluster_id, "the endpoints belong to another etcd than before; its keys are used now");
                Ok(())
            }
            Verdict::Restored { before } => {
                warn!(%cluster, revision, before, "etcd went back to an older revision and stays there: it was restored");
                Ok(())
            }
            Verdict::Behind { before } => Err(EtcdError::Behind { revision, before }),
        }
    }

    /// Follows the changes after `revision`.
    async fn watch(&mut self, store: &Store, revision: i64) -> Result<Infallible, EtcdError> {
        let options =
            WatchOptions::new().with_range(self.end()).with_start_revision(revision.saturating_add(1));
        let prefix = self.prefix.clone();
        self.outlet.stats.requests.add(1);
        let stream = store.call("a watch", store.watcher().watch(prefix, Some(options))).await?;
        let (mut requests, mut responses) = stream.split();
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let began = Instant::now();
        let mut heard = began;
        loop {
            // A watch that has lived for a while has proved its endpoint; one that ends at once has not.
            if heard - began > HEARTBEAT {
                self.endpoints.proved();
            }
            tokio::select! {
                response = responses.message() => {
                    let response = response.map_err(|error| store.error(&error))?.ok_or(EtcdError::Ended)?;
                    self.respond(&response).await?;
                    heard = Instant::now();
                }
                _ = heartbeat.tick() => {
                    self.outlet.stats.requests.add(1);
                    ask_progress(&mut requests).await?;
                }
                () = sleep_until(heard + SILENCE) => {
                    // Whoever was busy for so long has not listened: what waits is no silence.
                    match self.waiting(&mut responses).await {
                        Some(Ok(response)) => { self.respond(&response).await?; heard = Instant::now(); }
                        Some(Err(error)) => return Err(error),
                        None => return Err(EtcdError::Silent { after: SILENCE }),
                    }
                }
            }
        }
    }

    /// A response that has come already.
    async fn waiting(&self, responses: &mut WatchResponseStream) -> Option<Result<WatchResponse, EtcdError>> {
        let response = timeout(Duration::from_millis(10), responses.message()).await.ok()?;
        Some(response.ok().flatten().ok_or(EtcdError::Ended))
    }

    /// Takes over one response: a burst of changes, or a sign of life.
    async fn respond(&mut self, response: &WatchResponse) -> Result<(), EtcdError> {
        if response.canceled() {
            return Err(match response.compact_revision() {
                0 => EtcdError::Canceled { reason: response.cancel_reason().to_owned() },
                revision => EtcdError::Compacted { revision },
            });
        }
        let read_at = self.outlet.now();
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        self.guard.saw(revision);
        if response.events().is_empty() {
            self.outlet.alive(number(revision)).await;
            return Ok(());
        }
        for kv in response.events().iter().filter_map(etcd_client::Event::kv) {
            let Some(key) = kv.key().strip_prefix(self.prefix.as_bytes()) else { continue };
            let Ok(key) = std::str::from_utf8(key) else { continue };
            // A deleted key has no version. (The library's own event type panics on a kind that it does not know.)
            match kv.version() {
                0 => self.keys.delete(key, number(kv.mod_revision())),
                _ => self.keys.put(key, kv.value(), number(kv.mod_revision())),
            }
        }
        self.outlet.view(self.keys.view(), read_at).await;
        Ok(())
    }

    /// Says why an endpoint does not work; and that the store is lost, once none is left that does.
    async fn failed(&mut self, index: usize, endpoint: &Endpoint, error: &EtcdError) {
        let cluster = &self.outlet.cluster.name;
        let failure = Failure {
            rank: error.rank(),
            text: format!("{endpoint}: {}", error.explain(self.etcd, endpoint, &self.prefix)),
        };
        let text = failure.text.clone();
        if self.endpoints.failed(index, failure) {
            warn!(%cluster, error = text, "etcd endpoint does not work");
        }
        if self.endpoints.none_is_left() {
            self.outlet.lost(self.endpoints.summary()).await;
        }
    }

    /// The first key after the prefix: its last byte, a slash, made one greater.
    fn end(&self) -> Vec<u8> {
        let stem = self.prefix.strip_suffix('/').unwrap_or(&self.prefix);
        [stem.as_bytes(), b"0"].concat()
    }

    /// A key without the prefix; `None` for bytes that Patroni cannot have written.
    fn suffix<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(key.strip_prefix(self.prefix.as_bytes())?).ok()
    }
}

async fn ask_progress(requests: &mut WatchRequestSender) -> Result<(), EtcdError> {
    match timeout(SILENCE, requests.request_progress()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(EtcdError::Ended),
        Err(_) => Err(EtcdError::Silent { after: SILENCE }),
    }
}

/// etcd writes its revisions as signed numbers; none is negative.
fn number(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or_default())
}
