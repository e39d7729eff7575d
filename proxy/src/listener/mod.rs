//! Listeners: addresses that clients connect to, and the sessions behind them.
//!
//! Its tasks, all counted by its [`TaskTracker`]: the keeper of the hold queue ([`holds`]) on tokio; on the cores of the engine, which
//! accept for it: one for each session that is being started ([`session`]), at most [`MAX_REFUSALS`] that explain a refusal at the
//! door. Established sessions have no task, but count. Bounds: `max_connections` sessions, `max_held` of them held.
//!
//! * [`admission`]: who may come in. [`client`]: a client's first messages. [`holds`]: waiting for a route.
//! * [`link`]: a server, up to its first answer. [`established`]: from there to the end. [`refuse`]: telling a client why not. [`cancel`].
//! * [`record`]: the line of a finished session. [`reports`]: what the control task is told.
//!
//! The PROXY protocol and TLS termination belong between accept and [`client::Client`]: they turn a
//! connection into a stream with a client address, before the first message is read.

mod admission;
mod cancel;
mod client;
mod established;
mod holds;
mod link;
mod record;
mod refuse;
mod reports;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use pointsman_config::{Balance, ClusterName, ListenerName, Refuse};
use pointsman_core::balance::{Draw, Policy};
use pointsman_core::close::CloseReason;
use pointsman_core::hold::HoldLimits;
use pointsman_core::route::{Candidate, NoRoute};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::admission::Sources;
use self::client::Client;
use self::holds::Holds;
pub use self::reports::Reports;
use crate::engine::{Acceptor, Cores, Listening, Stream, Task};
use crate::routes::Routes;
use crate::sessions::{Place, SessionId, Sessions};
use crate::socket::{self, TcpOptions};
use crate::stats::{ListenerStats, ServerStats};

/// How many refusals at the door are explained at once; more are closed in silence.
const MAX_REFUSALS: usize = 256;

/// After an error of accept(2): it is about descriptors or memory, and those take a moment.
const SHORTEST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_millis(100);

/// Lines of the log about accept(2) are so far apart, in seconds.
const COMPLAINTS: u64 = 10;

/// How long sessions that were told to end may take to do so.
const CUT_PATIENCE: Duration = Duration::from_secs(5);

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", explain(.error))]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// What the kernel said.
    pub error: io::Error,
}

fn explain(error: &io::Error) -> String {
    let kind = error.kind();
    if kind == io::ErrorKind::AddrInUse {
        "address already in use; `ss -ltnp` shows by whom".to_owned()
    } else if kind == io::ErrorKind::PermissionDenied {
        "permission denied; ports below 1024 need CAP_NET_BIND_SERVICE".to_owned()
    } else {
        error.to_string()
    }
}

/// Listening sockets that are bound and have no listener yet, or change to another one. A socket that changes hands is
/// never closed, so no client is refused meanwhile.
#[derive(Debug, Default)]
pub struct Sockets(BTreeMap<SocketAddr, std::net::TcpListener>);

impl Sockets {
    /// Binds an address, unless its socket is here.
    pub fn bind(&mut self, address: SocketAddr) -> Result<(), ListenError> {
        if let Entry::Vacant(place) = self.0.entry(address) {
            place.insert(listen(address)?);
        }
        Ok(())
    }

    /// Closes every socket that nobody wants.
    pub fn retain(&mut self, wanted: impl Fn(&SocketAddr) -> bool) {
        self.0.retain(|address, _| wanted(address));
    }

