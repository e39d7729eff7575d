//! What one event costs in a large cluster. `cargo test -p pointsman-core --test cost -- --ignored --nocapture`.

#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "it measures real time")]
#![expect(clippy::unwrap_used, reason = "a measurement")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pointsman_config::{ClusterName, Fallback, ListenerName, OnPromote, StalePrimary, Target};
use pointsman_core::event::{Answer, DialOutcome, Event, ListenerPolicy, Policy, Status, Witness};
use pointsman_core::time::{Moment, Now, UnixMillis};
use pointsman_core::topology::Topology;
use pointsman_core::view::{
    Address, ApiUrl, ClusterView, LeaderKey, Lsn, MemberName, MemberRole, MemberState, MemberView,
    Replication, Revision, Tags, Timeline,
};

const MEMBERS: u64 = 1_000;
const LISTENERS: u64 = 10;
const EVENTS: u64 = 20_000;

fn name(number: u64) -> MemberName {
    format!("n{number}").as_str().into()
}

fn member(number: u64) -> MemberView {
    let host = format!("10.0.{}.{}", number / 250, number % 250);
    let primary = number == 0;
    MemberView {
        name: name(number),
        addresses: vec![Address { host: host.clone(), port: 5432 }].into(),
        api: Some(ApiUrl { tls: false, address: Address { host, port: 8008 } }),
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

fn cluster() -> (Topology, Now) {
    let listener = |number: u64| ListenerPolicy {
        name: ListenerName::new(&format!("l{number}")).unwrap(),
        target: if number == 0 { Target::Primary } else { Target::Replicas },
        max_lag: None,
        on_promote: OnPromote::Drain,
        fallback: Fallback::Primary,
        tags: BTreeMap::new(),
    };
    let policy = Policy {
        listeners: (0..LISTENERS).map(listener).collect(),
        stale_primary: StalePrimary::Hold,
        sql: false,
    };
    let mut topology = Topology::new(ClusterName::new("large").unwrap(), policy, 1);
    let now = Now { mono: Moment::from_millis(1_000), wall: UnixMillis(1_800_000_000_000) };
    let members = (0..MEMBERS).map(|number| (name(number), member(number))).collect();
    let leader = Some(LeaderKey { member: name(0), revision: Revision(2) });
    let view = ClusterView { revision: Revision(2), leader, members, ..ClusterView::default() };
    topology.handle(now, Event::View(Box::new(view)));
    let writable = Status {
        role: MemberRole::Primary,
        state: MemberState::Running,
        timeline: None,
        position: None,
        replication: Replication::Unknown,
        dcs_last_seen: None,
        failsafe_active: false,
    };
    topology.handle(
        now,
        Event::Answer(Answer {
            member: name(0),
            by: Witness::Rest,
            asked_at: now.mono,
            outcome: Ok(writable),
        }),
    );
    (topology, now)
}

#[test]
#[ignore = "a measurement, not a test"]
fn a_probe_of_one_member_of_a_thousand() {
    let (mut topology, mut now) = cluster();
    let started = Instant::now();
    for number in 0..EVENTS {
        now = now + Duration::from_millis(2);
        let member = name(1 + number % (MEMBERS - 1));
        topology.handle(now, Event::Probe { member, outcome: DialOutcome::Served });
        std::hint::black_box(topology.poll_timeout(now));
    }
    let each = started.elapsed() / u32::try_from(EVENTS).unwrap();
    println!("{MEMBERS} members, {LISTENERS} listeners: {each:?} for one probe");
    assert!(each < Duration::from_millis(20));
}
