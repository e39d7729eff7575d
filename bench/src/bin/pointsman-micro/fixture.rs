//! A cluster of any size, as the parts under measurement see it.
#![expect(clippy::unwrap_used, reason = "made-up values are right, or the benchmark is wrong")]

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_config::{ClusterName, Fallback, ListenerName, OnPromote, StalePrimary, Target};
use pointsman_core::event::{Answer, Event, ListenerPolicy, Policy, Status, Witness};
use pointsman_core::route::{Candidate, GrantRole, Route, RouteTable, Term};
use pointsman_core::time::{Moment, Now, UnixMillis};
use pointsman_core::topology::Topology;
use pointsman_core::view::{
    Address, ApiUrl, ClusterView, LeaderKey, Lsn, MemberName, MemberRole, MemberState, MemberView,
    Replication, Revision, Tags, Timeline,
};

pub(crate) fn cluster_name() -> ClusterName {
    ClusterName::new("main").unwrap()
}

pub(crate) fn listener_name(name: &str) -> ListenerName {
    ListenerName::new(name).unwrap()
}

pub(crate) fn member_name(number: u64) -> MemberName {
    format!("pg{number}").as_str().into()
}

fn address(number: u64) -> Address {
    Address { host: format!("10.0.{}.{}", number / 250, number % 250), port: 5432 }
}

/// A table with `primary` on pg0 and `replicas` on the others.
pub(crate) fn table(members: u64, generation: u64) -> RouteTable {
    let candidate = |number| Candidate {
        member: member_name(number),
        addresses: Arc::new([address(number)]),
        role: if number == 0 { GrantRole::Primary } else { GrantRole::Replica },
        term: Term(number + 1),
        weight: 1,
    };
    let routes = [("primary", Target::Primary, 0..1), ("replicas", Target::Replicas, 1..members)];
    let routes = routes.map(|(name, target, members)| {
        (listener_name(name), Route { target, candidates: Ok(members.map(candidate).collect()) })
    });
    RouteTable { generation, routes: BTreeMap::from(routes) }
}

fn member(number: u64) -> MemberView {
    let primary = number == 0;
    let place = address(number);
    MemberView {
        name: member_name(number),
        api: Some(ApiUrl { tls: false, address: Address { port: 8008, ..place.clone() } }),
        addresses: vec![place].into(),
        role: if primary { MemberRole::Primary } else { MemberRole::Replica },
        state: MemberState::Running,
        version: None,
        timeline: Some(Timeline(1)),
        position: Some(Lsn(1_000)),
        replay: (!primary).then_some(Lsn(1_000)),
        replication: if primary { Replication::Unknown } else { Replication::Streaming },
        tags: Tags::default(),
        weight: 1,
        revision: Revision(1),
    }
}

/// What the store says when this member leads.
pub(crate) fn view(members: u64, leader: u64, revision: u64) -> ClusterView {
    let revision = Revision(revision);
    let members = (0..members).map(|number| (member_name(number), member(number))).collect();
    let leader = Some(LeaderKey { member: member_name(leader), revision });
    ClusterView { revision, leader, members, ..ClusterView::default() }
}

/// "I take writes", said at once.
pub(crate) fn confirmation(now: Now, leader: u64) -> Event {
    let writable = Status {
        role: MemberRole::Primary,
        state: MemberState::Running,
        timeline: None,
        position: None,
        replication: Replication::Unknown,
        dcs_last_seen: None,
        failsafe_active: false,
    };
    Event::Answer(Answer {
        member: member_name(leader),
        by: Witness::Rest,
        asked_at: now.mono,
        outcome: Ok(writable),
    })
}

/// A cluster at peace: pg0 leads and is confirmed; `primary` and `replicas` listen.
pub(crate) fn topology(members: u64) -> (Topology, Now) {
    let listener = |name, target| ListenerPolicy {
        name: listener_name(name),
        target,
        max_lag: None,
        on_promote: OnPromote::Drain,
        fallback: Fallback::Primary,
        tags: BTreeMap::new(),
    };
    let listeners = vec![listener("primary", Target::Primary), listener("replicas", Target::Replicas)];
    let policy = Policy { listeners, stale_primary: StalePrimary::Hold, sql: false };
    let mut topology = Topology::new(cluster_name(), policy, 1);
    let now = Now { mono: Moment::from_millis(1_000), wall: UnixMillis(1_800_000_000_000) };
    topology.handle(now, Event::View(Box::new(view(members, 0, 2))));
    topology.handle(now, confirmation(now, 0));
    (topology, now)
}
