//! "Primary": the leader key is a hint, a leader is pending until it is confirmed, and can be doubted.

use super::bench::{Bench, in_recovery, says, writable};
use crate::event::{DialOutcome, Event, What};
use crate::route::RevokeReason;
use crate::view::{ApiUrl, Lsn, MemberRole, Replication, Timeline};

#[test]
fn a_named_leader_is_pending_until_its_own_word_confirms_it() {
    let mut bench = Bench::new();
    bench.expect_no_primary("pending");
    bench.answers("n1", 0, says(MemberRole::Primary, "starting")).expect_no_primary("pending");
    bench.answers("n1", 0, says(MemberRole::Promoted, "running")).expect_no_primary("pending");
    bench.answers("n1", 0, writable()).expect_primary("n1");
}

#[test]
fn a_member_that_is_not_leader_is_never_believed() {
    let mut bench = Bench::new();
    bench.answers("n2", 0, writable()).expect_no_primary("pending");
    bench.role("n2", MemberRole::Primary, "running").expect_no_primary("pending");
}

#[test]
fn an_answer_to_a_question_from_before_the_naming_proves_nothing() {
    let mut bench = Bench::steady();
    bench.leader("n2").answers("n2", 5, writable()).expect_no_primary("pending");
    bench.answers("n2", 0, writable()).expect_primary("n2");
}

/// A replica that goes is told of; of one that leads from now on it would be wrong that it takes no sessions.
#[test]
fn a_new_leader_is_not_said_to_take_no_sessions() {
    let mut bench = Bench::steady();
    let gone =
        |bench: &Bench| bench.notes.iter().filter(|what| matches!(what, What::ReplicaOut { .. })).count();
    let before = gone(&bench);
    bench.leader("n2").answers("n2", 0, writable()).expect_primary("n2");
    assert_eq!(gone(&bench), before, "{:?}", bench.notes);
    bench.delete_member("n3");
    assert_eq!(gone(&bench), before + 1, "{:?}", bench.notes);
}

#[test]
fn an_answer_to_a_question_from_before_the_doubt_proves_nothing() {
    let mut bench = Bench::steady();
    bench.silent("n1").after(10);
    bench.dial("n1", DialOutcome::NotReady).answers("n1", 5, writable()).expect_no_primary("pending");
    bench.answers("n1", 0, writable()).expect_primary("n1");
}

#[test]
fn a_member_key_confirms_only_if_written_after_the_leader_key_and_the_doubt() {
    let mut bench = Bench::steady();
    bench.role("n2", MemberRole::Primary, "running").leader("n2").expect_no_primary("pending");
    bench.role("n2", MemberRole::Primary, "running").expect_primary("n2");
    bench.dial("n2", DialOutcome::NotReady).expect_no_primary("pending");
    bench.regain_store().expect_no_primary("pending");
    bench.role("n2", MemberRole::Primary, "running").expect_primary("n2");
}

#[test]
fn a_member_key_in_the_same_snapshot_as_the_leader_key_does_not_confirm() {
    let mut bench = Bench::steady();
    bench.write(|store, revision| {
        store.leader = Some(crate::view::LeaderKey { member: "n2".into(), revision });
        let key = store.members.get_mut(&"n2".into()).unwrap();
        (key.role, key.revision) = (MemberRole::Primary, revision);
    });
    bench.expect_no_primary("pending");
}

#[test]
fn a_denial_outweighs_every_member_key_written_before_it() {
    let mut bench = Bench::steady();
    bench.leader("n2");
    bench.write(|_, _| {}).answers("n2", 0, in_recovery());
    let revision = bench.store.revision;
    bench.write(|store, _| {
        store.members.get_mut(&"n2".into()).unwrap().role = MemberRole::Primary;
        store.members.get_mut(&"n2".into()).unwrap().revision = revision;
    });
    bench.expect_no_primary("pending");
}

#[test]
fn a_denial_that_was_asked_for_before_the_key_confirmed_still_counts() {
    let mut bench = Bench::steady();
    bench.leader("n2").after(10);
    bench.role("n2", MemberRole::Primary, "running").expect_primary("n2");
    bench.after(5).answers("n2", 10, in_recovery()).expect_no_primary("pending");
}

