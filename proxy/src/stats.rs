//! Counters of listeners and servers. Plain atomics, written where things happen, read by whoever asks.
//!
//! They move while a session lives, unlike HAProxy's, which stand still until it ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use pointsman_core::close::CloseReason;
use pointsman_core::route::GrantRole;
use pointsman_core::view::MemberName;

use crate::sessions::Granted;
use crate::shard::Block;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Reads.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that only grows, with every message: each core counts on its own ([`crate::shard`]).
#[derive(Debug)]
pub struct ByteCounter {
    block: Arc<Block>,
    word: usize,
}

impl ByteCounter {
    /// The two directions of one owner, side by side.
    fn pair() -> (Self, Self) {
        let block = Arc::<Block>::default();
        (Self { block: Arc::clone(&block), word: 0 }, Self { block, word: 1 })
    }

    /// Adds. On a core of the relay engine: without a locked instruction.
    pub fn add(&self, n: u64) {
        self.block.add(self.word, n);
    }

    /// Adds up what all threads have counted.
    pub fn get(&self) -> u64 {
        self.block.sum(self.word)
    }
}

/// A number that goes up and down; it can only be raised through a guard, so it cannot leak.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Reads.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Raises the gauge by one for as long as the guard lives.
    pub fn enter<T: AsRef<Self>>(owner: T) -> GaugeGuard<T> {
        owner.as_ref().0.fetch_add(1, Ordering::Relaxed);
        GaugeGuard(owner)
    }

    /// Like [`Gauge::enter`], unless the gauge stands at `limit` already.
    pub fn enter_below<T: AsRef<Self>>(owner: T, limit: u64) -> Option<GaugeGuard<T>> {
        let gauge = &owner.as_ref().0;
        gauge
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now < limit).then_some(now + 1))
            .ok()?;
        Some(GaugeGuard(owner))
    }
}

/// Lowers its gauge by one when dropped.
#[derive(Debug)]
pub struct GaugeGuard<T: AsRef<Gauge>>(T);

impl<T: AsRef<Gauge>> Drop for GaugeGuard<T> {
    fn drop(&mut self) {
        self.0.as_ref().0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts and sum of a duration: enough for an average and a Prometheus summary without quantiles.
#[derive(Debug, Default)]
pub struct Durations {
    count: AtomicU64,
    micros: AtomicU64,
    max_micros: AtomicU64,
}

impl Durations {
    /// Records one.
    pub fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.max_micros.fetch_max(micros, Ordering::Relaxed);
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Their sum.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.max_micros.load(Ordering::Relaxed))
    }
}

macro_rules! gauges {
    ($($(#[$doc:meta])* $marker:ident => $owner:ident . $field:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $marker(pub Arc<$owner>);
        impl AsRef<Gauge> for $marker {
            fn as_ref(&self) -> &Gauge {
                &self.0.$field
            }
        }
    )*};
}

gauges! {
    /// Names [`ListenerStats::sessions`] to [`Gauge::enter`].
    ListenerSessions => ListenerStats.sessions;
    /// Names [`ListenerStats::held`] to [`Gauge::enter`].
    ListenerHeld => ListenerStats.held;
    /// Names [`ServerStats::sessions`] to [`Gauge::enter`].
    ServerSessions => ServerStats.sessions;
}

/// One listener.
#[derive(Debug)]
pub struct ListenerStats {
    /// Connections that were accepted, whatever became of them.
    pub accepted: Counter,
    /// Connections that are open now, held ones included.
    pub sessions: Gauge,
    /// Connections that are held now.
    pub held: Gauge,
    /// Connections that were held at all.
    pub held_total: Counter,
    /// How long connections were held.
    pub held_for: Durations,
    /// Bytes from clients.
    pub bytes_in: ByteCounter,
    /// Bytes to clients.
    pub bytes_out: ByteCounter,
    /// Errors of accept(2) itself (descriptors, memory).
    pub accept_errors: Counter,
    /// `CancelRequest`s that were passed on.
    pub cancels: Counter,
    closes: RwLock<BTreeMap<&'static str, Arc<Counter>>>,
    servers: RwLock<BTreeMap<MemberName, Arc<ServerStats>>>,
}

/// One member, as one listener uses it.
#[derive(Debug)]
pub struct ServerStats {
    /// Sessions that are open now, those being dialled included: what least-connections compares.
    pub sessions: Gauge,
    /// Sessions that it served.
    pub sessions_total: Counter,
    /// Dials that failed.
    pub dial_errors: Counter,
    /// Sessions that were cut by us while it served them.
    pub cut: Counter,
    /// From the start of the dial to the server's first byte.
    pub dialled_in: Durations,
    /// Bytes from clients to it.
    pub bytes_in: ByteCounter,
    /// Bytes from it to clients.
    pub bytes_out: ByteCounter,
    granted: Mutex<Option<Arc<Granted>>>,
}

impl Default for ServerStats {
    fn default() -> Self {
        let (bytes_in, bytes_out) = ByteCounter::pair();
        Self {
            sessions: Gauge::default(),
            sessions_total: Counter::default(),
            dial_errors: Counter::default(),
            cut: Counter::default(),
            dialled_in: Durations::default(),
            bytes_in,
            bytes_out,
            granted: Mutex::default(),
        }
    }
}

impl ServerStats {
    /// It has answered at this address: what its session is granted, shared with the session before where it was granted the same.
    pub fn granted(&self, member: &MemberName, role: GrantRole, server: SocketAddr) -> Arc<Granted> {
        let mut last = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(same) if same.member == *member && same.role == role && same.server == server => {
                Arc::clone(same)
            }
            _ => Arc::clone(last.insert(Arc::new(Granted { member: member.clone(), role, server }))),
        }
    }

    /// Where it was reached last: a member that is no candidate any more may still have sessions.
    pub fn reached(&self) -> Option<SocketAddr> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|granted| granted.server)
    }
}

