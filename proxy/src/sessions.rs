//! The register of live sessions: what `pointsman sessions` shows and `pointsman kill` ends.
//!
//! It is made for many sessions that do nothing: some 180 bytes each, all told. Names are shared by the sessions of a
//! listener ([`Place`]), logins and grants by those that have the same one. It is made for cores that do not meet, too:
//! whoever enters on a core of the relay engine is kept in that core's own part of the register ([`crate::shard`]), and
//! entering allocates nothing but the session.

use std::collections::HashMap;
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;
use pointsman_config::{ClusterName, ListenerName};
use pointsman_core::close::CloseReason;
use pointsman_core::route::GrantRole;
use pointsman_core::view::MemberName;
use serde::Serialize;

use crate::shard;

#[cfg(test)]
mod tests;

/// A session's number, unique in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Phase {
    /// Reading the client's first message.
    Startup,
    /// Waiting for a route.
    Held,
    /// Connecting to a server.
    Dialling,
    /// Relaying.
    Established,
    /// Passing on a CancelRequest.
    Cancelling,
    /// Telling the client why it ends.
    Closing,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::Startup, Self::Held, Self::Dialling, Self::Established, Self::Cancelling, Self::Closing];
}

/// What a session was granted. Sessions that were granted the same share one ([`crate::stats::ServerStats::granted`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Granted {
    /// The member.
    pub member: MemberName,
    /// As what.
    pub role: GrantRole,
    /// The server's address.
    pub server: SocketAddr,
}

/// Who logs in, as the clear-text start-up message says (unknown for TLS pass-through).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Login {
    /// `user`.
    pub user: Option<Box<str>>,
    /// `database`.
    pub database: Option<Box<str>>,
    /// `application_name`.
    pub application: Option<Box<str>>,
}

/// A [`Login`] whose texts belong to somebody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LoginRef<'a> {
    /// `user`.
    pub user: Option<&'a str>,
    /// `database`.
    pub database: Option<&'a str>,
    /// `application_name`.
    pub application: Option<&'a str>,
}

impl Login {
    fn by_ref(&self) -> LoginRef<'_> {
        LoginRef {
            user: self.user.as_deref(),
            database: self.database.as_deref(),
            application: self.application.as_deref(),
        }
    }
}

impl From<LoginRef<'_>> for Login {
    fn from(login: LoginRef<'_>) -> Self {
        let owned = |text: Option<&str>| text.map(Box::from);
        Self {
            user: owned(login.user),
            database: owned(login.database),
            application: owned(login.application),
        }
    }
}

/// Both ends of a client's connection. Most are IPv4, and twelve bytes hold those.
#[derive(Clone, Debug)]
enum Ends {
    V4 { client: SocketAddrV4, local: SocketAddrV4 },
    Other(Box<(SocketAddr, SocketAddr)>),
}

impl Ends {
    fn new(client: SocketAddr, local: SocketAddr) -> Self {
        match (client, local) {
            (SocketAddr::V4(client), SocketAddr::V4(local)) => Self::V4 { client, local },
            (client, local) => Self::Other(Box::new((client, local))),
        }
    }
}

/// What is learned of a session after its start.
#[derive(Debug, Default)]
struct Known {
    granted: Option<Arc<Granted>>,
    login: Option<Arc<Login>>,
}

/// One live session. Whoever serves it writes, everybody else reads.
#[derive(Debug)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    place: Arc<Place>,
    ends: Ends,
    /// Microseconds since the register was made.
    accepted: u64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    known: Mutex<Known>,
    end_reason: OnceLock<Box<CloseReason>>,
    end: AtomicWaker,
    /// Its place in the register: which part, and where in it.
    home: u16,
    slot: u32,
    phase: AtomicU8,
}