#[test]
fn a_pending_leader_is_asked_every_20_ms_then_less_and_less() {
    let mut bench = Bench::steady();
    bench.word("n2", in_recovery()).leader("n2");
    let start = bench.now.mono;
    bench.after(2_000);
    assert!((70..=101).contains(&bench.questions("n2", start)), "{}", bench.questions("n2", start));
    bench.after(20_000);
    let late = bench.now.mono;
    bench.after(10_000);
    assert!((8..=10).contains(&bench.questions("n2", late)));
}

#[test]
fn news_of_a_leader_that_is_pending_for_long_makes_us_eager_again() {
    let mut bench = Bench::steady();
    bench.word("n2", in_recovery()).leader("n2").after(30_000);
    let start = bench.now.mono;
    bench.role("n2", MemberRole::Promoted, "running").after(500);
    assert!(bench.questions("n2", start) > 15);
}

#[test]
fn a_confirmed_leader_is_asked_every_second_and_the_others_are_left_in_peace() {
    let mut bench = Bench::steady();
    let start = bench.now.mono;
    bench.after(10_000);
    assert!((8..=10).contains(&bench.questions("n1", start)));
    assert_eq!(bench.questions("n2", start), 0);
}

#[test]
fn a_leader_that_says_it_is_stopping_is_pending_and_keeps_its_sessions() {
    let mut bench = Bench::steady();
    bench.word("n1", says(MemberRole::Primary, "stopping")).after(1_200);
    bench.expect_no_primary("pending").expect_revoked(&[]);
}

#[test]
fn a_leader_that_says_it_is_in_recovery_loses_its_write_sessions() {
    let mut bench = Bench::steady();
    bench.word("n1", in_recovery()).after(1_200);
    bench.expect_no_primary("pending").expect_revoked(&[("n1", RevokeReason::Demoted)]);
}

#[test]
fn a_leader_that_is_doubted_and_then_found_in_recovery_loses_them_too() {
    let mut bench = Bench::steady();
    bench.word("n1", in_recovery()).dial("n1", DialOutcome::NotReady).expect_revoked(&[]).after(100);
    bench.expect_revoked(&[("n1", RevokeReason::Demoted)]);
}

#[test]
fn a_refused_dial_makes_it_pending_until_a_connection_is_answered_again() {
    let mut bench = Bench::steady();
    bench.server("n1", false).dial("n1", DialOutcome::Refused).expect_no_primary("pending");
    bench.after(1_000).expect_no_primary("pending"); // its word alone is not enough
    bench.server("n1", true).after(100).expect_primary("n1").expect_revoked(&[]);
}

#[test]
fn a_leader_that_fails_again_while_pending_must_be_reached_again() {
    let mut bench = Bench::steady();
    bench.silent("n1").after(2_000).dial("n1", DialOutcome::Refused).after(1_000); // probes reach it meanwhile
    bench.dial("n1", DialOutcome::Refused).answers("n1", 0, writable()).expect_no_primary("pending");
}

#[test]
fn without_rest_a_refused_leader_comes_back_by_its_key_and_a_connection() {
    let mut bench = Bench::steady();
    bench.member("n1", |view| view.api = None::<ApiUrl>).server("n1", false).dial("n1", DialOutcome::Refused);
    bench.role("n1", MemberRole::Primary, "running").after(100).expect_no_primary("pending");
    bench.server("n1", true).after(1_000).expect_primary("n1");
}

#[test]
fn one_failed_probe_is_forgiven_and_two_are_a_doubt() {
    let mut bench = Bench::steady();
    let refused = || Event::Probe { member: "n1".into(), outcome: DialOutcome::Refused };
    bench.tell(refused()).expect_primary("n1");
    bench.tell(refused()).expect_no_primary("pending");
}

#[test]
fn a_leader_whose_server_is_down_must_also_be_reached() {
    let mut bench = Bench::steady();
    bench.server("n2", false).after(5_000).expect("replicas", &["n3"]);
    bench.leader("n2").answers("n2", 0, writable()).expect_no_primary("pending");
    bench.word("n2", writable()).server("n2", true).after(100).expect_primary("n2");
}

#[test]
fn a_burst_of_server_side_closes_is_a_doubt() {
    let mut bench = Bench::steady();
    bench.after(1_500);
    for _ in 0..4 {
        bench.tell(Event::ServerClosed { member: "n1".into() }).expect_primary("n1");
    }
    bench.tell(Event::ServerClosed { member: "n1".into() }).expect_no_primary("pending").after(50);
    bench.expect_primary("n1");
    for _ in 0..5 {
        bench.tell(Event::ServerClosed { member: "n1".into() });
    }
    bench.expect_no_primary("pending"); // a second burst counts as well
}

