//! The corpus of the fuzz targets on a stable toolchain: what it must be read as, and random mutations of it.
//!
//! Files named `pg15-*` and `libpq15-*` were recorded from a real server and client.
#![expect(clippy::unwrap_used, reason = "these are for tests: a missing file must fail them")]

use pointsman_core::error_response::SqlState;
use pointsman_core::startup::{FirstMessage, HotStandbyScanner, Parsed, ServerReply, StartupParser};
use proptest::prelude::*;

#[path = "../../../fuzz/src/checks.rs"]
pub mod checks;
#[path = "../../../fuzz/src/mutation.rs"]
pub mod mutation;

use mutation::{corpus, mutated};

fn file(target: &str, name: &str) -> Vec<u8> {
    corpus(target).into_iter().find(|(file, _)| file == name).unwrap().1
}

/// The last answer of the parser to a file, in a word.
fn outcome(bytes: &[u8]) -> String {
    let mut parser = StartupParser::default();
    let mut rest = bytes;
    let mut words = Vec::new();
    loop {
        match parser.feed(rest) {
            Parsed::NeedMore => return words.join(" "),
            Parsed::Bad(error) => {
                words.push(error.label());
                return words.join(" ");
            }
            Parsed::Message(message, consumed) => {
                rest = &rest[consumed..];
                words.push(match message {
                    FirstMessage::Ssl => "ssl",
                    FirstMessage::Gss => "gss",
                    FirstMessage::Cancel(_) => "cancel",
                    FirstMessage::Startup(_) => "startup",
                    FirstMessage::DirectTls => "tls",
                });
                if words.last() == Some(&"tls") {
                    return words.join(" ");
                }
            }
        }
    }
}

#[test]
fn first_messages_are_read_as_what_they_are() {
    let found: Vec<_> =
        corpus("startup").iter().map(|(name, bytes)| (name.clone(), outcome(bytes))).collect();
    let expected = [
        ("cancel-3.0", "cancel"),
        ("cancel-3.2", "cancel"),
        ("cancel-no-key", "wrong-length"),
        ("claims-1gb", "too-long"),
        ("gss-ssl-startup", "gss ssl startup"),
        ("http", "http"),
        ("libpq15-options", "startup"),
        ("libpq15-prefer", "ssl startup"),
        ("libpq15-tls", "ssl tls"),
        ("not-terminated", "not-terminated"),
        ("protocol-2", "unknown-protocol"),
        ("proxy-v1", "proxy-header"),
        ("proxy-v2", "proxy-header"),
        ("ssh", "ssh"),
        ("ssl-twice", "ssl repeated"),
    ];
    assert_eq!(found, expected.map(|(name, words)| (name.to_owned(), words.to_owned())));
}

#[test]
fn the_parameters_of_a_real_client_are_read() {
    let bytes = file("startup", "libpq15-options");
    let Parsed::Message(FirstMessage::Startup(start), _) = StartupParser::default().feed(&bytes) else {
        panic!()
    };
    assert_eq!(start.user().as_deref(), Some("ann"));
    assert_eq!(start.database().as_deref(), Some("shop"));
    assert_eq!(start.application_name().as_deref(), Some("shop-web"));
    assert_eq!(start.text("options").as_deref(), Some("-c geqo=off"));
    assert_eq!(start.text("client_encoding"), None);
}

#[test]
fn a_real_server_is_read() {
    let not_ready = ServerReply::NotReady {
        sqlstate: SqlState::CANNOT_CONNECT_NOW,
        message: "the database system is not accepting connections".to_owned(),
    };
    for (name, reply, is_standby) in [
        ("pg15-primary-login", ServerReply::Other, Some(false)),
        ("pg15-negotiated-login", ServerReply::Other, Some(false)),
        ("pg15-standby-login", ServerReply::Other, Some(true)),
        ("pg15-no-database", ServerReply::Other, None),
        ("pg15-protocol-2", ServerReply::Other, None),
        ("pg15-not-accepting", not_ready.clone(), None),
        ("pg15-negotiated-not-accepting", not_ready, None),
    ] {
        let bytes = file("server_reply", name);
        assert_eq!(ServerReply::inspect(&bytes), reply, "{name}");
        assert_eq!(HotStandbyScanner::new().feed(&bytes), is_standby, "{name}");
    }
}

#[test]
fn the_checks_hold_for_the_corpus() {
    for (_, bytes) in corpus("startup") {
        checks::startup(&bytes);
    }
    for (_, bytes) in corpus("server_reply") {
        checks::server_reply(&bytes);
    }
    for (_, bytes) in corpus("patroni_keys") {
        checks::patroni_keys(&bytes);
    }
    for (_, bytes) in corpus("rest_status") {
        checks::rest_status(&bytes);
    }
    for (_, bytes) in corpus("consul_kv") {
        checks::consul_kv(&bytes);
    }
    for (_, bytes) in corpus("sql_row") {
        checks::sql_row(&bytes);
    }
    for (_, bytes) in corpus("rest_cluster") {
        checks::rest_cluster(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_checks_hold_for_mutated_first_messages(bytes in mutated("startup")) {
        checks::startup(&bytes);
    }

    #[test]
    fn the_checks_hold_for_mutated_replies(bytes in mutated("server_reply")) {
        checks::server_reply(&bytes);
    }

    #[test]
    fn the_checks_hold_for_mutated_answers_of_consul(bytes in mutated("consul_kv")) {
        checks::consul_kv(&bytes);
    }

    #[test]
    fn the_checks_hold_for_mutated_statuses(bytes in mutated("rest_status")) {
        checks::rest_status(&bytes);
    }

    #[test]
    fn the_checks_hold_for_mutated_rows(bytes in mutated("sql_row")) {
        checks::sql_row(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_checks_hold_for_mutated_clusters(bytes in mutated("rest_cluster")) {
        checks::rest_cluster(&bytes);
    }

    #[test]
    fn the_checks_hold_for_mutated_keys(bytes in mutated("patroni_keys")) {
        checks::patroni_keys(&bytes);
    }
}
