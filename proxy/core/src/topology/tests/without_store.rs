//! "Without the store": static stability, the members' own word, staleness.

use super::bench::{Bench, Word, claim, in_recovery, writable};
use crate::event::{AskError, DialOutcome, Event, Status, What};
use crate::route::RevokeReason;
use crate::view::{MemberView, Replication};
use pointsman_config::StalePrimary;

#[test]
fn the_last_routes_stay_when_the_store_falls_silent() {
    let mut bench = Bench::steady();
    bench.lose_store().expect_primary("n1").expect("replicas", &["n2", "n3"]);
    bench.after(60_000).expect_primary("n1").expect("replicas", &["n2", "n3"]).expect_revoked(&[]);
}

#[test]
fn the_leader_is_asked_at_once_when_the_store_is_lost() {
    let mut bench = Bench::steady();
    bench.after(1_000).silent("n1").word("n1", in_recovery());
    let start = bench.now.mono;
    bench.lose_store().after(30);
    assert!(bench.questions("n1", start) >= 1);
    bench.expect_no_primary("pending").expect_revoked(&[("n1", RevokeReason::Demoted)]);
}

#[test]
fn a_store_that_gives_no_sign_of_life_is_lost() {
    let mut bench = Bench::steady();
    bench.store_heard = false;
    bench.after(15_000);
    assert!(bench.notes.iter().any(|what| matches!(what, What::StoreLost { .. })));
}

#[test]
fn a_leader_that_nobody_confirms_for_a_ttl_is_held() {
    let mut bench = Bench::steady();
    bench.silent("n1").lose_store().after(28_000).expect_primary("n1");
    bench.after(2_100).expect_no_primary("stale").expect_revoked(&[]);
    bench.word("n1", writable()).after(2_000).expect_primary("n1");
}

#[test]
fn or_routed_to_if_so_configured() {
    let mut bench = Bench::steady();
    bench.policy.stale_primary = StalePrimary::Route;
    bench.tell(Event::Policy(bench.policy.clone()));
    bench.silent("n1").lose_store().after(120_000).expect_primary("n1");
}

#[test]
fn a_claim_is_followed_if_its_timeline_is_higher_and_its_patroni_sees_the_store() {
    let mut bench = Bench::steady();
    bench.lose_store().word("n2", claim(2, 100)).after(3_000).expect_primary("n1");
    bench.word("n2", claim(2, 110)).after(1_500).expect_primary("n2");
    bench.expect_revoked(&[("n1", RevokeReason::LeaderChanged)]);
}

#[test]
fn a_claim_on_the_leaders_own_timeline_is_not_followed() {
    let mut bench = Bench::steady();
    bench.lose_store().word("n2", claim(1, 100)).after(3_000);
    bench.word("n2", claim(1, 110)).after(3_000).expect_primary("n1");
}

#[test]
fn a_patroni_that_lives_on_memory_is_not_followed() {
    let mut bench = Bench::steady();
    // It saw the store when we last spoke, long before the silence.
    bench.no_leader().word("n2", claim(2, 100)).after(3_000).leader("n1").after(3_000);
    bench.word("n2", claim(2, 500)).lose_store().after(10_000).expect_primary("n1");
}

#[test]
fn a_patroni_that_saw_the_store_once_and_then_no_more_is_not_followed() {
    let mut bench = Bench::steady();
    bench.lose_store().word("n2", claim(1, 100)).after(2_500);
    bench.word("n2", claim(1, 110)).after(40_000).word("n2", claim(2, 110)).after(5_000);
    bench.expect_primary("n1");
}

#[test]
fn failsafe_mode_excuses_a_stale_dcs_last_seen() {
    let mut bench = Bench::steady();
    let failsafe = claim(2, 100).map(|status| Status { failsafe_active: true, ..status });
    bench.lose_store().word("n2", failsafe).after(2_500).expect_primary("n2");
}

#[test]
fn of_two_claims_on_one_timeline_neither_is_followed() {
    let mut bench = Bench::steady();
    for member in ["n2", "n3"] {
        bench.word(member, claim(2, 100).map(|status| Status { failsafe_active: true, ..status }));
    }
    bench.no_leader().after(2_500).lose_store();
    bench.expect_no_primary("leader-key-gone").expect_revoked(&[]);
}

