//! What is remembered says whom to ask, never where to route.

use std::time::Duration;

use super::bench::{Bench, Word, claim, in_recovery, member, name, writable};
use crate::event::{AdminMode, Answer, AskError, Event, Status, What, Witness};
use crate::view::{Address, ClusterView, MemberRole, MemberState};

/// n1 to n3, by heart.
fn memory() -> Box<ClusterView> {
    let members = (1..=3).map(|number| {
        let mut view = member(number, MemberRole::Unknown);
        view.state = MemberState::from_patroni("remembered");
        (view.name.clone(), view)
    });
    Box::new(ClusterView { members: members.collect(), ..ClusterView::default() })
}

/// A start while the store is silent. Nobody can be reached, except those that say these words.
fn cold(words: &[(&str, Word)]) -> Bench {
    let mut bench = Bench::bare();
    for member in ["n1", "n2", "n3"] {
        bench.word(member, Err(AskError::Refused));
    }
    for (member, word) in words {
        bench.word(member, word.clone());
    }
    bench.lose_store().tell(Event::Remembered(memory()));
    bench
}

fn failsafe() -> Word {
    let status = claim(3, 100)?;
    Ok(Status { failsafe_active: true, ..status })
}

#[test]
fn nobody_is_routed_to_by_memory_alone() {
    let mut bench = cold(&[]);
    bench.after(60_000).expect_no_primary("discovering");
    assert!(bench.route("replicas").is_err());
    assert!(bench.questions("n1", bench.now.mono.earlier_by(Duration::from_secs(5))) >= 3, "it is asked");
}

#[test]
fn a_primary_whose_patroni_sees_the_store_is_followed() {
    let mut bench = cold(&[("n1", in_recovery()), ("n2", claim(3, 100))]);
    bench.after(5_000).expect_no_primary("discovering");
    bench.word("n2", claim(3, 110)).after(1_500).expect_primary("n2");
    // Reads may fall back on it: nobody else is known to be fit.
    bench.expect("replicas", &["n2"]);
}

#[test]
fn a_primary_that_may_lead_without_the_store_is_followed() {
    cold(&[("n2", failsafe())]).after(2_000).expect_primary("n2");
}

#[test]
fn a_claim_that_the_store_does_not_back_is_not_followed() {
    cold(&[("n2", writable())]).after(60_000).expect_no_primary("discovering");
}

#[test]
fn two_that_claim_the_same_timeline_are_not_chosen_between() {
    let mut bench = cold(&[("n1", failsafe()), ("n2", failsafe())]);
    bench.after(10_000).expect_no_primary("discovering");
}

#[test]
fn everybody_is_heard_before_somebody_is_chosen() {
    let mut bench = Bench::bare();
    bench.word("n1", failsafe()).word("n3", Err(AskError::Refused)).lose_store();
    bench.tell(Event::Remembered(memory())).after(500).expect_no_primary("discovering");
    bench.answers("n2", 400, Err(AskError::Refused)).after(1_000).expect_primary("n1");
}

#[test]
fn the_store_replaces_memory_and_nothing_jumps() {
    let mut bench = cold(&[("n1", failsafe())]);
    bench.after(2_000).expect_primary("n1");
    let term = bench.route("primary").unwrap()[0].term;
    for number in 1..=3 {
        let role = if number == 1 { MemberRole::Primary } else { MemberRole::Replica };
        bench.put(member(number, role)).expect_primary("n1");
    }
    bench
        .leader("n1")
        .after(1_000)
        .expect_primary("n1")
        .expect("replicas", &["n2", "n3"])
        .expect_revoked(&[]);
    assert_eq!(bench.route("primary").unwrap()[0].term, term, "sessions stay");
}

#[test]
fn memory_means_nothing_once_the_store_has_spoken() {
    let mut bench = Bench::steady();
    let routes = bench.topology.table().clone();
    bench.tell(Event::Remembered(memory())).after(3_000);
    assert_eq!(bench.topology.table(), &routes);
    bench.lose_store().tell(Event::Remembered(memory())).after(3_000).expect_primary("n1");
    bench.expect("replicas", &["n2", "n3"]).expect_revoked(&[]);
}

#[test]
fn whom_the_store_does_not_know_any_more_has_left() {
    let mut bench = cold(&[]);
    bench.after(1_000).put(member(1, MemberRole::Primary)).leader("n1").word("n1", writable()).after(40_000);
    bench.expect_primary("n1").admin("n2", AdminMode::Ready);
    assert!(bench.route("replicas").is_ok_and(|fallback| fallback[0].member == name("n1")));
    assert!(bench.notes.iter().all(|what| !matches!(what, What::Contradiction { .. })));
}

#[test]
fn a_memory_moves_nobody_who_was_followed() {
    let mut bench = cold(&[("n1", failsafe())]);
    bench.after(2_000).expect_primary("n1");
    let before = bench.route("primary").unwrap();
    let mut moved = memory();
    for view in moved.members.values_mut() {
        view.addresses = [Address { host: "10.9.9.9".to_owned(), port: 5432 }].into();
    }
    bench.tell(Event::Remembered(moved)).after(1_000);
    assert_eq!(bench.route("primary").unwrap(), before);
}

/// What a Patroni said of leading without the store was of that outage.
#[test]
fn a_word_on_failsafe_mode_grows_old() {
    let mut bench = Bench::steady();
    bench.lose_store().word("n2", failsafe().map(|status| Status { timeline: None, ..status })).after(2_000);
    bench.regain_store().silent("n2").after(40_000).lose_store();
    let claim = claim(9, 100);
    bench.policy.sql = true;
    bench.tell(Event::Policy(bench.policy.clone()));
    for _ in 0..5 {
        let asked_at = bench.now.mono;
        let outcome = claim.clone();
        bench
            .tell(Event::Answer(Answer { member: name("n2"), by: Witness::Sql, asked_at, outcome }))
            .after(500);
    }
    bench.expect_primary("n1");
}
