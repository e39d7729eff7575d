//! Paused clusters, standby clusters, and nonsense in the store.

use super::bench::{Bench, in_recovery, says, writable};
use crate::event::What;
use crate::route::RevokeReason;
use crate::view::{Complaint, Lsn, MemberRole, Replication, Timeline, TimelineSwitch};
use pointsman_config::OnPromote;

fn paused() -> Bench {
    let mut bench = Bench::steady();
    bench.write(|store, _| store.settings.paused = true).after(1_500);
    bench
}

#[test]
fn a_paused_cluster_keeps_its_primary_without_a_key_while_it_speaks_for_itself() {
    let mut bench = paused();
    bench.no_leader().expect_primary("n1").after(30_000).expect_primary("n1");
}

#[test]
fn one_lost_answer_does_not_end_that() {
    let mut bench = paused();
    bench
        .no_leader()
        .after(2_000)
        .answers("n1", 0, Err(crate::event::AskError::TimedOut))
        .expect_primary("n1");
}

#[test]
fn but_three_seconds_of_silence_do_and_no_later() {
    let mut bench = paused();
    bench.no_leader().after(2_000).answers("n1", 0, writable()).silent("n1");
    bench.after(2_990).expect_primary("n1").after(20).expect_no_primary("leader-key-gone");
}

#[test]
fn and_so_does_another_claim() {
    let mut bench = paused();
    bench.no_leader().word("n2", writable()).after(2_500).expect_no_primary("leader-key-gone");
}

#[test]
fn a_paused_cluster_with_a_stopped_primary_has_none() {
    let mut bench = paused();
    bench.word("n1", says(MemberRole::Primary, "stopped")).no_leader().after(1_500);
    bench.expect_no_primary("leader-key-gone").expect_revoked(&[]);
}

#[test]
fn without_a_pause_a_missing_key_means_no_primary_whatever_it_says() {
    Bench::steady().no_leader().after(3_000).expect_no_primary("leader-key-gone");
}

#[test]
fn a_standby_cluster_has_no_primary_and_its_leader_serves_reads() {
    let mut bench = Bench::new();
    bench.write(|store, _| store.settings.standby_cluster = true).role(
        "n1",
        MemberRole::StandbyLeader,
        "running",
    );
    bench.after(1_000).expect_no_primary("standby-cluster").expect("replicas", &["n1", "n2", "n3"]);
}

#[test]
fn becoming_a_standby_cluster_cuts_and_refuses_at_once() {
    let mut bench = Bench::steady();
    bench.write(|store, _| store.settings.standby_cluster = true).expect_no_primary("standby-cluster");
    bench.expect_revoked(&[("n1", RevokeReason::Demoted)]);
}

#[test]
fn a_promoted_standby_cluster_is_confirmed_at_once_and_not_before() {
    let mut bench = Bench::new();
    bench.write(|store, _| store.settings.standby_cluster = true).word("n1", in_recovery()).after(120_000);
    bench.write(|store, _| store.settings.standby_cluster = false).after(200).expect_no_primary("pending");
    bench.word("n1", writable()).after(100).expect_primary("n1");
}

#[test]
fn a_switch_back_and_forth_does_not_trust_what_was_confirmed_before() {
    let mut bench = Bench::steady();
    bench.write(|store, _| store.settings.standby_cluster = true);
    bench.write(|store, _| store.settings.standby_cluster = false).expect_no_primary("pending");
}

#[test]
fn a_standby_leaders_own_word_is_a_demotion() {
    let mut bench = Bench::steady();
    bench.word("n1", says(MemberRole::StandbyLeader, "running")).after(1_500);
    bench.expect_no_primary("pending").expect_revoked(&[("n1", RevokeReason::Demoted)]);
}

/// A standby cluster of three: n1 leads and streams from elsewhere, n2 and n3 stream from n1.
fn standby() -> Bench {
    let mut bench = Bench::new();
    bench.write(|store, _| store.settings.standby_cluster = true);
    follows_elsewhere(&mut bench);
    bench.after(60_000).expect("replicas", &["n1", "n2", "n3"]);
    bench
}

fn follows_elsewhere(bench: &mut Bench) {
    bench.word("n1", says(MemberRole::StandbyLeader, "running")).member("n1", |view| {
        view.role = MemberRole::StandbyLeader;
        view.replication = Replication::Streaming;
    });
}

#[test]
fn the_leader_of_a_standby_cluster_serves_reads_while_the_other_cluster_is_away() {
    let mut bench = standby();
    bench.member("n1", |view| view.replication = Replication::NotStreaming).after(60_000);
    bench.expect("replicas", &["n1", "n2", "n3"]);
}

#[test]
fn but_its_replicas_have_to_follow_it() {
    let mut bench = standby();
    bench.member("n2", |view| view.replication = Replication::NotStreaming).after(60_000);
    bench.expect("replicas", &["n1", "n3"]);
}

#[test]
fn they_have_to_also_after_it_was_a_primary() {
    let mut bench = Bench::steady();
    bench.write(|store, _| store.settings.standby_cluster = true);
    follows_elsewhere(&mut bench);
    bench.member("n2", |view| view.replication = Replication::NotStreaming).after(60_000);
    bench.expect("replicas", &["n1", "n3"]);
}

#[test]
fn a_standby_cluster_that_follows_again_may_go_back_to_a_lower_timeline() {
    let mut bench = Bench::steady();
    bench.write(|store, _| store.history.push(TimelineSwitch { timeline: Timeline(1), end: Lsn(900) }));
    bench.write(|store, _| store.settings.standby_cluster = true);
    follows_elsewhere(&mut bench);
    bench.after(60_000).expect("replicas", &["n1", "n2", "n3"]);
}

#[test]
fn on_promote_cut_also_cuts_when_a_standby_cluster_is_promoted() {
    let mut bench = standby();
    bench.configure("replicas", |listener| listener.on_promote = OnPromote::Cut).expect_revoked(&[]);
    bench.write(|store, _| store.settings.standby_cluster = false);
    bench.expect("replicas", &["n2", "n3"]).expect_revoked(&[("n1", RevokeReason::Promoted)]);
}

/// Good and bad values may alternate, when somebody writes nonsense over Patroni's keys again and again.
#[test]
fn nonsense_is_said_once_a_minute_at_most() {
    let mut bench = Bench::steady();
    let nonsense = Complaint { key: "members/n2".to_owned(), problem: "half a JSON".to_owned() };
    let said =
        |bench: &Bench| bench.notes.iter().filter(|what| matches!(what, What::Nonsense { .. })).count();
    for _ in 0..100 {
        bench.write(|store, _| store.complaints = vec![nonsense.clone()]);
        bench.after(100).write(|store, _| store.complaints.clear());
        bench.after(100);
    }
    assert_eq!(said(&bench), 1);
    bench.after(60_000).write(|store, _| store.complaints = vec![nonsense.clone()]);
    assert_eq!(said(&bench), 2);
}