#[test]
fn the_last_leader_may_take_up_what_a_vanished_key_took_from_it() {
    let mut bench = Bench::steady();
    bench.no_leader().lose_store().expect_no_primary("leader-key-gone");
    bench.word("n1", claim(1, 100)).after(2_500).expect_no_primary("leader-key-gone");
    bench.word("n1", claim(1, 110)).after(2_500).expect_primary("n1");
    bench.regain_store().expect_primary("n1"); // nothing jumps, but it has a ttl to take the key
    bench.after(30_100).expect_no_primary("leader-key-gone");
}

#[test]
fn a_store_that_blinks_during_an_election_gives_the_old_leader_nothing() {
    let mut bench = Bench::steady();
    bench.no_leader().lose_store().after(500).expect_no_primary("leader-key-gone");
    bench.regain_store().after(2_000).expect_no_primary("leader-key-gone");
}

#[test]
fn when_the_store_comes_back_nothing_jumps() {
    let mut bench = Bench::steady();
    bench.lose_store().after(10_000).regain_store().expect_primary("n1").expect_revoked(&[]);
    bench.lose_store().word("n2", claim(2, 100)).after(3_000).word("n2", claim(2, 110)).after(3_000);
    bench.expect_primary("n2").leader("n2").expect_primary("n2");
}

#[test]
fn a_silent_patroni_is_no_reason_to_doubt_its_leader() {
    let mut bench = Bench::steady();
    bench.word("n1", Err(AskError::Refused)).after(60_000).expect_primary("n1");
}

/// The store was away for longer than a ttl: every lease has expired, and it comes back empty.
#[test]
fn nothing_jumps_when_the_store_comes_back_without_anybodys_keys() {
    let mut bench = Bench::steady();
    let before = (bench.route("primary"), bench.route("replicas"));
    bench.lose_store().after(60_000);
    let full = bench.store.clone();
    bench.store.leader = None;
    bench.store.members.clear();
    bench.regain_store().expect_primary("n1").expect("replicas", &["n2", "n3"]);
    bench.after(2_000).expect_primary("n1").expect("replicas", &["n2", "n3"]);
    for member in full.members.into_values() {
        bench.put(member).expect_primary("n1").expect("replicas", &["n2", "n3"]);
    }
    bench.leader("n1").expect_primary("n1").after(60_000);
    assert_eq!(before, (bench.route("primary"), bench.route("replicas")));
    assert!(!bench.notes.iter().any(|what| matches!(what, What::Membership { change: "left" })));
    // From then on a key that is gone is gone.
    bench.no_leader().expect_no_primary("leader-key-gone");
}

#[test]
fn who_does_not_come_back_with_the_store_has_a_ttl() {
    let mut bench = Bench::steady();
    bench.lose_store().after(60_000);
    bench.store.leader = None;
    bench.store.members.clear();
    bench.regain_store().after(29_000).expect_primary("n1").expect("replicas", &["n2", "n3"]);
    bench.after(1_100).expect_no_primary("leader-key-gone").expect_none("replicas", "no-replica");
}

#[test]
fn a_leader_that_gave_up_while_the_store_was_away_is_not_routed_to_when_it_comes_back() {
    let mut bench = Bench::steady();
    bench.lose_store().after(60_000);
    bench.store.leader = None;
    bench.regain_store().expect_primary("n1").word("n1", in_recovery());
    bench.after(400).expect_no_primary("leader-key-gone").expect_revoked(&[("n1", RevokeReason::Demoted)]);
}

/// "I am a running replica, and this is my replication."
fn replicates(replication: Replication) -> Word {
    in_recovery().map(|status| Status { replication, ..status })
}

fn not_streaming(view: &mut MemberView) {
    view.replication = Replication::NotStreaming;
}