    fn take(&mut self, address: SocketAddr) -> Result<std::net::TcpListener, ListenError> {
        self.0.remove(&address).map_or_else(|| listen(address), Ok)
    }
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener, ListenError> {
    socket::listen(address).map_err(|error| ListenError { address, error })
}

/// The sockets of a listener, twice: one to accept from, one to hand on, closed with [`Listener::stop_accepting`].
#[derive(Debug)]
struct Bound {
    addresses: Vec<SocketAddr>,
    to_start: Vec<std::net::TcpListener>,
    to_share: Mutex<Vec<std::net::TcpListener>>,
}

impl Bound {
    fn new(wanted: &[SocketAddr], sockets: &mut Sockets) -> Result<Self, ListenError> {
        let (mut addresses, mut to_start, mut to_share) = (Vec::new(), Vec::new(), Vec::new());
        for &address in wanted {
            let failed = |error| ListenError { address, error };
            let socket = sockets.take(address)?;
            addresses.push(socket.local_addr().map_err(failed)?);
            to_share.push(socket.try_clone().map_err(failed)?);
            to_start.push(socket);
        }
        Ok(Self { addresses, to_start, to_share: Mutex::new(to_share) })
    }

    /// The options of every connection that will be accepted.
    fn set_options(&self, options: TcpOptions) {
        for socket in self.share().iter() {
            if let Err(error) = options.apply(socket) {
                tracing::warn!("cannot set the options of a listening socket: {error}");
            }
        }
    }

