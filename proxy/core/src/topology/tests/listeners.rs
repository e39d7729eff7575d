//! Listeners with different wishes, and operators.

use std::collections::BTreeMap;

use super::bench::{Bench, listener, writable};
use crate::event::{AdminMode, Event};
use crate::route::{GrantRole, RevokeReason};
use crate::view::Tags;
use pointsman_config::{OnPromote, Target};

#[test]
fn a_promoted_replica_keeps_its_read_sessions_by_default() {
    let mut bench = Bench::steady();
    bench.leader("n2").expect_revoked(&[("n1", RevokeReason::LeaderChanged)]);
}

#[test]
fn on_promote_cut_ends_them_on_that_listener_alone() {
    let mut bench = Bench::steady();
    bench.configure("replicas", |listener| listener.on_promote = OnPromote::Cut);
    let cut = bench.route("replicas").unwrap()[0].term;
    let kept = bench.route("async").unwrap()[0].term;
    bench.leader("n2");
    let promoted = bench.ended.iter().filter(|(_, reason)| *reason == RevokeReason::Promoted);
    let promoted: Vec<_> = promoted.map(|(term, _)| *term).collect();
    assert!(!promoted.contains(&kept));
    assert_eq!(promoted, [cut]);
}

#[test]
fn a_leader_taken_out_by_an_operator_gets_no_new_sessions_and_keeps_the_old() {
    for mode in [AdminMode::Drain, AdminMode::Maint] {
        let mut bench = Bench::steady();
        bench
            .admin("n1", mode)
            .expect_no_primary("maintenance")
            .expect("any", &["n2", "n3"])
            .expect_revoked(&[]);
        bench.admin("n1", AdminMode::Ready).expect_primary("n1");
    }
}

#[test]
fn a_replica_taken_out_by_an_operator_too() {
    let mut bench = Bench::steady();
    bench.admin("n2", AdminMode::Drain).expect("replicas", &["n3"]).expect_revoked(&[]);
    bench.admin("n2", AdminMode::Ready).expect("replicas", &["n2", "n3"]);
}

#[test]
fn a_member_in_maintenance_is_not_probed() {
    let mut bench = Bench::steady();
    bench.admin("n2", AdminMode::Maint).server("n2", false).after(10_000);
    bench.admin("n2", AdminMode::Ready).expect("replicas", &["n2", "n3"]);
}

#[test]
fn a_listener_takes_members_with_its_tags_only() {
    let zone = |zone: &str| BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
    let mut bench = Bench::steady();
    bench.member("n2", |view| view.tags = Tags { all: zone("a"), ..Tags::default() });
    bench.configure("replicas", |listener| listener.tags = zone("a")).expect("replicas", &["n2"]);
    bench.configure("async", |listener| listener.tags = zone("b")).expect("async", &["n1"]);
}

#[test]
fn the_sessions_of_a_listener_that_is_gone_are_cut() {
    let mut bench = Bench::steady();
    bench.policy.listeners.retain(|listener| listener.name.as_str() != "primary");
    bench.tell(Event::Policy(bench.policy.clone())).expect_revoked(&[("n1", RevokeReason::Reconfigured)]);
}

#[test]
fn a_listener_with_another_target_gets_new_terms() {
    let mut bench = Bench::steady();
    let before = bench.route("replicas").unwrap();
    bench.configure("replicas", |listener| listener.target = Target::Any);
    bench.expect("replicas", &["n1", "n2", "n3"]);
    bench.expect_revoked(&[("n2", RevokeReason::Reconfigured), ("n3", RevokeReason::Reconfigured)]);
    let after = bench.route("replicas").unwrap();
    assert!(after.iter().all(|new| before.iter().all(|old| old.term != new.term)));
}

#[test]
fn a_policy_that_changes_no_target_cuts_nobody() {
    let mut bench = Bench::steady();
    bench.policy.listeners.push(listener("more", Target::Replicas));
    bench.tell(Event::Policy(bench.policy.clone())).expect_revoked(&[]).expect("more", &["n2", "n3"]);
}

#[test]
fn a_candidate_that_goes_and_comes_back_has_the_same_term() {
    let mut bench = Bench::steady();
    let before = bench.route("primary").unwrap();
    bench.no_leader().leader("n1").answers("n1", 0, writable());
    assert_eq!(bench.route("primary").unwrap(), before);
    assert_eq!(before[0].role, GrantRole::Primary);
}
