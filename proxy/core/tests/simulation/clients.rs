//! Clients: connections that are held, and sessions that were granted under a term.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use pointsman_config::{ListenerName, Target};
use pointsman_core::hold::{Arrival, HoldLimits, HoldQueue, Outcome};
use pointsman_core::route::{GrantRole, RouteTable, Term};
use pointsman_core::time::Moment;
use pointsman_core::view::MemberName;

/// How long a connection may be held.
const HOLD: Duration = Duration::from_secs(20);
/// How many may be held.
const MAX_HELD: u32 = 30;

#[derive(Clone, Debug)]
struct Session {
    listener: ListenerName,
    target: Target,
    member: MemberName,
    role: GrantRole,
    term: Term,
    /// It must be cut in this very step.
    doomed: bool,
}

#[derive(Debug)]
pub(crate) struct Clients {
    sessions: Vec<Session>,
    queue: HoldQueue<u64>,
    /// Until when those wait that have not been released, expired or refused yet.
    held: BTreeMap<u64, Moment>,
    next: u64,
}

fn one(listener: &str) -> ListenerName {
    ListenerName::new(listener).unwrap()
}

impl Clients {
    pub(crate) fn new() -> Self {
        let limits = HoldLimits::new(MAX_HELD, NonZeroU32::new(500).unwrap(), NonZeroU32::new(3).unwrap());
        Self { sessions: Vec::new(), queue: HoldQueue::new(limits), held: BTreeMap::new(), next: 0 }
    }

    /// One client for each listener: sessions where there is a candidate, and one more for the write listener that
    /// is held while there is none.
    pub(crate) fn arrive(&mut self, table: &RouteTable, now: Moment, dice: u64) {
        self.queue.route(now, available(table));
        let key = self.next;
        self.next += 1;
        match self.queue.arrive(now, key, now + HOLD) {
            Arrival::Pass(_) => {
                assert!(available(table), "a connection passed without a route");
                self.grant(&one("primary"), table, dice);
            }
            Arrival::Held => {
                self.held.insert(key, now + HOLD);
            }
            Arrival::Overflow => {
                assert!(self.held.len() >= MAX_HELD as usize, "refused although there was room");
            }
        }
        for listener in table.routes.keys().filter(|listener| listener.as_str() != "primary") {
            self.grant(listener, table, dice);
        }
        if self.sessions.len() > 200 {
            self.sessions.drain(..100); // they ended by themselves
        }
    }

    fn grant(&mut self, listener: &ListenerName, table: &RouteTable, dice: u64) {
        let Some(route) = table.routes.get(listener) else { return };
        let Ok(candidates) = &route.candidates else { return };
        let candidate = &candidates[usize::try_from(dice).unwrap_or_default() % candidates.len()];
        self.sessions.push(Session {
            listener: listener.clone(),
            target: route.target,
            member: candidate.member.clone(),
            role: candidate.role,
            term: candidate.term,
            doomed: false,
        });
    }

    /// The sessions on this member must be cut in this step: all, or those for writes.
    pub(crate) fn doom(&mut self, member: &MemberName, writes_only: bool) {
        for session in self.sessions.iter_mut().filter(|session| session.member == *member) {
            session.doomed |= !writes_only || session.role == GrantRole::Primary;
        }
    }

    pub(crate) fn revoked(&mut self, term: Term) {
        self.sessions.retain(|session| session.term != term);
    }

    /// After a new table or a revocation: who had to be cut is cut.
    pub(crate) fn check_cut(&self, table: &RouteTable) {
        for session in &self.sessions {
            assert!(!session.doomed, "not cut: {session:?}");
            let kept =
                table.routes.get(&session.listener).is_some_and(|route| route.target == session.target);
            assert!(kept, "its listener is gone or has another target: {session:?}");
        }
    }

    /// Held connections move on.
    pub(crate) fn settle(&mut self, table: &RouteTable, now: Moment, dice: u64) {
        self.queue.route(now, available(table));
        while self.queue.poll_timeout().is_some_and(|at| at <= now) {
            for (key, outcome) in self.queue.poll(now) {
                let until = self.held.remove(&key).expect("nobody is released, expired or refused twice");
                match outcome {
                    Outcome::Release(_) => {
                        assert!(available(table), "{key} was released without a route");
                        self.grant(&one("primary"), table, dice);
                    }
                    Outcome::Expire(_) => assert!(now >= until, "{key} expired too early"),
                }
            }
        }
        assert_eq!(self.held.len(), self.queue.len(), "a held connection was lost");
        let overdue = self.held.values().filter(|until| now >= **until).count();
        assert_eq!(overdue, 0, "held for too long");
    }

    /// When the queue wants to be looked at.
    pub(crate) fn timeout(&self) -> Option<Moment> {
        self.queue.poll_timeout()
    }

    /// At the end nobody waits any more.
    pub(crate) fn check_end(&self) {
        assert!(self.held.is_empty(), "still held: {:?}", self.held);
    }
}

fn available(table: &RouteTable) -> bool {
    table.routes.get(&one("primary")).is_some_and(|route| route.candidates.is_ok())
}