    fn share(&self) -> MutexGuard<'_, Vec<std::net::TcpListener>> {
        self.to_share.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a listener goes by. Everything in it but names and addresses can change while it runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its part of the configuration.
    pub listener: pointsman_config::Listener,
    /// How many load balancers share the cluster.
    pub balancers: NonZeroU32,
    /// One line for each finished session.
    pub log_sessions: bool,
}

impl Settings {
    fn hold_limits(&self) -> HoldLimits {
        HoldLimits::new(self.listener.max_held, self.listener.release_rate, self.balancers)
    }
}

/// What a listener works with.
#[derive(Clone, Debug)]
pub struct Context {
    /// The published routes of its cluster.
    pub routes: Arc<Routes>,
    /// The register of live sessions.
    pub sessions: Arc<Sessions>,
    /// Its counters.
    pub stats: Arc<ListenerStats>,
    /// The way to the control task of its cluster.
    pub reports: Reports,
    /// Where its sessions live.
    pub cores: Cores,
}

/// The counters of one table's candidates, in its order: a choice among a thousand must not look each of them up by its name.
#[derive(Debug, Default)]
struct Counters {
    generation: u64,
    servers: Vec<Arc<ServerStats>>,
}

/// What the tasks of a listener share.
#[derive(Debug)]
pub(crate) struct Shared {
    name: ListenerName,
    cluster: ClusterName,
    settings: ArcSwap<Settings>,
    routes: Arc<Routes>,
    sessions: Arc<Sessions>,
    place: Arc<Place>,
    stats: Arc<ListenerStats>,
    /// Of the table that was last picked from.
    counters: ArcSwap<Counters>,
    reports: Reports,
    holds: Holds,
    sources: Arc<Sources>,
    refusals: Arc<Semaphore>,
    /// The number of the newest session.
    newest: AtomicU64,
    /// The pause after an error of accept(2), in milliseconds. 0: it works.
    backoff: AtomicU64,
    began: std::time::Instant,
    /// When the log was told of trouble with accept(2), in seconds since `began` and then [`COMPLAINTS`]. 0: never.
    complained: AtomicU64,
    /// Choices of a member that were made, and a secret to draw lots with.
    choices: AtomicU64,
    lots: RandomState,
    /// Held sessions are refused.
    draining: CancellationToken,
    tracker: TaskTracker,
}

impl Shared {
    /// Whether trouble with accept(2) is worth a line of the log: not if there was one a moment ago. At the limit of descriptors it
    /// fails and works by turns, on every core.
    fn may_complain(&self) -> bool {
        let now = self.began.elapsed().as_secs() + COMPLAINTS;
        let last = self.complained.load(Ordering::Relaxed);
        let due = now.saturating_sub(last) >= COMPLAINTS;
        due && self.complained.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Why the listener has no candidate. `None`: it has.
    fn no_route(&self) -> Option<NoRoute> {
        let published = self.routes.load();
        match published.route(&self.name) {
            Some(route) => route.candidates.as_ref().err().cloned(),
            None => Some(NoRoute::Discovering),
        }
    }

    /// The counters of `candidates`, which are those of the table of this generation.
    fn counters(&self, generation: u64, candidates: &[Candidate]) -> Arc<Counters> {
        let known = self.counters.load();
        if known.generation == generation && known.servers.len() == candidates.len() {
            return Arc::clone(&known);
        }
        let servers = candidates.iter().map(|candidate| self.stats.server(&candidate.member)).collect();
        let counters = Arc::new(Counters { generation, servers });
        // A core that is still with the table before may put its own here; then the next choice puts this one back.
        self.counters.store(Arc::clone(&counters));
        counters
    }

    fn draw(&self, client: IpAddr) -> Draw {
        let ticket = self.choices.fetch_add(1, Ordering::Relaxed);
        Draw { ticket, random: self.lots.hash_one(ticket), client: client.to_canonical() }
    }
}

/// In the words of the core.
fn policy(balance: Balance) -> Policy {
    match balance {
        Balance::RoundRobin => Policy::RoundRobin,
        Balance::LeastConnections => Policy::LeastConnections,
        Balance::Source => Policy::Source,
        Balance::RandomTwo => Policy::RandomTwo,
        Balance::First => Policy::First,
    }
}

/// One listener. Dropping it stops accepting and refuses who is held; established sessions go on.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    cores: Cores,
    bound: Bound,
    /// What the cores accept from.
    listening: Mutex<Vec<Arc<Listening>>>,
    /// Cancelled when it has stopped accepting.
    accepting: CancellationToken,
    /// Each listening socket, until the last core has let go of it.
    acceptors: TaskTracker,
    /// Ends the keeper of the hold queue, when nobody can be held any more.
    keeping: CancellationToken,
}

impl Listener {
    /// Takes its addresses from `sockets`, and binds those that are not there; without accepting yet.
    pub fn bind(settings: Settings, context: Context, sockets: &mut Sockets) -> Result<Self, ListenError> {
        let bound = Bound::new(&settings.listener.bind, sockets)?;
        bound.set_options(TcpOptions::of(&settings.listener));
        context.routes.served_by(&context.cores);
        let name = settings.listener.name.clone();
        let place = context.sessions.place(settings.listener.cluster.clone(), name.clone());
        let shared = Shared {
            place,
            holds: Holds::new(name.clone(), Arc::clone(&context.routes), settings.hold_limits()),
            name,
            cluster: settings.listener.cluster.clone(),
            settings: ArcSwap::from_pointee(settings),
            routes: context.routes,
            sessions: context.sessions,
            stats: context.stats,
            counters: ArcSwap::default(),
            reports: context.reports,
            sources: Arc::default(),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            newest: AtomicU64::new(0),
            backoff: AtomicU64::new(0),
            began: std::time::Instant::now(),
            complained: AtomicU64::new(0),
            choices: AtomicU64::new(0),
            lots: RandomState::new(),
            draining: CancellationToken::new(),
            tracker: TaskTracker::new(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            cores: context.cores,
            bound,
            listening: Mutex::default(),
            accepting: CancellationToken::new(),
            acceptors: TaskTracker::new(),
            keeping: CancellationToken::new(),
        })
    }

    /// Begins to accept. Within a tokio runtime; a second call does nothing.
    pub fn start(&mut self) {
        let to_start = std::mem::take(&mut self.bound.to_start);
        for (socket, &address) in to_start.into_iter().zip(&self.bound.addresses) {
            let acceptor: Arc<dyn Acceptor> = Arc::clone(&self.shared) as _;
            let listening = Arc::new(Listening { socket, address, acceptor, _held: self.acceptors.token() });
            self.cores.listen(&listening);
            self.listening().push(listening);
        }
        if !self.shared.tracker.is_closed() {
            let (shared, keeping) = (Arc::clone(&self.shared), self.keeping.clone());
            self.shared.tracker.spawn(async move {
                keeping.run_until_cancelled_owned(shared.holds.keep()).await;
            });
            self.shared.tracker.close(); // `wait` may end once no task is left; spawning goes on
        }
    }