#[test]
fn a_change_of_the_leaders_member_key_is_a_doubt() {
    for (role, state) in [
        (MemberRole::Replica, "running"),
        (MemberRole::Demoted, "stopping"),
        (MemberRole::Primary, "crashed"),
    ] {
        Bench::steady().role("n1", role, state).expect_no_primary("pending");
    }
    Bench::steady().member("n1", |view| view.position = None).expect_no_primary("pending");
    let mut bench = Bench::steady();
    bench.member("n1", |view| view.position = Some(Lsn(2_000))).expect_primary("n1");
}

#[test]
fn a_new_leader_is_not_doubted_for_its_progress_but_for_its_relapse() {
    let mut bench = Bench::steady();
    bench.leader("n2").answers("n2", 0, writable());
    bench.role("n2", MemberRole::Promoted, "running").expect_primary("n2");
    bench.role("n2", MemberRole::Demoted, "stopping").expect_no_primary("pending");
}

#[test]
fn a_leader_that_moves_is_asked_again_and_new_sessions_go_to_its_new_address() {
    let mut bench = Bench::steady();
    let moved = |view: &mut crate::view::MemberView| {
        view.addresses = vec![crate::view::Address { host: "10.0.0.9".to_owned(), port: 5432 }].into();
    };
    bench.member("n1", moved).expect_no_primary("pending").after(100).expect_primary("n1");
    assert_eq!(bench.route("primary").unwrap()[0].addresses[0].host, "10.0.0.9");
}

#[test]
fn no_leader_key_no_primary_and_the_sessions_stay() {
    let mut bench = Bench::steady();
    bench.no_leader().expect_no_primary("leader-key-gone").after(5_000);
    bench.expect_no_primary("leader-key-gone").expect_revoked(&[]);
}

#[test]
fn the_same_leader_with_a_new_key_must_speak_for_itself_again() {
    let mut bench = Bench::steady();
    bench.silent("n1").after(2_000).no_leader().leader("n1").expect_no_primary("pending");
    bench.word("n1", writable()).after(2_000).expect_primary("n1").expect_revoked(&[]);
}

#[test]
fn another_leader_ends_every_session_on_the_old_one_in_the_same_step() {
    let mut bench = Bench::steady();
    bench.member("n2", |view| view.replication = Replication::NotStreaming);
    bench.member("n3", |view| view.replication = Replication::NotStreaming).after(14_000);
    let terms = ["primary", "replicas", "any"]
        .map(|listener| bench.expect(listener, &["n1"]).route(listener).unwrap()[0].term);
    bench.leader("n2");
    assert!(terms.iter().all(|term| bench.ended.iter().any(|(ended, _)| ended == term)));
    bench.expect_no_primary("pending").expect_revoked(&[("n1", RevokeReason::LeaderChanged)]);
    let table = bench.topology.table();
    assert!(
        table
            .routes
            .values()
            .filter_map(|route| route.candidates.as_ref().ok())
            .all(|candidates| { candidates.iter().all(|candidate| candidate.member.as_str() != "n1") })
    );
}

#[test]
fn the_old_leader_is_no_candidate_for_reads_before_it_follows_the_new_one() {
    let mut bench = Bench::steady();
    bench.leader("n2").word("n2", writable()).after(100).expect("replicas", &["n3"]);
    bench.role("n1", MemberRole::Demoted, "running").expect("replicas", &["n3"]);
    bench.member("n1", |view| {
        (view.role, view.replication) = (MemberRole::Replica, Replication::NotStreaming);
    });
    bench.expect("replicas", &["n3"]);
    bench.member("n2", |view| (view.role, view.timeline) = (MemberRole::Primary, Some(Timeline(2))));
    bench.expect("replicas", &["n3"]);
    bench
        .member("n1", |view| (view.timeline, view.replication) = (Some(Timeline(2)), Replication::Streaming));
    bench.expect("replicas", &["n1", "n3"]);
}

