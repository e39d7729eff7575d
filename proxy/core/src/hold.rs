//! The queue of held connections of one listener: accepted, and waiting for a route.
//!
//! - At most `max_held` wait; each has a deadline; they leave in the order they came.
//! - While there is no route, everyone waits. When a route appears, it is *fresh*: those who waited and those who
//!   come now are let through at a bounded rate, so that a new primary is not trampled. It stops being fresh when
//!   nobody waits, the bucket is full again and [`FRESH_FOR`] has passed; from then on connections pass at once.
//! - A backlog that grows faster than the rate must not throttle a healthy server for ever: after [`STRICT_FOR`]
//!   the rate doubles with every second.
//! - A connection that was let through and could not be dialled comes back with its [`Ticket`]: to its old place
//!   and with its old deadline. A pause keeps it from using up the tokens of all others meanwhile.
//!
//! The queue is sans-IO: call [`HoldQueue::poll`] whenever [`HoldQueue::poll_timeout`] says so.
//!
//! Invariant: every connection that was held leaves exactly once: released, expired or left.
//! Invariant: while routes are fresh, any window of length `w` sees at most `burst + w / interval` releases, for the
//! shortest interval in force in it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use crate::time::Moment;

#[cfg(test)]
mod tests;

/// How long a route counts as fresh at least: clients that were cut need a moment to come back.
pub const FRESH_FOR: Duration = Duration::from_secs(2);

/// How long a fresh route is kept strictly to its rate. Then the rate doubles with every second.
pub const STRICT_FOR: Duration = Duration::from_secs(5);

/// The rate doubles at most so often.
const DOUBLINGS: u32 = 12;

/// How many connections one [`HoldQueue::poll`] settles at most, so that the caller's loop stays responsive.
pub const BATCH: usize = 256;

/// The burst is what the rate allows in this time, and at least one connection.
const BURST_WINDOW: Duration = Duration::from_millis(20);

/// The bounds of a queue. They may change while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldLimits {
    max_held: usize,
    /// Between two releases in the long run.
    interval: Duration,
    /// How many may be released at once after a pause.
    burst: u32,
}

impl HoldLimits {
    /// Limits from a listener's `max_held` and `release_rate` (connections per second over all balancers) and
    /// the cluster's number of `balancers`, of which this one takes its share.
    pub fn new(max_held: u32, release_rate: NonZeroU32, balancers: NonZeroU32) -> Self {
        // Rounded up: the rate is never exceeded.
        let nanos = (u64::from(balancers.get()) * 1_000_000_000).div_ceil(release_rate.get().into());
        let interval = Duration::from_nanos(nanos);
        let burst = u32::try_from(BURST_WINDOW.as_nanos() / interval.as_nanos().max(1)).unwrap_or(u32::MAX);
        let max_held = usize::try_from(max_held).unwrap_or(usize::MAX);
        Self { max_held, interval, burst: burst.max(1) }
    }

    /// The share of this load balancer: the time between two releases in the long run.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// How many connections may be released at once after a pause.
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// The limits of a route that has been fresh for so long.
    fn relaxed(self, fresh_for: Duration) -> Self {
        let beyond = fresh_for.saturating_sub(STRICT_FOR).as_secs_f64().ceil();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "small and never negative"
        )]
        let doublings = (beyond as u32).min(DOUBLINGS);
        let factor = 1 << doublings;
        let interval = (self.interval / factor).max(Duration::from_nanos(1));
        Self { interval, burst: self.burst.saturating_mul(factor), ..self }
    }
}

/// A connection's place in the order of arrival, kept while it is dialled so that it can come back.
///
/// It cannot be copied: a place has one owner.
#[derive(PartialEq, Eq, Debug)]
pub struct Ticket {
    order: u64,
    arrived: Moment,
    deadline: Moment,
}

impl Ticket {
    /// When the connection first arrived.
    pub fn arrived(&self) -> Moment {
        self.arrived
    }

    /// When holding it ends at the latest.
    pub fn deadline(&self) -> Moment {
        self.deadline
    }
}

/// What becomes of a connection that arrives.
#[derive(PartialEq, Eq, Debug)]
pub enum Arrival {
    /// Dial now. Come back with the ticket if that fails.
    Pass(Ticket),
    /// Wait for [`HoldQueue::poll`] to name the key.
    Held,
    /// The queue is full: refuse with SQLSTATE 53300.
    Overflow,
}

/// How a wait ended.
#[derive(PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Dial now. Come back with the ticket if that fails.
    Release(Ticket),
    /// The deadline has come: refuse.
    Expire(Ticket),
}

#[derive(Debug)]
struct Waiter<K> {
    key: K,
    ticket: Ticket,
    /// Not before this moment may it be released.
    pause_ends: Moment,
}