    /// Changes to other addresses, and takes `settings` over. Sessions go on, held ones too.
    pub async fn relocate(&mut self, settings: Settings, sockets: &mut Sockets) -> Result<(), ListenError> {
        let bound = Bound::new(&settings.listener.bind, sockets)?;
        self.close().await;
        self.bound = bound;
        self.accepting = CancellationToken::new();
        self.acceptors = TaskTracker::new();
        self.reconfigure(settings);
        self.start();
        Ok(())
    }

    /// Adds its listening sockets to `sockets`, for whoever takes its addresses over.
    pub fn share_sockets(&self, sockets: &mut Sockets) -> Result<(), ListenError> {
        for (socket, &address) in self.bound.share().iter().zip(&self.bound.addresses) {
            let socket = socket.try_clone().map_err(|error| ListenError { address, error })?;
            sockets.0.insert(address, socket);
        }
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &ListenerName {
        &self.shared.name
    }

    /// Its counters.
    pub fn stats(&self) -> &Arc<ListenerStats> {
        &self.shared.stats
    }

    /// The addresses that it is bound to: with the port that the kernel chose, where 0 was asked for.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.bound.addresses
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.shared.settings.load_full()
    }

    /// New settings, in force for everybody who connects from now on; limits of the queue at once. Name,
    /// cluster and addresses stay what they are.
    pub fn reconfigure(&self, settings: Settings) {
        self.shared.holds.set_limits(settings.hold_limits());
        self.bound.set_options(TcpOptions::of(&settings.listener));
        self.shared.settings.store(Arc::new(settings));
    }

    /// Whether it accepts: started, and not stopped.
    pub fn is_accepting(&self) -> bool {
        self.bound.to_start.is_empty() && !self.accepting.is_cancelled()
    }

    /// Tasks that run for it now: accept loops, the keeper of the hold queue, sessions, refusals.
    pub fn tasks(&self) -> usize {
        self.acceptors.len() + self.shared.tracker.len()
    }

    /// Has the listening sockets closed. Sessions go on.
    pub fn stop_accepting(&self) {
        self.bound.share().clear();
        for listening in self.listening().drain(..) {
            self.cores.unlisten(&listening);
        }
        self.accepting.cancel();
    }

    /// Like [`Listener::stop_accepting`], and waits until the addresses are free.
    pub async fn close(&self) {
        self.stop_accepting();
        self.acceptors.close();
        self.acceptors.wait().await;
    }

    /// Stops accepting, refuses who is held, waits for the sessions until the deadline, cuts the rest, and
    /// returns how many were cut. Cancel-safe: calling it again goes on.
    pub async fn drain(&self, deadline: Instant) -> usize {
        self.begin_drain();
        if timeout_at(deadline, self.shared.tracker.wait()).await.is_ok() {
            return 0;
        }
        let cut = self.cut(&CloseReason::Drained);
        if timeout_at(Instant::now() + CUT_PATIENCE, self.shared.tracker.wait()).await.is_err() {
            tracing::warn!(listener = %self.shared.name, "sessions have not ended in time after they were cut");
        }
        cut
    }

    fn listening(&self) -> MutexGuard<'_, Vec<Arc<Listening>>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_drain(&self) {
        self.stop_accepting();
        self.shared.draining.cancel();
        self.keeping.cancel(); // nobody is held from here on
        self.shared.tracker.close();
    }

    /// Asks every session to end, and returns how many were asked.
    pub fn cut(&self, reason: &CloseReason) -> usize {
        // A listener of the same name may have come after this one.
        let newest = SessionId(self.shared.newest.load(Ordering::Relaxed));
        let ours = self.shared.sessions.list().into_iter().filter(|session| {
            *session.listener() == self.shared.name
                && *session.cluster() == self.shared.cluster
                && session.id <= newest
        });
        ours.map(|session| session.kill(reason.clone())).count()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.begin_drain();
    }
}

/// Every listener of the process.
#[derive(Debug, Default)]
pub struct Listeners(Vec<Listener>);