/// Patroni's replicas find the store without a leader key and let go of a primary that goes on by its own word.
#[test]
fn who_lets_go_of_a_leader_without_a_key_when_the_store_comes_back_serves_all_the_same() {
    let mut bench = Bench::steady();
    bench.lose_store().after(60_000);
    let full = bench.store.clone();
    bench.store.leader = None;
    bench.store.members.clear();
    bench.regain_store().after(200).expect_primary("n1").expect("replicas", &["n2", "n3"]);
    for member in full.members.into_values() {
        bench.put(member);
    }
    bench.member("n2", not_streaming).member("n3", not_streaming).expect("replicas", &["n2", "n3"]);
    bench.after(20_000).expect_primary("n1").expect("replicas", &["n2", "n3"]);
    bench.leader("n1").after(29_000).expect_primary("n1").expect("replicas", &["n2", "n3"]);
    bench.after(1_100).expect("replicas", &["n1"]);
}

#[test]
fn no_excuse_runs_out_while_the_store_is_silent() {
    for unrest in [false, true] {
        let mut bench = Bench::steady();
        if unrest {
            bench.leader("n1").after(100).expect_primary("n1");
        }
        bench.member("n2", not_streaming).member("n3", not_streaming).after(5_000);
        bench.lose_store().after(600_000).expect_primary("n1").expect("replicas", &["n2", "n3"]);
        let rest = if unrest { 24_800 } else { 7_900 };
        bench.regain_store().after(rest).expect("replicas", &["n2", "n3"]);
        bench.after(200).expect("replicas", &["n1"]);
    }
}

#[test]
fn unless_a_member_itself_says_that_it_does_not_stream() {
    let mut bench = Bench::steady();
    bench.lose_store().after(5_000).word("n2", replicates(Replication::NotStreaming));
    bench.after(12_000).expect("replicas", &["n2", "n3"]).after(2_300).expect("replicas", &["n3"]);
    // Its last word counts for as long as the store is silent.
    bench.silent("n2").after(60_000).expect("replicas", &["n3"]);
    bench.word("n2", replicates(Replication::Streaming)).after(1_500).expect("replicas", &["n2", "n3"]);
}

#[test]
fn who_streams_by_its_own_word_serves_again_before_the_store_says_so() {
    let mut bench = Bench::steady();
    bench.member("n2", not_streaming).after(20_000).expect("replicas", &["n3"]);
    bench.word("n2", replicates(Replication::Streaming)).lose_store().after(10);
    bench.expect("replicas", &["n2", "n3"]);
    // The store comes back with the old key: it has until Patroni's next look.
    bench.regain_store().after(13_000).expect("replicas", &["n2", "n3"]);
    bench.after(3_100).expect("replicas", &["n3"]);
}

#[test]
fn who_was_left_behind_while_the_store_was_silent_is_not_excused_when_it_is_back() {
    let mut bench = Bench::steady();
    bench.member("n2", not_streaming).after(1_000);
    bench.lose_store().word("n2", replicates(Replication::NotStreaming)).after(60_000);
    bench.expect("replicas", &["n3"]).regain_store().expect("replicas", &["n3"]);
    bench.leader("n1").after(100).expect_primary("n1").expect("replicas", &["n3"]);
    // A newer key outweighs its word.
    bench.member("n2", |view| view.replication = Replication::Streaming).expect("replicas", &["n2", "n3"]);
}

#[test]
fn who_lets_go_of_a_leader_that_the_members_named_has_30_s_from_its_key() {
    let mut bench = Bench::steady();
    bench.no_leader().lose_store().word("n1", claim(1, 100)).after(2_500).word("n1", claim(1, 110));
    bench.after(60_000).expect_primary("n1");
    bench.store_heard = true;
    bench.leader("n1").member("n2", not_streaming).member("n3", not_streaming).after(29_000);
    bench.expect_primary("n1").expect("replicas", &["n2", "n3"]).after(1_100).expect("replicas", &["n1"]);
}

#[test]
fn unrest_while_the_store_was_silent_excuses_for_30_s_at_most_when_it_is_back() {
    let mut bench = Bench::steady();
    bench.lose_store().after(600_000).dial("n1", DialOutcome::Refused).after(600_000).expect_primary("n1");
    bench.regain_store().after(2_000).member("n2", not_streaming).after(27_900);
    bench.expect("replicas", &["n2", "n3"]).after(200).expect("replicas", &["n3"]);
}