/// The held connections of one listener, named by keys `K`.
#[derive(Debug)]
pub struct HoldQueue<K> {
    limits: HoldLimits,
    next_order: u64,
    waiters: BTreeMap<u64, Waiter<K>>,
    orders: BTreeMap<K, u64>,
    deadlines: BTreeSet<(Moment, u64)>,
    /// Those that may be released, in order; the others are in `pausing`.
    ready: BTreeSet<u64>,
    pausing: BTreeSet<(Moment, u64)>,
    route: Route,
    bucket: Bucket,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Route {
    Absent,
    /// Paced, at least until the moment.
    Fresh {
        since: Moment,
        until: Moment,
    },
    Settled,
}

impl<K: Copy + Ord> HoldQueue<K> {
    /// An empty queue without a route.
    pub fn new(limits: HoldLimits) -> Self {
        Self {
            limits,
            next_order: 0,
            waiters: BTreeMap::new(),
            orders: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            ready: BTreeSet::new(),
            pausing: BTreeSet::new(),
            route: Route::Absent,
            bucket: Bucket::default(),
        }
    }

    /// A new connection wants to go through, and would wait until `deadline`.
    ///
    /// A key that is held already stays as it is.
    pub fn arrive(&mut self, now: Moment, key: K, deadline: Moment) -> Arrival {
        let ticket = Ticket { order: self.next_order, arrived: now, deadline };
        self.next_order += 1;
        self.settle(now);
        let may_pass = match self.route {
            Route::Absent => false,
            Route::Fresh { .. } => {
                !self.orders.contains_key(&key)
                    && self.next_ready(now).is_none()
                    && self.bucket.take(now, self.pace(now))
            }
            Route::Settled => true,
        };
        if may_pass { Arrival::Pass(ticket) } else { self.hold(key, ticket, now) }
    }

    /// A connection that was let through comes back, because its dial failed. It waits at its old place, but for
    /// `pause` at least, and the route becomes fresh again: who cannot be dialled must not be dialled in a loop.
    pub fn come_back(&mut self, now: Moment, key: K, ticket: Ticket, pause: Duration) -> Arrival {
        let until = now + FRESH_FOR;
        self.route = match self.route {
            Route::Absent => Route::Absent,
            Route::Fresh { since, .. } => Route::Fresh { since, until },
            Route::Settled => Route::Fresh { since: now, until },
        };
        self.hold(key, ticket, now + pause)
    }

    /// The client of a held connection went away, or the connection is ended for another reason.
    pub fn leave(&mut self, key: K) -> Option<Ticket> {
        let order = self.orders.get(&key)?;
        self.remove(*order).map(|waiter| waiter.ticket)
    }

    /// There is a route now, or there is none. A route that replaces another one while `available` stays true does
    /// not become fresh: say `false`, then `true`, if the new server needs protection.
    pub fn route(&mut self, now: Moment, available: bool) {
        self.route = match (available, self.route) {
            (false, _) => Route::Absent,
            (true, Route::Absent) => Route::Fresh { since: now, until: now + FRESH_FOR },
            (true, same @ (Route::Fresh { .. } | Route::Settled)) => same,
        };
    }

    /// Who is released and who has waited too long, at most [`BATCH`] at once: poll again at once while
    /// [`HoldQueue::poll_timeout`] is not later than `now`.
    pub fn poll(&mut self, now: Moment) -> Vec<(K, Outcome)> {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let next = self.next_expired(now).map(|waiter| (waiter.key, Outcome::Expire(waiter.ticket)));
            let next = next.or_else(|| {
                self.next_released(now).map(|waiter| (waiter.key, Outcome::Release(waiter.ticket)))
            });
            match next {
                Some(settled) => batch.push(settled),
                None => break,
            }
        }
        self.settle(now);
        batch
    }

