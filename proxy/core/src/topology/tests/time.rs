//! Nothing waits longer than it must, nothing spins, and no question is lost for ever.

use super::bench::{Bench, in_recovery};
use crate::event::AskError;

#[test]
fn a_question_that_is_never_answered_is_asked_again() {
    let mut bench = Bench::steady();
    bench.silent("n1");
    let start = bench.now.mono;
    bench.after(10_000);
    assert!((4..=6).contains(&bench.questions("n1", start)), "{}", bench.questions("n1", start));
}

#[test]
fn a_member_is_asked_one_question_at_a_time() {
    let mut bench = Bench::steady();
    bench.leader("n2");
    let start = bench.now.mono;
    bench.after(700);
    assert_eq!(bench.questions("n2", start), 1);
}

#[test]
fn when_the_key_is_gone_everybody_is_asked_every_second() {
    let mut bench = Bench::steady();
    for member in ["n2", "n3"] {
        bench.word(member, in_recovery());
    }
    let start = bench.now.mono;
    bench.no_leader().after(5_000);
    assert!((4..=6).contains(&bench.questions("n3", start)));
}

#[test]
fn a_member_that_left_is_forgotten_after_ten_minutes() {
    let mut bench = Bench::steady();
    bench.delete_member("n3").after(610_000);
    assert_eq!(bench.topology.describe(bench.now.mono).members.len(), 2);
}

#[test]
fn nobody_is_asked_more_than_once_a_second_for_ever() {
    let mut bench = Bench::steady();
    for member in ["n1", "n2"] {
        bench.word(member, Err(AskError::Refused));
    }
    bench.lose_store().after(60_000);
    let start = bench.now.mono;
    bench.after(100_000);
    for member in ["n1", "n2"] {
        assert!((88..=100).contains(&bench.questions(member, start)), "{}", bench.questions(member, start));
    }
}

#[test]
fn members_are_not_asked_in_step() {
    let mut bench = Bench::steady();
    for member in ["n2", "n3"] {
        bench.word(member, in_recovery());
    }
    bench.no_leader().after(20_000);
    let last = |member: &str| bench.asked.iter().rev().find(|(_, asked)| asked.as_str() == member).unwrap().0;
    assert_ne!(last("n2"), last("n3"));
}
