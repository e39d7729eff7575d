//! The published routes of one cluster, and the fences that end sessions.
//!
//! The control task is the only writer. Listeners read the table on every accept without a lock. A session
//! takes the fence of its term out of the very table that it was routed by; when the term ends the control
//! task raises that same fence. There is no moment in between: a session that was routed by an old table
//! finds its fence raised, whether it has registered, dialled or written anything yet.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use pointsman_config::ListenerName;
use pointsman_core::route::{Revocation, RevokeReason, Route, RouteTable, Term};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::engine::Cores;

/// Ends every session of one term at once.
#[derive(Debug, Default)]
pub struct Fence {
    raised: CancellationToken,
    reason: OnceLock<RevokeReason>,
}

impl Fence {
    /// Why the fence was raised, if it was. Cheap: ask before each write to a server.
    pub fn raised(&self) -> Option<RevokeReason> {
        self.reason.get().copied() // one atomic load; set before the wake-up, see `raise`
    }

    /// Waits until the fence is raised. Cancel-safe.
    pub async fn wait(&self) -> RevokeReason {
        self.raised.cancelled().await;
        self.reason.get().copied().unwrap_or(RevokeReason::LeaderChanged)
    }

    fn raise(&self, reason: RevokeReason) {
        let _ = self.reason.set(reason); // a fence is raised once; the first reason stays
        self.raised.cancel();
    }
}

/// A route table with the fences of its terms. Immutable once published.
#[derive(Debug)]
pub struct Published {
    table: Arc<RouteTable>,
    fences: BTreeMap<Term, Arc<Fence>>,
}

impl Published {
    /// Of the route table.
    pub fn generation(&self) -> u64 {
        self.table.generation
    }

    /// The route of a listener. `None`: the listener is not part of this cluster (any more).
    pub fn route(&self, listener: &ListenerName) -> Option<&Route> {
        self.table.routes.get(listener)
    }

    /// The fence of a candidate's term. Every term of the table has one.
    pub fn fence(&self, term: Term) -> Option<&Arc<Fence>> {
        self.fences.get(&term)
    }

    fn terms(table: &RouteTable) -> impl Iterator<Item = Term> + '_ {
        table
            .routes
            .values()
            .filter_map(|route| route.candidates.as_ref().ok())
            .flat_map(|c| c.iter().map(|c| c.term))
    }
}

/// Where the control task publishes and everybody else reads.
#[derive(Debug)]
pub struct Routes {
    current: ArcSwap<Published>,
    generation: watch::Sender<u64>,
    fences: std::sync::Mutex<BTreeMap<Term, std::sync::Weak<Fence>>>,
    /// Where the sessions are.
    cores: OnceLock<Cores>,
}

impl Default for Routes {
    fn default() -> Self {
        let empty = Published {
            table: Arc::new(RouteTable { generation: 0, routes: BTreeMap::new() }),
            fences: BTreeMap::new(),
        };
        Self {
            current: ArcSwap::from_pointee(empty),
            generation: watch::Sender::new(0),
            fences: std::sync::Mutex::default(),
            cores: OnceLock::new(),
        }
    }
}

impl Routes {
    /// The table in force. Wait-free; do not keep the guard across an await.
    pub fn load(&self) -> arc_swap::Guard<Arc<Published>> {
        self.current.load()
    }

    /// Tells of every later generation; `changed()` is cancel-safe.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Names the cores that relay sessions of these routes: they have to look for them when a fence is raised. There is one engine.
    pub(crate) fn served_by(&self, cores: &Cores) {
        self.cores.get_or_init(|| cores.clone());
    }

    /// Puts a new table in force and wakes who waits for one. Only the control task calls this (and benchmarks, on routes of
    /// their own).
    pub fn publish(&self, table: Arc<RouteTable>) {
        let fences = {
            let mut known = self.lock();
            // A fence lives as long as a table or a session holds it.
            known.retain(|_, fence| fence.strong_count() > 0);
            Published::terms(&table)
                .map(|term| {
                    let fence = known.get(&term).and_then(std::sync::Weak::upgrade).unwrap_or_default();
                    known.insert(term, Arc::downgrade(&fence));
                    (term, fence)
                })
                .collect()
        };
        let generation = table.generation;
        self.current.store(Arc::new(Published { table, fences }));
        self.generation.send_replace(generation);
    }

    /// Ends a term. Only the control task calls this, after the `publish` that dropped the term.
    pub(crate) fn revoke(&self, revocation: &Revocation) {
        let fence = self.lock().remove(&revocation.term).and_then(|fence| fence.upgrade());
        if let Some(fence) = fence {
            fence.raise(revocation.reason);
            if let Some(cores) = self.cores.get() {
                cores.sweep();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Term, std::sync::Weak<Fence>>> {
        self.fences.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
