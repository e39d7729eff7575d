//! The held sessions of one listener: [`HoldQueue`] with a clock, and with somebody to wake.
//!
//! Tasks: one keeper for each listener ([`Holds::keep`]), which releases and expires. Sessions enter by
//! themselves, under the same lock. The queue learns of a new route table before anything else is asked of
//! it, so that nobody passes by a table that is no longer in force. Bounds: `max_held`.
//!
//! Cancel-safety: a session that stops waiting drops its [`Waiting`], which takes it out of the queue.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pointsman_config::ListenerName;
use pointsman_core::hold::{Arrival, HoldLimits, HoldQueue, Outcome, Ticket};
use pointsman_core::route::{NoRoute, Term};
use pointsman_core::time::Moment;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::routes::{Published, Routes};
use crate::sessions::SessionId;

/// What becomes of a session that wants a route.
pub(crate) enum Entry<'a> {
    /// Dial now.
    Pass(Ticket),
    /// Wait.
    Wait(Waiting<'a>),
    /// Too many wait already.
    Overflow,
    /// Waiting would be in vain.
    Vain(NoRoute),
}

/// The held sessions of one listener.
#[derive(Debug)]
pub(crate) struct Holds {
    listener: ListenerName,
    routes: Arc<Routes>,
    epoch: Instant,
    state: Mutex<State>,
    /// Somebody has begun to wait: the next deadline may be another one.
    arrived: Notify,
}

#[derive(Debug)]
struct State {
    queue: HoldQueue<SessionId>,
    wakers: HashMap<SessionId, oneshot::Sender<Outcome>>,
    /// The table that the queue knows of.
    generation: Option<u64>,
    terms: Vec<Term>,
    /// Why waiting is in vain, if it is.
    lasting: Option<NoRoute>,
}

impl Holds {
    pub(crate) fn new(listener: ListenerName, routes: Arc<Routes>, limits: HoldLimits) -> Self {
        let state = State {
            queue: HoldQueue::new(limits),
            wakers: HashMap::new(),
            generation: None,
            terms: Vec::new(),
            lasting: None,
        };
        Self { listener, routes, epoch: Instant::now(), state: Mutex::new(state), arrived: Notify::new() }
    }

    pub(crate) fn set_limits(&self, limits: HoldLimits) {
        self.lock().queue.set_limits(self.now(), limits);
        self.arrived.notify_one();
    }

    /// A new session wants a route, and would wait for `patience`.
    pub(crate) fn arrive(&self, id: SessionId, patience: Duration) -> Entry<'_> {
        let mut state = self.synced();
        if let Some(lasting) = &state.lasting {
            return Entry::Vain(lasting.clone());
        }
        let now = self.now();
        let arrival = state.queue.arrive(now, id, now + patience);
        self.enter(state, id, arrival)
    }

    /// A session that was let through has found nobody who serves it.
    pub(crate) fn come_back(&self, id: SessionId, ticket: Ticket, pause: Duration) -> Entry<'_> {
        let mut state = self.synced();
        if let Some(lasting) = &state.lasting {
            return Entry::Vain(lasting.clone());
        }
        let arrival = state.queue.come_back(self.now(), id, ticket, pause);
        self.enter(state, id, arrival)
    }

    fn enter(&self, mut state: MutexGuard<'_, State>, id: SessionId, arrival: Arrival) -> Entry<'_> {
        match arrival {
            Arrival::Pass(ticket) => Entry::Pass(ticket),
            Arrival::Overflow => Entry::Overflow,
            Arrival::Held => {
                let (waker, outcome) = oneshot::channel();
                state.wakers.insert(id, waker);
                drop(state);
                self.arrived.notify_one();
                Entry::Wait(Waiting { holds: self, id, outcome })
            }
        }
    }

    /// Releases and expires, for as long as the listener lives.
    pub(crate) async fn keep(&self) -> Infallible {
        let mut tables = self.routes.subscribe();
        loop {
            match self.settle() {
                Some(next) if next <= self.now() => tokio::task::yield_now().await,
                next => {
                    tokio::select! {
                        changed = tables.changed() => {
                            if changed.is_err() {
                                // The routes are held by ourselves, so their sender cannot be gone.
                                std::future::pending::<()>().await;
                            }
                        }
                        () = self.arrived.notified() => {}
                        () = self.at(next) => {}
                    }
                }
            }
        }
    }

    /// Wakes whose turn it is; says when to look again.
    fn settle(&self) -> Option<Moment> {
        let mut state = self.synced();
        let mut settled = state.queue.poll(self.now());
        if state.lasting.is_some() {
            settled.extend(state.queue.give_up());
        }
        for (id, outcome) in settled {
            if let Some(waker) = state.wakers.remove(&id) {
                let _ = waker.send(outcome); // the session may have stopped waiting at this very moment
            }
        }
        state.queue.poll_timeout()
    }

    async fn at(&self, moment: Option<Moment>) {
        match moment {
            Some(moment) => sleep_until(self.epoch + moment.since_start()).await,
            None => std::future::pending().await,
        }
    }

    fn now(&self) -> Moment {
        Moment::from_start(self.epoch.elapsed())
    }

    /// The state, after the table in force was made known to the queue.
    fn synced(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        let published = self.routes.load();
        if state.generation != Some(published.generation()) {
            state.adopt(self.now(), &published, &self.listener);
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn adopt(&mut self, now: Moment, published: &Published, listener: &ListenerName) {
        self.generation = Some(published.generation());
        let route = published.route(listener).map(|route| route.candidates.as_ref());
        self.lasting = route.and_then(Result::err).filter(|why| why.is_lasting()).cloned();
        let candidates = route.and_then(Result::ok);
        let terms: Vec<Term> =
            candidates.map_or_else(Vec::new, |all| all.iter().map(|candidate| candidate.term).collect());
        if !terms.iter().any(|term| self.terms.contains(term)) {
            // Nobody of those who served before: whoever serves now is to be spared a rush.
            self.queue.route(now, false);
        }
        self.queue.route(now, !terms.is_empty());
        self.terms = terms;
    }
}

/// A place in the queue.
pub(crate) struct Waiting<'a> {
    holds: &'a Holds,
    id: SessionId,
    outcome: oneshot::Receiver<Outcome>,
}

impl Waiting<'_> {
    /// Waits for release or expiry. Cancel-safe. `None`: the listener is gone.
    pub(crate) async fn outcome(mut self) -> Option<Outcome> {
        (&mut self.outcome).await.ok()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.holds.lock();
        if state.wakers.remove(&self.id).is_some() {
            state.queue.leave(self.id);
        }
    }
}