impl Listeners {
    /// Adds one.
    pub fn add(&mut self, listener: Listener) {
        self.0.push(listener);
    }

    /// Takes one out.
    pub fn remove(&mut self, name: &ListenerName) -> Option<Listener> {
        let index = self.0.iter().position(|listener| listener.name() == name)?;
        Some(self.0.remove(index))
    }

    /// The one of this name.
    pub fn get_mut(&mut self, name: &ListenerName) -> Option<&mut Listener> {
        self.0.iter_mut().find(|listener| listener.name() == name)
    }

    /// Brings them into the order of `names`.
    pub fn sort_by(&mut self, names: &[&ListenerName]) {
        self.0.sort_by_key(|listener| names.iter().position(|name| *name == listener.name()));
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Listener> {
        self.0.iter()
    }

    /// Drains all at once ([`Listener::drain`]), and returns how many sessions were cut.
    pub async fn drain(&self, deadline: Instant) -> usize {
        let mut cut = 0;
        for listener in &self.0 {
            listener.begin_drain();
        }
        for listener in &self.0 {
            cut += listener.drain(deadline).await;
        }
        cut
    }
}

impl<'a> IntoIterator for &'a Listeners {
    type Item = &'a Listener;
    type IntoIter = std::slice::Iter<'a, Listener>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Acceptor for Shared {
    fn accepted(self: Arc<Self>, stream: Stream, client: SocketAddr, local: SocketAddr) -> Option<Task> {
        self.stats.accepted.add(1);
        if self.sessions.is_full() {
            no_room(&self, client);
            return None;
        }
        let settings = self.settings.load();
        match admission::admit(&settings.listener, &self.stats, &self.sources, client.ip()) {
            Ok(admitted) => {
                let session = self.place.enter(client, local);
                self.newest.fetch_max(session.id.0, Ordering::Relaxed);
                drop(settings);
                Some(Box::pin(session::serve(self, stream, session, admitted)))
            }
            Err(reason) => turn_away(&self, stream, client, &reason),
        }
    }

    fn failed(&self, error: &io::Error) -> Duration {
        self.stats.accept_errors.add(1);
        let last = self.backoff.load(Ordering::Relaxed);
        if self.may_complain() {
            tracing::warn!(listener = %self.name, "cannot accept a connection: {error}");
        }
        let pause = (Duration::from_millis(last) * 2).clamp(SHORTEST_BACKOFF, LONGEST_BACKOFF);
        self.backoff.store(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        pause
    }

    fn works(&self) {
        if self.backoff.load(Ordering::Relaxed) > 0 {
            self.backoff.store(0, Ordering::Relaxed);
        }
    }

    fn is_full(&self) -> bool {
        self.sessions.is_full()
    }
}

/// The descriptors that are left are not for clients. In silence: words would take some, too.
fn no_room(shared: &Shared, client: SocketAddr) {
    if shared.sessions.begins_to_refuse() {
        tracing::warn!(
            listener = %shared.name,
            sessions = shared.sessions.len(),
            "connections are closed at once: the limit of descriptors allows no more sessions"
        );
    }
    shared.stats.closed(&CloseReason::ListenerFull);
    record::turned_away(shared.name.as_str(), client, &CloseReason::ListenerFull);
}

/// Refuses a connection at the door: in words while few are being refused, else in silence.
fn turn_away(shared: &Arc<Shared>, stream: Stream, client: SocketAddr, reason: &CloseReason) -> Option<Task> {
    shared.stats.closed(reason);
    record::turned_away(shared.name.as_str(), client, reason);
    if shared.settings.load().listener.refuse == Refuse::Close {
        return None;
    }
    let permit = Arc::clone(&shared.refusals).try_acquire_owned().ok()?;
    let response = refuse::response(shared, reason, Duration::ZERO)?;
    let (draining, task) = (shared.draining.clone(), shared.tracker.token());
    Some(Box::pin(async move {
        let mut client = Client::new(stream);
        draining.run_until_cancelled(refuse::explain(&mut client, None, &response)).await;
        drop((permit, task));
    }))
}
