//! The register of live sessions: what `pointsman sessions` shows and `pointsman kill` ends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use pointsman_config::{ClusterName, ListenerName};
use pointsman_core::close::CloseReason;
use pointsman_core::route::GrantRole;
use pointsman_core::view::MemberName;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// A session's number, unique in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
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

/// What a session was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Granted {
    /// The member.
    pub member: MemberName,
    /// As what.
    pub role: GrantRole,
    /// The server's address.
    pub server: SocketAddr,
}

/// One live session. Its task writes, everybody else reads.
#[derive(Debug)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its listener.
    pub listener: ListenerName,
    /// The client.
    pub client: SocketAddr,
    /// Our side of the client's connection: which of our addresses it came to.
    pub local: SocketAddr,
    /// When it was accepted.
    pub accepted: Instant,
    /// Bytes from the client that the server has taken.
    pub bytes_in: AtomicU64,
    /// Bytes from the server that the client has taken.
    pub bytes_out: AtomicU64,
    phase: Mutex<Phase>,
    granted: Mutex<Option<Granted>>,
    login: OnceLock<Login>,
    end: CancellationToken,
    end_reason: OnceLock<CloseReason>,
    kill_waker: Mutex<Option<std::task::Waker>>,
}

/// Who logs in, as the clear-text start-up message says (unknown for TLS pass-through).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Login {
    /// `user`.
    pub user: Option<String>,
    /// `database`.
    pub database: Option<String>,
    /// `application_name`.
    pub application: Option<String>,
}

impl Session {
    /// Where it stands.
    pub fn phase(&self) -> Phase {
        *lock(&self.phase)
    }

    /// Only the session's task calls this.
    pub fn set_phase(&self, phase: Phase) {
        *lock(&self.phase) = phase;
    }

    /// The member that serves it, once one was picked.
    pub fn granted(&self) -> Option<Granted> {
        lock(&self.granted).clone()
    }

    /// Only the session's task calls this.
    pub fn set_granted(&self, granted: Option<Granted>) {
        *lock(&self.granted) = granted;
    }

    /// Who logged in, if that could be read.
    pub fn login(&self) -> Option<&Login> {
        self.login.get()
    }

    /// Only the session's task calls this, once.
    pub fn set_login(&self, login: Login) {
        let _ = self.login.set(login);
    }

    /// Asks the session to end. The first reason stays.
    pub fn kill(&self, reason: CloseReason) {
        let _ = self.end_reason.set(reason);
        self.end.cancel();
        if let Some(waker) = lock(&self.kill_waker).take() {
            waker.wake();
        }
    }

    /// Waits until somebody asks the session to end. Cancel-safe.
    pub async fn killed(&self) -> CloseReason {
        self.end.cancelled().await;
        self.end_reason.get().cloned().unwrap_or(CloseReason::Killed)
    }

    /// Has an established session, which has no task, woken by [`Session::kill`].
    pub(crate) fn set_kill_waker(&self, waker: &std::task::Waker) {
        *lock(&self.kill_waker) = Some(waker.clone());
    }

    /// Why somebody has asked the session to end, if somebody has. Cheap: ask before each write.
    pub fn kill_reason(&self) -> Option<&CloseReason> {
        self.end_reason.get()
    }

    /// Whether somebody has asked the session to end.
    pub fn is_killed(&self) -> bool {
        self.end_reason.get().is_some() // one atomic load; set before the wake-up, see `kill`
    }
}

const SHARDS: usize = 16;

/// All live sessions of the process.
#[derive(Debug, Default)]
pub struct Sessions {
    next: AtomicU64,
    live: AtomicUsize,
    /// How many the descriptors of the process allow. 0: as many as come.
    room: AtomicUsize,
    /// Connections are being turned away because there is no room.
    refusing: AtomicBool,
    shards: [Mutex<HashMap<SessionId, Arc<Session>>>; SHARDS],
}

impl Sessions {
    /// Registers a new connection. It leaves the register when the guard is dropped.
    pub fn enter(
        self: &Arc<Self>,
        cluster: ClusterName,
        listener: ListenerName,
        client: SocketAddr,
        local: SocketAddr,
    ) -> SessionGuard {
        let id = SessionId(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        self.live.fetch_add(1, Ordering::Relaxed);
        let session = Arc::new(Session {
            id,
            cluster,
            listener,
            client,
            local,
            accepted: Instant::now(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            phase: Mutex::new(Phase::Startup),
            granted: Mutex::new(None),
            login: OnceLock::new(),
            end: CancellationToken::new(),
            end_reason: OnceLock::new(),
            kill_waker: Mutex::default(),
        });
        self.shard(id).insert(id, Arc::clone(&session));
        SessionGuard { register: Arc::clone(self), session }
    }

    /// Says how many sessions the descriptors of the process allow. `None`: as many as come.
    pub fn set_room(&self, sessions: Option<usize>) {
        self.room.store(sessions.map_or(0, |sessions| sessions.max(1)), Ordering::Relaxed);
    }

    /// Whether one more session would take a descriptor that others need: the store, Patroni, operators.
    pub fn is_full(&self) -> bool {
        let room = self.room.load(Ordering::Relaxed);
        room > 0 && self.live.load(Ordering::Relaxed) >= room
    }

    /// Whether this refusal for want of room is the first one since there was plenty: one line in the log is enough.
    pub fn begins_to_refuse(&self) -> bool {
        !self.refusing.swap(true, Ordering::Relaxed)
    }

    fn left(&self) {
        let live = self.live.fetch_sub(1, Ordering::Relaxed) - 1;
        if self.refusing.load(Ordering::Relaxed) && live < self.room.load(Ordering::Relaxed) / 10 * 9 {
            self.refusing.store(false, Ordering::Relaxed);
        }
    }

    /// Every live session, by number.
    pub fn list(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> =
            self.shards.iter().flat_map(|s| lock(s).values().cloned().collect::<Vec<_>>()).collect();
        all.sort_by_key(|session| session.id);
        all
    }

    /// One session.
    pub fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        self.shard(id).get(&id).cloned()
    }

    /// How many are live.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether none is live.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below SHARDS")]
    fn shard(&self, id: SessionId) -> MutexGuard<'_, HashMap<SessionId, Arc<Session>>> {
        lock(&self.shards[id.0 as usize % SHARDS])
    }
}

/// Keeps a session in the register.
#[derive(Debug)]
pub struct SessionGuard {
    register: Arc<Sessions>,
    session: Arc<Session>,
}

impl std::ops::Deref for SessionGuard {
    type Target = Arc<Session>;

    fn deref(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.register.left();
        self.register.shard(self.session.id).remove(&self.session.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
