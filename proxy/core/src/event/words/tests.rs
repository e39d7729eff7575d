use pointsman_config::ListenerName;

use crate::event::{AdminMode, Loudness, Note, Span, What};
use crate::route::{NoRoute, RevokeReason};

/// One of each, with its sentence for the member `pg2`.
fn examples() -> Vec<(What, &'static str)> {
    let primary = ListenerName::new("primary").unwrap();
    vec![
        (What::LeaderNamed, "pg2 is the leader now"),
        (What::LeaderKeyGone, "pg2 is no longer the leader, and nobody else is"),
        (
            What::PrimaryConfirmed { by: "rest", after_ms: 163 },
            "pg2 is confirmed as primary (by Patroni's REST, after 163 ms)",
        ),
        (
            What::PrimaryConfirmed { by: "member-key", after_ms: 18_250 },
            "pg2 is confirmed as primary (by its member key, after 18.2 s)",
        ),
        (
            What::PrimaryDoubted { why: "its status was not answered" },
            "pg2 is doubted, new sessions wait until it is confirmed again: its status was not answered",
        ),
        (What::PrimaryDemoted, "pg2 says itself that it is not a primary"),
        (
            What::SwitchoverAnnounced { candidate: Some("pg3".into()) },
            "a switchover from pg2 to pg3 was announced: new sessions wait for it",
        ),
        (
            What::SwitchoverAnnounced { candidate: None },
            "a switchover away from pg2 was announced: new sessions wait for it",
        ),
        (
            What::SwitchoverAbandoned { why: "the announcement was withdrawn" },
            "the announced switchover did not happen, pg2 serves again: the announcement was withdrawn",
        ),
        (
            What::Revoked { reason: RevokeReason::LeaderChanged },
            "sessions on pg2 were cut because another member leads now",
        ),
        (What::ReplicaIn, "pg2 takes new sessions"),
        (
            What::ReplicaOut { why: "it is 20 MiB behind".to_owned() },
            "pg2 takes no new sessions: it is 20 MiB behind",
        ),
        (
            What::NoRoute { listener: primary, why: NoRoute::LeaderKeyGone { last: Some("pg1".into()) } },
            "the listener primary has no candidate: there is no leader; the last one was pg1",
        ),
        (
            What::StoreLost { error: "no endpoint answers".to_owned() },
            "the source does not answer, the last routes stay: no endpoint answers",
        ),
        (What::StoreBack { after_ms: 200_000 }, "the source answers again after 3 min 20 s"),
        (
            What::FollowedMembers { timeline: 7 },
            "the source is silent, and pg2 leads by its own word (timeline 7)",
        ),
        (
            What::Contradiction { text: "two members say primary".to_owned() },
            "sources contradict each other: two members say primary",
        ),
        (
            What::Nonsense { key: "members/pg2".to_owned(), problem: "conn_url has no port".to_owned() },
            "the store's key members/pg2 could not be understood: conn_url has no port",
        ),
        (What::Paused { paused: true }, "the cluster was paused: Patroni fails over no more"),
        (What::Paused { paused: false }, "the cluster was resumed"),
        (What::StandbyCluster { standby: true }, "the cluster became a standby cluster"),
        (What::StandbyCluster { standby: false }, "the cluster is no longer a standby cluster"),
        (What::Health { up: true, why: "" }, "pg2 answers connections again"),
        (
            What::Health { up: false, why: "connection refused" },
            "pg2 does not answer connections: connection refused",
        ),
        (What::Membership { change: "joined" }, "pg2 joined"),
        (What::Admin { mode: AdminMode::Ready }, "an operator put pg2 back into service"),
        (What::Admin { mode: AdminMode::Drain }, "an operator drains pg2: no new sessions, old ones finish"),
        (What::Admin { mode: AdminMode::Maint }, "an operator took pg2 out for maintenance"),
    ]
}

#[test]
fn every_note_is_a_sentence_that_names_the_member() {
    for (what, sentence) in examples() {
        let note = Note { loudness: Loudness::Info, member: Some("pg2".into()), what };
        assert_eq!(note.to_string(), sentence);
    }
}

#[test]
fn without_a_name_it_is_still_a_sentence() {
    assert_eq!(What::ReplicaIn.to_string(), "the member takes new sessions");
}

#[test]
fn every_label_is_announced_and_every_announced_label_is_used() {
    let mut used: Vec<_> = examples().iter().map(|(what, _)| what.label()).collect();
    used.dedup();
    assert_eq!(used, What::LABELS.to_vec(), "examples() is in the order of LABELS and has each");
}

#[test]
fn long_waits_are_said_in_hours_and_days() {
    assert_eq!(Span(273_600_000).to_string(), "3 d 4 h");
    assert_eq!(
        What::StoreBack { after_ms: 7_260_000 }.to_string(),
        "the source answers again after 2 h 1 min"
    );
}