impl Session {
    /// Its cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.place.cluster
    }

    /// Its listener.
    pub fn listener(&self) -> &ListenerName {
        &self.place.listener
    }

    /// The client.
    pub fn client(&self) -> SocketAddr {
        match &self.ends {
            Ends::V4 { client, .. } => SocketAddr::V4(*client),
            Ends::Other(ends) => ends.0,
        }
    }

    /// Our side of the client's connection: which of our addresses it came to.
    pub fn local(&self) -> SocketAddr {
        match &self.ends {
            Ends::V4 { local, .. } => SocketAddr::V4(*local),
            Ends::Other(ends) => ends.1,
        }
    }

    /// For how long it has been here, to the microsecond.
    pub fn age(&self) -> Duration {
        self.place.register.epoch.elapsed().saturating_sub(Duration::from_micros(self.accepted))
    }

    /// Bytes from the client that the server has taken.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }

    /// Bytes from the server that the client has taken.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Ordering::Relaxed)
    }

    /// Counts bytes from the client that the server has taken. One thread at a time serves a session, and only that one calls this.
    pub fn add_in(&self, n: u64) {
        self.bytes_in.store(self.bytes_in() + n, Ordering::Relaxed);
    }

    /// Counts bytes from the server that the client has taken. As with [`Session::add_in`].
    pub fn add_out(&self, n: u64) {
        self.bytes_out.store(self.bytes_out() + n, Ordering::Relaxed);
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        let phase = usize::from(self.phase.load(Ordering::Relaxed));
        Phase::ALL.get(phase).copied().unwrap_or(Phase::Closing)
    }

    /// Only who serves the session calls this.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// The member that serves it, once one was picked.
    pub fn granted(&self) -> Option<Arc<Granted>> {
        lock(&self.known).granted.clone()
    }

    /// Only who serves the session calls this.
    pub fn set_granted(&self, granted: Option<Arc<Granted>>) {
        let before = std::mem::replace(&mut lock(&self.known).granted, granted);
        drop(before); // not under the lock
    }

    /// Who logged in, if that could be read.
    pub fn login(&self) -> Option<Arc<Login>> {
        lock(&self.known).login.clone()
    }

    /// Only who serves the session calls this, once: the first login stays.
    pub fn set_login(&self, login: LoginRef<'_>) {
        let Some(home) = self.place.register.home(self.home) else { return };
        if self.login().is_none() {
            let login = lock(home).logins.intern(login);
            lock(&self.known).login = Some(login);
        }
    }

    /// Asks the session to end. The first reason stays.
    pub fn kill(&self, reason: CloseReason) {
        self.mark(reason);
        self.end.wake();
    }

    /// The same for a session that somebody is going to look at anyway.
    fn mark(&self, reason: CloseReason) {
        let _ = self.end_reason.set(Box::new(reason));
    }

    /// Waits until somebody asks the session to end. Cancel-safe. One waiter at a time: a later one takes the place of
    /// an earlier one, which is not woken any more.
    pub async fn killed(&self) -> CloseReason {
        poll_fn(|context| {
            if self.kill_reason().is_none() {
                self.set_kill_waker(context.waker());
            }
            // Again: the reason may have come before the waker.
            self.kill_reason().cloned().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Wakes `waker` when somebody asks the session to end, instead of whom it would have woken before. Who calls this looks
    /// at [`Session::kill_reason`] afterwards: a kill that came earlier wakes nobody, one that comes later wakes `waker`,
    /// and one at the same time does either or both.
    pub fn set_kill_waker(&self, waker: &Waker) {
        self.end.register(waker);
    }

    /// Why somebody has asked the session to end, if somebody has. One atomic load: ask before each write.
    pub fn kill_reason(&self) -> Option<&CloseReason> {
        self.end_reason.get().map(Box::as_ref)
    }

    /// Whether somebody has asked the session to end. One atomic load.
    pub fn is_killed(&self) -> bool {
        self.kill_reason().is_some() // set before the wake-up, see `kill`
    }
}

/// Where the sessions of one listener are entered. Shared by all of them; a core may have one of its own, so that its
/// reference count is not written by the others.
pub struct Place {
    register: Arc<Sessions>,
    cluster: ClusterName,
    listener: ListenerName,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.listener, self.cluster)
    }
}