impl Default for ListenerStats {
    fn default() -> Self {
        let (bytes_in, bytes_out) = ByteCounter::pair();
        Self {
            accepted: Counter::default(),
            sessions: Gauge::default(),
            held: Gauge::default(),
            held_total: Counter::default(),
            held_for: Durations::default(),
            bytes_in,
            bytes_out,
            accept_errors: Counter::default(),
            cancels: Counter::default(),
            closes: RwLock::default(),
            servers: RwLock::default(),
        }
    }
}

impl ListenerStats {
    /// The counters of a member, made at the first use.
    pub fn server(&self, member: &MemberName) -> Arc<ServerStats> {
        if let Some(stats) = self.servers.read().unwrap_or_else(PoisonError::into_inner).get(member) {
            return Arc::clone(stats);
        }
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(servers.entry(member.clone()).or_default())
    }

    /// Every member that this listener has used, by name.
    pub fn servers(&self) -> Vec<(MemberName, Arc<ServerStats>)> {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        servers.iter().map(|(name, stats)| (name.clone(), Arc::clone(stats))).collect()
    }

    /// Forgets the counters of members that are not `known` any more and have no sessions.
    pub fn forget_servers(&self, known: impl Fn(&MemberName) -> bool) {
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        servers.retain(|name, stats| known(name) || stats.sessions.get() > 0);
    }

    /// Counts the end of a connection.
    pub fn closed(&self, reason: &CloseReason) {
        let label = reason.label();
        if let Some(counter) = self.closes.read().unwrap_or_else(PoisonError::into_inner).get(label) {
            counter.add(1);
            return;
        }
        let mut closes = self.closes.write().unwrap_or_else(PoisonError::into_inner);
        closes.entry(label).or_default().add(1);
    }

    /// How many connections ended for each reason (label) that has occurred.
    pub fn closes(&self) -> BTreeMap<&'static str, u64> {
        let closes = self.closes.read().unwrap_or_else(PoisonError::into_inner);
        closes.iter().map(|(label, counter)| (*label, counter.get())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_and_owners_are_counted_apart() {
        let stats = ListenerStats::default();
        let server = stats.server(&MemberName::from("n1"));
        stats.bytes_in.add(3);
        stats.bytes_out.add(40);
        server.bytes_out.add(500);
        assert_eq!((stats.bytes_in.get(), stats.bytes_out.get()), (3, 40));
        assert_eq!((server.bytes_in.get(), server.bytes_out.get()), (0, 500));
    }

    #[test]
    fn a_member_that_went_is_forgotten_when_its_last_session_has_ended() {
        let stats = ListenerStats::default();
        let (n1, n2) = (MemberName::from("n1"), MemberName::from("n2"));
        stats.server(&n1);
        let session = Gauge::enter(ServerSessions(stats.server(&n2)));
        let names = || stats.servers().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        stats.forget_servers(|name| *name == n1);
        assert_eq!(names(), [n1.clone(), n2.clone()]);
        drop(session);
        stats.forget_servers(|name| *name == n1);
        assert_eq!(names(), [n1]);
    }
}
