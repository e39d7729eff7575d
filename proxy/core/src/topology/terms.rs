//! Terms: how sessions are tied to the standing of a member.
//!
//! A term stays open while its member comes and goes as a candidate (doubt, lag, an operator's drain): the
//! sessions that it granted are still in order. Only a revocation closes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_config::{ListenerName, OnPromote, Target};

use crate::event::{Effect, Loudness, What};
use crate::route::{Candidate, GrantRole, NoRoute, Revocation, RevokeReason, Route, RouteTable, Term};
use crate::time::Moment;
use crate::view::MemberName;

use super::Topology;

type Key = (ListenerName, MemberName, GrantRole);

/// The open terms.
#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    open: BTreeMap<Key, Term>,
    last: u64,
    /// Closed in this step; told to the shell after the table that drops them.
    closed: Vec<Revocation>,
}

impl Terms {
    fn of(&mut self, key: Key) -> Term {
        *self.open.entry(key).or_insert_with(|| {
            self.last += 1;
            Term(self.last)
        })
    }

    fn close(&mut self, reason: RevokeReason, which: impl Fn(&Key) -> bool) -> Vec<MemberName> {
        let closing: Vec<Key> = self.open.keys().filter(|key| which(key)).cloned().collect();
        let mut members = Vec::new();
        for key in closing {
            if let Some(term) = self.open.remove(&key) {
                members.push(key.1.clone());
                self.closed.push(Revocation { term, member: key.1, reason });
            }
        }
        members.dedup();
        members
    }

    /// Forgets the terms of members that are long gone. Their sessions, if any, are left alone.
    pub(super) fn forget(&mut self, member: &MemberName) {
        self.open.retain(|(_, name, _), _| name != member);
    }
}

impl Topology {
    /// Closes the terms of a member that match.
    pub(super) fn end_terms(
        &mut self,
        member: &MemberName,
        reason: RevokeReason,
        which: impl Fn(&ListenerName, GrantRole) -> bool,
    ) {
        let ended =
            self.terms.close(reason, |(listener, name, role)| name == member && which(listener, *role));
        self.touched |= !ended.is_empty();
        for member in ended {
            self.note(Loudness::Info, Some(member), What::Revoked { reason });
        }
    }

    /// The new owner was a replica until now: listeners with `on_promote = "cut"` lose their sessions on it.
    pub(super) fn end_promoted_terms(&mut self) {
        let Some(owner) = self.owner.as_ref().map(|owner| owner.member.clone()) else { return };
        let cutting: Vec<ListenerName> = self
            .policy
            .listeners
            .iter()
            .filter(|listener| listener.on_promote == OnPromote::Cut && listener.target != Target::Any)
            .map(|listener| listener.name.clone())
            .collect();
        self.end_terms(&owner, RevokeReason::Promoted, |listener, role| {
            role == GrantRole::Replica && cutting.contains(listener)
        });
    }

    /// Closes the terms of listeners that are gone or ask for something else now.
    pub(super) fn end_reconfigured_terms(&mut self, kept: &BTreeMap<ListenerName, Target>) {
        let targets: BTreeMap<_, _> =
            self.policy.listeners.iter().map(|l| (l.name.clone(), l.target)).collect();
        self.terms.close(RevokeReason::Reconfigured, |(listener, _, _)| {
            kept.get(listener) != targets.get(listener)
        });
    }

    /// Makes the table of this moment; publishes it if it differs, then revokes what was closed.
    pub(super) fn publish(&mut self, now: Moment) {
        let policies = std::mem::take(&mut self.policy.listeners);
        let mut routes = BTreeMap::new();
        for listener in &policies {
            let candidates = self.choose(listener, now).map(|choices| {
                choices
                    .into_iter()
                    .filter_map(|(member, role, weight)| {
                        let addresses = self.members.get(&member)?.view.addresses.clone();
                        let term = self.terms.of((listener.name.clone(), member.clone(), role));
                        Some(Candidate { member, addresses, role, term, weight })
                    })
                    .collect::<Arc<[Candidate]>>()
            });
            routes.insert(listener.name.clone(), Route { target: listener.target, candidates });
        }
        self.policy.listeners = policies;
        if routes != self.table.routes {
            self.note_lost_routes(&routes);
            self.table = Arc::new(RouteTable { generation: self.table.generation + 1, routes });
            self.effects.push(Effect::Publish(Arc::clone(&self.table)));
        }
        let closed = std::mem::take(&mut self.terms.closed);
        self.effects.extend(closed.into_iter().map(Effect::Revoke));
    }

    fn note_lost_routes(&mut self, routes: &BTreeMap<ListenerName, Route>) {
        let lost: Vec<(ListenerName, NoRoute)> = routes
            .iter()
            .filter_map(|(name, route)| {
                let had = self.table.routes.get(name).is_some_and(|route| route.candidates.is_ok());
                let why = route.candidates.as_ref().err().filter(|_| had)?;
                Some((name.clone(), why.clone()))
            })
            .collect();
        for (listener, why) in lost {
            self.note(Loudness::Info, None, What::NoRoute { listener, why });
        }
    }
}
