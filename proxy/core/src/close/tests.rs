use std::collections::BTreeSet;

use super::*;

/// One of each, in the order of [`CloseReason::ALL`], with the side and the code that the design asks for.
fn table() -> Vec<(CloseReason, Side, Option<&'static str>)> {
    use CloseReason as C;
    use Side::{Client, Server, Us};
    let held = C::HeldTooLong(Some(NoRoute::StandbyCluster));
    vec![
        (C::Closed(Peer::Client), Client, None),
        (C::Closed(Peer::Server), Server, Some("57P03")),
        (C::Reset(Peer::Client), Client, None),
        (C::Reset(Peer::Server), Server, Some("57P03")),
        (C::Lost(Peer::Client), Client, None),
        (C::Lost(Peer::Server), Server, Some("57P03")),
        (C::WriteFailed(Peer::Client), Client, None),
        (C::WriteFailed(Peer::Server), Server, Some("57P03")),
        (C::StartupTimeout, Client, Some("08P01")),
        (C::BadStartup(StartupError::NotTerminated), Client, Some("08P01")),
        (C::BadProxyHeader, Client, Some("08P01")),
        (C::Denied, Us, Some("28000")),
        (C::ListenerFull, Us, Some("53300")),
        (C::SourceLimit, Us, Some("53300")),
        (C::QueueFull, Us, Some("53300")),
        (held, Us, Some("57P03")),
        (C::LeftWhileHeld, Client, None),
        (C::DialFailed { tried: 2 }, Server, Some("57P03")),
        (C::ServerNotReady, Server, Some("57P03")),
        (C::Revoked(RevokeReason::LeaderChanged), Us, Some("57P03")),
        (C::Revoked(RevokeReason::Promoted), Us, Some("57P03")),
        (C::Revoked(RevokeReason::Demoted), Us, Some("57P03")),
        (C::Revoked(RevokeReason::Reconfigured), Us, Some("57P03")),
        (C::Drained, Us, Some("57P01")),
        (C::Killed, Us, Some("57P01")),
        (C::IdleTimeout, Us, Some("57P05")),
        (C::VipMoved, Us, Some("57P03")),
        (C::CancelDone, Client, None),
        (C::Internal("no descriptors left"), Us, Some("XX000")),
    ]
}

#[test]
fn every_reason_has_its_label_side_and_code() {
    let table = table();
    assert_eq!(table.len(), CloseReason::ALL.len());
    for ((reason, side, code), label) in table.iter().zip(CloseReason::ALL) {
        assert_eq!(reason.label(), label);
        assert_eq!(reason.side(), *side, "{label}");
        assert_eq!(reason.sqlstate().map(|code| code.to_string()).as_deref(), *code, "{label}");
    }
}

#[test]
fn labels_and_sentences_are_distinct() {
    let table = table();
    let labels: BTreeSet<_> = CloseReason::ALL.into_iter().collect();
    let sentences: BTreeSet<_> = table.iter().map(|(reason, ..)| reason.to_string()).collect();
    assert_eq!(labels.len(), table.len());
    assert_eq!(sentences.len(), table.len());
    assert!(labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
}

#[test]
fn a_bad_start_up_keeps_its_own_code_and_words() {
    let reason = CloseReason::BadStartup(StartupError::UnknownProtocol(131_072));
    assert_eq!(reason.sqlstate(), Some(SqlState::FEATURE_NOT_SUPPORTED));
    assert_eq!(reason.to_string(), "unsupported frontend protocol 2.0");
}

#[test]
fn who_was_held_too_long_is_told_why_and_may_try_again() {
    let lasting = CloseReason::HeldTooLong(Some(NoRoute::StandbyCluster));
    assert_eq!(lasting.to_string(), "no server is available: this is a standby cluster: it has no primary");
    for reason in [lasting, CloseReason::HeldTooLong(None)] {
        assert_eq!(
            (reason.label(), reason.sqlstate()),
            ("held-too-long", Some(SqlState::CANNOT_CONNECT_NOW))
        );
    }
}