impl Place {
    /// Registers a new connection. It leaves the register when the guard is dropped.
    pub fn enter(self: &Arc<Self>, client: SocketAddr, local: SocketAddr) -> SessionGuard {
        let register = &self.register;
        let id = SessionId(register.totals.entered.fetch_add(1, Ordering::Relaxed) + 1);
        register.totals.live.fetch_add(1, Ordering::Relaxed);
        let home = Sessions::home_of(id);
        let accepted = u64::try_from(register.epoch.elapsed().as_micros()).unwrap_or(u64::MAX);
        let made = |slot| {
            Arc::new(Session {
                id,
                place: Arc::clone(self),
                ends: Ends::new(client, local),
                accepted,
                bytes_in: AtomicU64::new(0),
                bytes_out: AtomicU64::new(0),
                known: Mutex::default(),
                end_reason: OnceLock::new(),
                end: AtomicWaker::new(),
                home,
                slot,
                phase: AtomicU8::new(Phase::Startup as u8),
            })
        };
        SessionGuard(match register.home(home) {
            Some(home) => lock(home).put(made),
            None => made(0), // there is one for each core, see `home_of`
        })
    }
}

/// Keeps a session in the register.
#[derive(Debug)]
pub struct SessionGuard(Arc<Session>);

impl std::ops::Deref for SessionGuard {
    type Target = Arc<Session>;

    fn deref(&self) -> &Arc<Session> {
        &self.0
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        let register = &self.place.register;
        if let Some(home) = register.home(self.home) {
            let login = lock(&self.known).login.take();
            let mut home = lock(home);
            home.take(self.slot);
            if let Some(login) = login {
                home.logins.leave(&login); // and let go of before anybody else counts
            }
        }
        register.left();
    }
}

/// Parts for the threads that are no cores, which share them.
const SHARED_HOMES: u16 = 16;

/// How many entries are read before others have their turn.
const STRIDE: usize = 1024;

/// Counted by everybody, so kept away from what everybody reads.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Totals {
    entered: AtomicU64,
    live: AtomicUsize,
}

/// All live sessions of the process.
#[derive(Debug)]
pub struct Sessions {
    epoch: Instant,
    totals: Totals,
    /// How many the descriptors of the process allow. 0: as many as come.
    room: AtomicUsize,
    /// Connections are being turned away because there is no room.
    refusing: AtomicBool,
    homes: Box<[Home]>,
}

impl Default for Sessions {
    fn default() -> Self {
        let homes = usize::from(SHARED_HOMES) + shard::count() - 1;
        Self {
            epoch: Instant::now(),
            totals: Totals::default(),
            room: AtomicUsize::new(0),
            refusing: AtomicBool::new(false),
            homes: std::iter::repeat_with(Home::default).take(homes).collect(),
        }
    }
}

impl Sessions {
    /// Where the sessions of a listener are entered.
    pub fn place(self: &Arc<Self>, cluster: ClusterName, listener: ListenerName) -> Arc<Place> {
        Arc::new(Place { register: Arc::clone(self), cluster, listener })
    }

    /// Says how many sessions the descriptors of the process allow. `None`: as many as come.
    pub fn set_room(&self, sessions: Option<usize>) {
        self.room.store(sessions.map_or(0, |sessions| sessions.max(1)), Ordering::Relaxed);
    }

    /// Whether one more session would take a descriptor that others need: the store, Patroni, operators.
    pub fn is_full(&self) -> bool {
        let room = self.room.load(Ordering::Relaxed);
        room > 0 && self.len() >= room
    }

    /// Whether this refusal for want of room is the first one since there was plenty: one line in the log is enough.
    pub fn begins_to_refuse(&self) -> bool {
        !self.refusing.swap(true, Ordering::Relaxed)
    }

    fn left(&self) {
        let live = self.totals.live.fetch_sub(1, Ordering::Relaxed) - 1;
        if self.refusing.load(Ordering::Relaxed) && live < self.room.load(Ordering::Relaxed) / 10 * 9 {
            self.refusing.store(false, Ordering::Relaxed);
        }
    }

    /// Every live session, by number. Who enters and leaves meanwhile may be missing; nobody is kept waiting.
    pub fn list(&self) -> Vec<Arc<Session>> {
        let mut all = Vec::with_capacity(self.len());
        self.see(|session| all.push(Arc::clone(session)));
        all.sort_unstable_by_key(|session| session.id);
        all
    }

