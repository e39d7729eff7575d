//! Two witnesses: the server itself, over SQL, and its Patroni. Where both speak, the server's own word counts.

use std::time::Duration;

use super::bench::{Bench, in_recovery, name, says, writable};
use crate::event::{Answer, AskError, Event, What, Witness};
use crate::route::RevokeReason;
use crate::view::MemberRole;

fn doubts(bench: &Bench) -> usize {
    bench.notes.iter().filter(|what| matches!(what, What::PrimaryDoubted { .. })).count()
}

fn alarms(bench: &Bench) -> String {
    bench.topology.describe(bench.now.mono).alarms.join("; ")
}

/// n1 leads, by both witnesses.
fn agreed() -> Bench {
    let mut bench = Bench::new();
    bench.sql("n1", writable()).word("n1", writable()).after(5_000).expect_primary("n1");
    bench
}

#[test]
fn the_server_alone_confirms() {
    let mut bench = Bench::new();
    bench.silent("n1").sql("n1", writable()).after(30).expect_primary("n1");
    assert_eq!(bench.topology.describe(bench.now.mono).primary.confirmed_by, Some("sql"));
}

#[test]
fn a_patroni_that_is_too_early_is_not_believed() {
    let mut bench = Bench::new();
    bench.sql("n1", in_recovery()).word("n1", writable()).after(2_000).expect_no_primary("pending");
    bench.sql("n1", writable()).after(1_000).expect_primary("n1");
    assert_eq!(bench.topology.describe(bench.now.mono).primary.confirmed_by, Some("sql"));
}

#[test]
fn a_patroni_that_denies_what_the_server_says_costs_one_doubt_and_no_session() {
    let mut bench = agreed();
    let before = doubts(&bench);
    bench.word("n1", in_recovery()).after(30_000).expect_primary("n1").expect_revoked(&[]);
    assert_eq!(doubts(&bench), before + 1, "the same doubt again and again");
    assert!(
        alarms(&bench)
            .contains("Patroni says that it takes no writes, the server itself that it takes writes")
    );
    bench.word("n1", writable()).after(5_000).expect_primary("n1");
    assert_eq!(alarms(&bench), "");
}

#[test]
fn a_patroni_that_says_it_is_stopping_makes_us_ask_the_server() {
    let mut bench = agreed();
    bench.word("n1", says(MemberRole::Primary, "stopping")).sql("n1", Err(AskError::NotReady)).after(1_500);
    bench.expect_no_primary("pending").expect_revoked(&[]);
}

#[test]
fn a_server_in_recovery_loses_its_write_sessions_whatever_its_patroni_says() {
    let mut bench = agreed();
    bench.sql("n1", in_recovery()).after(1_500).expect_no_primary("pending");
    bench.expect_revoked(&[("n1", RevokeReason::Demoted)]);
    bench.after(20_000).expect_no_primary("pending");
}

#[test]
fn both_deny_at_once_when_it_is_demoted() {
    let mut bench = agreed();
    bench.sql("n1", in_recovery()).word("n1", in_recovery()).after(1_500).expect_no_primary("pending");
    bench.expect_revoked(&[("n1", RevokeReason::Demoted)]);
}

#[test]
fn a_wrong_password_leaves_the_word_to_patroni() {
    let mut bench = Bench::new();
    bench.sql("n1", Err(AskError::Denied)).word("n1", writable()).after(2_000).expect_primary("n1");
    bench.after(60_000).expect_primary("n1").expect_revoked(&[]);
    assert_eq!(alarms(&bench), "n1 does not let us in over SQL; the log says why");
    bench.word("n1", in_recovery()).after(1_500).expect_no_primary("pending");
    bench.expect_revoked(&[("n1", RevokeReason::Demoted)]);
}

#[test]
fn a_server_that_has_said_nothing_for_three_seconds_no_longer_outranks() {
    let mut bench = agreed();
    bench.sql("n1", Err(AskError::TimedOut)).after(4_000).expect_primary("n1");
    bench.word("n1", in_recovery()).after(1_500).expect_no_primary("pending");
    bench.expect_revoked(&[("n1", RevokeReason::Demoted)]);
}

#[test]
fn a_denial_that_comes_late_raises_a_doubt_and_cuts_nobody() {
    let mut bench = agreed();
    let asked_at = bench.now.mono.earlier_by(Duration::from_millis(1_500));
    let outcome = in_recovery();
    bench.tell(Event::Answer(Answer { member: name("n1"), by: Witness::Sql, asked_at, outcome }));
    bench.expect_no_primary("pending").after(1_000).expect_primary("n1").expect_revoked(&[]);
}

/// A source that asks by itself tells what it heard. That is not the answer that is owed to a question of ours.
#[test]
fn what_a_source_heard_counts_and_leaves_our_own_question_out() {
    let mut bench = Bench::new();
    bench.silent("n1").policy.sql = true;
    bench.tell(Event::Policy(bench.policy.clone())).after(5);
    let start = bench.now.mono;
    let heard = Answer { member: name("n1"), by: Witness::Sql, asked_at: start, outcome: writable() };
    bench.tell(Event::Heard(heard)).expect_primary("n1").after(500);
    assert_eq!(bench.questions("n1", start), 0, "an answer is owed still");
}

/// A replica that was asked at the start, before it had the role, is left in peace later; so is whoever reads the alarms.
#[test]
fn who_is_not_asked_any_more_raises_no_alarm() {
    let mut bench = agreed();
    bench.sql("n2", Err(AskError::Denied)).no_leader().after(1_500);
    assert!(alarms(&bench).contains("n2 does not let us in over SQL"));
    bench.leader("n1").after(5_000);
    assert_eq!(alarms(&bench), "");
}
