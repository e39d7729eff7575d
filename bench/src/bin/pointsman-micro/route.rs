//! Routes: from an event to the table that every connection reads.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use pointsman::routes::Routes;
use pointsman_core::event::{DialOutcome, Event};

use crate::fixture::{confirmation, listener_name, member_name, table, topology, view};
use crate::{Micro, Run, micro, repeat};

pub(crate) fn all() -> Vec<Micro> {
    vec![
        micro("route/load", 10_000, load),
        micro("route/publish/2", 1000, || publish(2)),
        micro("route/publish/1000", 10, || publish(1000)),
        micro("topology/probe/3", 500, || probe(3)),
        micro("topology/probe/1000", 10, || probe(1000)),
        micro("topology/same-view/3", 200, || same_view(3)),
        micro("topology/same-view/1000", 5, || same_view(1000)),
        micro("topology/leader-change/3", 100, || leader_change(3)),
        micro("topology/leader-change/1000", 5, || leader_change(1000)),
    ]
}

/// What every connection does: the table in force, the candidates of its listener.
fn load() -> Run {
    let (routes, name) = (Routes::default(), listener_name("replicas"));
    routes.publish(Arc::new(table(3, 1)));
    repeat(move |_| {
        let published = routes.load();
        let candidates = published.route(black_box(&name)).and_then(|route| route.candidates.as_ref().ok());
        candidates.map_or(0, |candidates| candidates.len())
    })
}

fn publish(members: u64) -> Run {
    let (routes, table) = (Routes::default(), Arc::new(table(members, 1)));
    repeat(move |_| routes.publish(Arc::clone(&table)))
}

fn probe(members: u64) -> Run {
    let (mut topology, mut now) = topology(members);
    repeat(move |turn| {
        now = now + Duration::from_millis(2);
        let member = member_name(1 + turn % (members - 1));
        topology.handle(now, Event::Probe { member, outcome: DialOutcome::Served })
    })
}

/// A view in which nothing has changed but its revision.
fn same_view(members: u64) -> Run {
    let (mut topology, mut now) = topology(members);
    let mut same = view(members, 0, 2);
    repeat(move |_| {
        now = now + Duration::from_millis(20);
        same.revision.0 += 1;
        topology.handle(now, Event::View(Box::new(same.clone())))
    })
}

/// Another leader is named and confirms itself.
fn leader_change(members: u64) -> Run {
    let (mut topology, mut now) = topology(members);
    repeat(move |turn| {
        let leader = (turn + 1) % 2;
        now = now + Duration::from_secs(60);
        let named = topology.handle(now, Event::View(Box::new(view(members, leader, turn + 3))));
        now = now + Duration::from_millis(200);
        (named, topology.handle(now, confirmation(now, leader)))
    })
}