    /// Asks every session that came to this address of ours to end, and says how many there are. Established ones are not woken one
    /// by one: the cores find them, in slices, when they are told to sweep ([`Cores::sweep`](crate::engine::Cores::sweep)).
    pub fn end_at(&self, address: IpAddr, reason: &CloseReason) -> usize {
        let mut count = 0;
        self.see(|session| {
            if session.local().ip() == address && session.kill_reason().is_none() {
                count += 1;
                if session.phase() == Phase::Established {
                    session.mark(reason.clone());
                } else {
                    session.kill(reason.clone());
                }
            }
        });
        count
    }

    /// One session. Looks through all of them: for operators.
    pub fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        let mut found = None;
        self.see(|session| {
            if session.id == id {
                found = Some(Arc::clone(session));
            }
        });
        found
    }

    /// Shows every session, and lets go of the register again and again on the way.
    fn see(&self, mut show: impl FnMut(&Arc<Session>)) {
        for home in &self.homes {
            let mut from = 0;
            loop {
                let part = lock(&home.0);
                let Some(rest) = part.slots.get(from..).filter(|rest| !rest.is_empty()) else { break };
                rest.iter().take(STRIDE).flatten().for_each(&mut show);
                from += STRIDE;
            }
        }
    }

    /// How many are live.
    pub fn len(&self) -> usize {
        self.totals.live.load(Ordering::Relaxed)
    }

    /// Whether none is live.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part for a session that enters on this thread.
    #[expect(clippy::cast_possible_truncation, reason = "the remainder is small; a later core shares a part")]
    fn home_of(id: SessionId) -> u16 {
        match shard::current() {
            0 => (id.0 % u64::from(SHARED_HOMES)) as u16,
            core => SHARED_HOMES + (core - 1).min(usize::from(u16::MAX - SHARED_HOMES)) as u16,
        }
    }

    fn home(&self, index: u16) -> Option<&Mutex<Part>> {
        self.homes.get(usize::from(index)).map(|home| &home.0)
    }
}

/// A part of the register, in cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Home(Mutex<Part>);

#[derive(Debug, Default)]
struct Part {
    slots: Vec<Option<Arc<Session>>>,
    free: Vec<u32>,
    logins: Logins,
}

impl Part {
    fn put(&mut self, made: impl FnOnce(u32) -> Arc<Session>) -> Arc<Session> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX) // there are not that many descriptors
        });
        let session = made(slot);
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(Arc::clone(&session));
        }
        session
    }

    fn take(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = None; // the guard still holds the session: nothing is freed under the lock
            self.free.push(slot);
        }
        if self.free.len() == self.slots.len() && self.slots.len() > STRIDE {
            (self.slots, self.free) = (Vec::new(), Vec::new()); // a rush is over: its room is given back
        }
    }
}

/// The logins of a part's sessions: many sessions, few logins.
#[derive(Debug, Default)]
struct Logins {
    /// By the hash of its texts. Two logins with one hash: the later one is not shared.
    known: HashMap<u64, Arc<Login>, foldhash::fast::RandomState>,
    hasher: foldhash::fast::RandomState,
}

impl Logins {
    /// More of them are not shared: each session then keeps its own.
    const MOST: usize = 256;

    fn intern(&mut self, login: LoginRef<'_>) -> Arc<Login> {
        let hash = self.hasher.hash_one(login);
        match self.known.get(&hash) {
            Some(known) if known.by_ref() == login => return Arc::clone(known),
            Some(_) => return Arc::new(login.into()),
            None => {}
        }
        let new = Arc::new(Login::from(login));
        if self.known.len() >= Self::MOST {
            // Left behind by a session that was being looked at while it left.
            self.known.retain(|_, login| Arc::strong_count(login) > 1);
        }
        if self.known.len() < Self::MOST {
            self.known.insert(hash, Arc::clone(&new));
        }
        new
    }

    /// A session that had this login is going, and has let go of it but for this; the last one takes the entry along.
    fn leave(&mut self, login: &Arc<Login>) {
        if Arc::strong_count(login) == 2 {
            let hash = self.hasher.hash_one(login.by_ref());
            if self.known.get(&hash).is_some_and(|known| Arc::ptr_eq(known, login)) {
                self.known.remove(&hash);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