    /// When to poll next; `None` while nobody waits.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let (deadline, _) = self.deadlines.first()?;
        if self.route == Route::Absent {
            return Some(*deadline);
        }
        let someone_may_go = if self.ready.is_empty() {
            self.pausing.first().map(|(moment, _)| *moment)
        } else {
            Some(Moment::ZERO)
        };
        let release = someone_may_go.map(|moment| moment.max(self.next_token()));
        release.map_or(Some(*deadline), |release| Some(release.min(*deadline)))
    }

    /// Waiting has become vain: everyone's time is up, in the order of arrival.
    pub fn give_up(&mut self) -> Vec<(K, Outcome)> {
        let orders: Vec<u64> = self.waiters.keys().copied().collect();
        let leaving = orders.into_iter().filter_map(|order| self.remove(order));
        leaving.map(|waiter| (waiter.key, Outcome::Expire(waiter.ticket))).collect()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Whether arrivals are being paced, as far as the last call could know.
    pub fn is_fresh(&self) -> bool {
        matches!(self.route, Route::Fresh { .. })
    }

    /// When the one that has waited longest arrived.
    pub fn oldest_since(&self) -> Option<Moment> {
        self.waiters.first_key_value().map(|(_, waiter)| waiter.ticket.arrived)
    }

    /// New limits after a reload. Those who wait stay, even when they are more than the new `max_held`.
    pub fn set_limits(&mut self, now: Moment, limits: HoldLimits) {
        self.limits = limits;
        // A slow rate must not outlive its reload: the bucket is empty at worst.
        let full_from_empty = limits.interval.saturating_mul(limits.burst);
        self.bucket.full_at = self.bucket.full_at.min(now + full_from_empty);
    }

    fn hold(&mut self, key: K, ticket: Ticket, pause_ends: Moment) -> Arrival {
        if self.orders.contains_key(&key) {
            return Arrival::Held;
        }
        if self.waiters.len() >= self.limits.max_held {
            return Arrival::Overflow;
        }
        let order = ticket.order;
        self.orders.insert(key, order);
        self.deadlines.insert((ticket.deadline, order));
        self.pausing.insert((pause_ends, order));
        self.waiters.insert(order, Waiter { key, ticket, pause_ends });
        Arrival::Held
    }

    fn remove(&mut self, order: u64) -> Option<Waiter<K>> {
        let waiter = self.waiters.remove(&order)?;
        self.orders.remove(&waiter.key);
        self.deadlines.remove(&(waiter.ticket.deadline, order));
        self.ready.remove(&order);
        self.pausing.remove(&(waiter.pause_ends, order));
        Some(waiter)
    }

    fn next_expired(&mut self, now: Moment) -> Option<Waiter<K>> {
        let (deadline, order) = *self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.remove(order)
    }

    fn next_released(&mut self, now: Moment) -> Option<Waiter<K>> {
        if self.route == Route::Absent {
            return None;
        }
        let order = self.next_ready(now)?;
        if !self.bucket.take(now, self.pace(now)) {
            return None;
        }
        self.remove(order)
    }

    /// The first in order whose pause is over.
    fn next_ready(&mut self, now: Moment) -> Option<u64> {
        while let Some((pause_ends, order)) = self.pausing.first().copied() {
            if pause_ends > now {
                break;
            }
            self.pausing.pop_first();
            self.ready.insert(order);
        }
        self.ready.first().copied()
    }

    /// The limits in force.
    fn pace(&self, now: Moment) -> HoldLimits {
        match self.route {
            Route::Fresh { since, .. } => self.limits.relaxed(now.since(since)),
            Route::Absent | Route::Settled => self.limits,
        }
    }

    /// When the next one may go: by the strict rate, or earlier when the rate doubles before that.
    fn next_token(&self) -> Moment {
        let strict = self.bucket.next(self.limits);
        let Route::Fresh { since, .. } = self.route else { return strict };
        let mut next = strict;
        for doublings in 1..=DOUBLINGS {
            let begins = since + STRICT_FOR + Duration::from_secs(u64::from(doublings) - 1);
            let relaxed = self.limits.relaxed(STRICT_FOR + Duration::from_secs(doublings.into()));
            next = next.min(self.bucket.next(relaxed).max(begins + Duration::from_nanos(1)));
        }
        next
    }

    /// Ends the freshness of a route when its conditions are met.
    fn settle(&mut self, now: Moment) {
        if let Route::Fresh { until, .. } = self.route
            && now >= until
            && self.waiters.is_empty()
            && self.bucket.is_full(now)
        {
            self.route = Route::Settled;
        }
    }
}

/// A token bucket in the form of a virtual schedule (the generic cell rate algorithm, ITU-T I.371): one moment
/// instead of a count and a time, and no rounding that adds up.
#[derive(Clone, Copy, Default, Debug)]
struct Bucket {
    /// When the bucket is full again.
    full_at: Moment,
}

impl Bucket {
    /// Takes a token if there is one.
    fn take(&mut self, now: Moment, limits: HoldLimits) -> bool {
        if self.next(limits) > now {
            return false;
        }
        self.full_at = self.full_at.max(now) + limits.interval;
        true
    }

    /// The earliest moment at which there is a token.
    fn next(&self, limits: HoldLimits) -> Moment {
        self.full_at.earlier_by(limits.interval.saturating_mul(limits.burst.saturating_sub(1)))
    }

    fn is_full(&self, now: Moment) -> bool {
        self.full_at <= now
    }
}