#[test]
fn a_leader_key_that_names_nobody_never_takes_a_good_route_away_for_long() {
    let mut bench = Bench::steady();
    bench.leader("nobody").expect_no_primary("pending").after(100).expect_primary("n1").expect_revoked(&[]);
    bench.silent("n1").after(2_000).role("n1", MemberRole::Primary, "starting");
    bench.role("n1", MemberRole::Primary, "running").after(5_000).expect_no_primary("pending");
}

#[test]
fn a_leader_without_an_address_is_named_as_such_until_its_key_comes() {
    let mut bench = Bench::new();
    let mut fresh = Bench::new();
    fresh.topology = crate::topology::Topology::new(
        pointsman_config::ClusterName::new("t").unwrap(),
        fresh.policy.clone(),
        1,
    );
    fresh.leader("nobody").expect_no_primary("leader-unknown");
    bench.leader("n4").expect_no_primary("pending");
    let n4 = crate::view::MemberView { name: "n4".into(), ..bench.store.members[&"n3".into()].clone() };
    bench.word("n4", writable()).put(n4).after(100).expect_primary("n4");
}

#[test]
fn a_leader_whose_member_key_vanishes_keeps_its_last_address() {
    let mut bench = Bench::steady();
    bench.delete_member("n1").after(5_000).expect_primary("n1");
}

#[test]
fn an_announced_switchover_holds_at_once_and_keeps_the_sessions() {
    let mut bench = Bench::steady();
    bench.announce("n1", "n2", None).expect_no_primary("switchover-announced");
    bench.after(4_900).expect_no_primary("switchover-announced").expect_revoked(&[]);
}

#[test]
fn an_announcement_that_is_cleared_lets_go() {
    let mut bench = Bench::steady();
    bench.announce("n1", "n2", None).write(|store, _| store.announcement = None).expect_primary("n1");
}

#[test]
fn an_announcement_is_let_go_when_the_leader_still_takes_writes_5_s_later() {
    let mut bench = Bench::steady();
    bench.announce("n1", "n2", None).after(5_600).expect_primary("n1");
    bench.after(60_000).expect_primary("n1");
    bench.announce("n1", "n2", None).expect_no_primary("switchover-announced"); // the next sign
    bench.silent("n1").after(20_000).expect_no_primary("switchover-announced"); // nobody says that it does
}

#[test]
fn nobody_waits_for_a_switchover_that_patroni_cannot_make() {
    let mut bench = Bench::steady();
    bench.announce("n1", "nobody", None).expect_primary("n1");
    bench.announce("n1", "n1", None).expect_primary("n1"); // it leads already
    bench.delete_member("n3").announce("n1", "n3", None).expect_primary("n1");
    assert!(!bench.notes.iter().any(|note| matches!(note, What::SwitchoverAnnounced { .. })));
    let n3 = crate::view::MemberView { name: "n3".into(), ..bench.store.members[&"n2".into()].clone() };
    bench.put(n3).expect_no_primary("switchover-announced"); // now it can
}

#[test]
fn a_scheduled_switchover_holds_from_one_second_before_its_time() {
    let mut bench = Bench::steady();
    bench.announce("n1", "n2", Some(10_000)).expect_primary("n1");
    bench.after(8_990).expect_primary("n1").after(20).expect_no_primary("switchover-announced");
    bench.announce("n1", "n2", Some(60_000)).expect_primary("n1"); // put off
}

/// Our clock is ahead of Patroni's: what is scheduled seems to be overdue.
#[test]
fn a_schedule_by_a_clock_that_is_wrong_holds_for_five_seconds_at_the_most() {
    let mut bench = Bench::steady();
    bench.announce("n1", "n2", Some(0)).expect_no_primary("switchover-announced").expect_revoked(&[]);
    bench.after(5_600).expect_primary("n1").after(3_600_000).expect_primary("n1").expect_revoked(&[]);
    // Patroni does it in the end; and one that is behind sees it without having waited.
    bench.leader("n2").answers("n2", 0, writable()).expect_primary("n2");
    bench.announce("n2", "n1", Some(86_400_000)).expect_primary("n2");
    bench.leader("n1").answers("n1", 0, writable()).expect_primary("n1");
}

#[test]
fn an_announcement_for_another_leader_is_not_ours() {
    let mut bench = Bench::steady();
    bench.announce("n3", "n2", None).expect_primary("n1");
    bench.announce("n1", "n2", None).leader("n2").answers("n2", 0, writable()).expect_primary("n2");
}
