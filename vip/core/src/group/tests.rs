//! Who lives, and by whose word.

use super::*;

const HEARTBEAT: Duration = Duration::from_millis(10);

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn at(millis: u64) -> Moment {
    Moment::from_start(Duration::from_millis(millis))
}

fn group(others: &[&str]) -> Group {
    Group::new(others.iter().map(|name| node(name)), HEARTBEAT)
}

fn sees(list: &[(&str, Sight)]) -> Report {
    Report { sees: list.iter().map(|(name, sight)| (node(name), *sight)).collect(), ..Report::default() }
}

#[test]
fn three_missing_heartbeats_are_a_loss() {
    let mut group = group(&["lb2", "lb3"]);
    assert_eq!(group.report(at(0), &node("lb2"), Report::default()), Some(PeerNews::Alive));
    assert_eq!(group.deadline(), Some(at(30)));
    assert_eq!(group.tick(at(29)), []);
    assert_eq!(group.tick(at(30)), [(node("lb2"), PeerNews::Lost(Loss::Silent))]);
    assert_eq!(group.tick(at(31)), [], "said once");
    assert_eq!(group.report(at(40), &node("lb2"), Report::default()), Some(PeerNews::Alive));
}

#[test]
fn a_host_never_heard_of_is_not_lost() {
    let mut group = group(&["lb2"]);
    assert_eq!(group.wire(at(5), &node("lb2"), Wire::Ended), None);
    assert_eq!(group.agreed(&node("lb2")), None);
    assert_eq!(group.tick(at(1000)), []);
}

#[test]
fn who_has_ended_says_nothing_any_more() {
    let mut group = group(&["lb2"]);
    group.wire(at(0), &node("lb2"), Wire::Connected);
    assert_eq!(group.wire(at(1), &node("lb2"), Wire::Ended), Some(PeerNews::Lost(Loss::Ended)));
    assert_eq!(group.report(at(2), &node("lb2"), Report::default()), None, "a datagram that came late");
    assert!(!group.is_alive(&node("lb2")));
    assert_eq!(group.wire(at(3), &node("lb2"), Wire::Connected), Some(PeerNews::Alive));
}

#[test]
fn a_broken_connection_is_no_loss() {
    let mut group = group(&["lb2"]);
    group.wire(at(0), &node("lb2"), Wire::Connected);
    assert_eq!(group.wire(at(1), &node("lb2"), Wire::Broken), None);
    assert!(group.is_alive(&node("lb2")));
}

#[test]
fn a_farewell_is_no_loss() {
    let mut group = group(&["lb2", "lb3"]);
    group.wire(at(0), &node("lb2"), Wire::Connected);
    assert_eq!(group.wire(at(1), &node("lb2"), Wire::Farewell), Some(PeerNews::Farewell));
    assert_eq!(group.wire(at(2), &node("lb2"), Wire::Ended), None);
    assert_eq!(group.agreed(&node("lb2")), None);
}

#[test]
fn more_than_half_have_to_agree() {
    let mut group = group(&["lb2", "lb3"]);
    group.wire(at(0), &node("lb2"), Wire::Connected);
    group.report(at(0), &node("lb3"), sees(&[("lb2", Sight::Alive)]));
    group.wire(at(1), &node("lb2"), Wire::Ended);
    assert_eq!(group.agreed(&node("lb2")), None, "one of three");
    group.report(at(2), &node("lb3"), sees(&[("lb2", Sight::Lost)]));
    assert_eq!(group.agreed(&node("lb2")), Some((Loss::Ended, 2)));
    group.tick(at(40));
    assert_eq!(group.agreed(&node("lb2")), None, "the word of one who is lost himself counts no more");
}

#[test]
fn of_two_hosts_an_end_is_enough_and_silence_is_not() {
    let mut group = group(&["lb2"]);
    group.wire(at(0), &node("lb2"), Wire::Connected);
    group.tick(at(30));
    assert_eq!(group.agreed(&node("lb2")), None);
    group.wire(at(31), &node("lb2"), Wire::Ended);
    assert_eq!(group.agreed(&node("lb2")), Some((Loss::Ended, 1)));
}

#[test]
fn nobody_is_blamed_for_our_own_pause() {
    let mut group = group(&["lb2"]);
    group.report(at(0), &node("lb2"), Report::default());
    group.forgive(at(500));
    assert_eq!(group.tick(at(500)), []);
    assert_eq!(group.tick(at(530)), [(node("lb2"), PeerNews::Lost(Loss::Silent))]);
}

#[test]
fn a_new_list_keeps_what_is_known() {
    let mut group = group(&["lb2", "lb3"]);
    group.wire(at(0), &node("lb2"), Wire::Connected);
    group.reconfigure([node("lb2"), node("lb4")], Duration::from_millis(30));
    assert!(group.is_alive(&node("lb2")));
    assert_eq!(group.sees(), BTreeMap::from([(node("lb2"), Sight::Alive), (node("lb4"), Sight::Unknown)]));
    assert_eq!(group.deadline(), Some(at(90)));
}
