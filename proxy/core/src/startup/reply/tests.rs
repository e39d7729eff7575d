use proptest::prelude::*;

use super::*;
use crate::error_response::ErrorResponse;

fn error(code: [u8; 5], message: &str) -> Vec<u8> {
    ErrorResponse::new(SqlState::parse(&code).unwrap(), message).encode()
}

fn not_ready(code: [u8; 5], message: &str) -> ServerReply {
    ServerReply::NotReady { sqlstate: SqlState::parse(&code).unwrap(), message: message.to_owned() }
}

/// The form of a server's refusal during start-up, with the fields that we pass over.
const STARTING: &[u8] = b"E\0\0\0\x55SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\
    Fpostmaster.c\0L2413\0RX\0\0";

#[test]
fn a_server_that_is_not_ready_is_recognised() {
    assert_eq!(ServerReply::inspect(STARTING), not_ready(*b"57P03", "the database system is starting up"));
    for code in [*b"57P01", *b"57P02", *b"57P03"] {
        assert_eq!(ServerReply::inspect(&error(code, "x")), not_ready(code, "x"));
    }
}

#[test]
fn everything_else_belongs_to_the_client() {
    let other: [&[u8]; 6] = [
        b"R\0\0\0\x08\0\0\0\0",
        b"R",
        &error(*b"28P01", "password authentication failed"),
        &error(*b"53300", "sorry, too many clients already"),
        b"E\0\0\0\x0cMwhat?\0\0",
        b"HTTP/1.1 400",
    ];
    for bytes in other {
        assert_eq!(ServerReply::inspect(bytes), ServerReply::Other, "{bytes:?}");
    }
}

#[test]
fn another_code_is_decided_before_the_message_is_complete() {
    let bytes = b"E\0\0\x50\0SFATAL\0C28P01\0Mpass";
    assert_eq!(ServerReply::inspect(bytes), ServerReply::Other);
    assert_eq!(ServerReply::inspect(&bytes[..bytes.len() - 7]), ServerReply::NeedMore);
}

#[test]
fn a_version_negotiation_may_come_first() {
    let negotiate = b"v\0\0\0\x0c\0\x03\0\0\0\0\0\0";
    assert_eq!(ServerReply::inspect(negotiate), ServerReply::NeedMore);
    let refused = [&negotiate[..], STARTING].concat();
    assert_eq!(ServerReply::inspect(&refused), not_ready(*b"57P03", "the database system is starting up"));
    let goes_on = [&negotiate[..], b"R"].concat();
    assert_eq!(ServerReply::inspect(&goes_on), ServerReply::Other);
    assert_eq!(ServerReply::inspect(&[&negotiate[..], negotiate].concat()), ServerReply::Other);
    assert_eq!(ServerReply::inspect(b"v\0\0\0\x03E"), ServerReply::Other);
    assert_eq!(ServerReply::inspect(b"v\xff\xff\xff\xff"), ServerReply::NeedMore);
}

#[test]
fn the_old_form_has_only_its_words() {
    assert_eq!(
        ServerReply::inspect(b"EFATAL:  the database system is shutting down\n\0"),
        not_ready(*b"57P03", "FATAL:  the database system is shutting down")
    );
    let fork = b"Ecould not fork new process for connection: Cannot allocate memory\n\0";
    assert_eq!(ServerReply::inspect(fork), ServerReply::Other);
    assert_eq!(ServerReply::inspect(&fork[..20]), ServerReply::NeedMore);
}

#[test]
fn waiting_has_an_end() {
    let mut endless = b"E\0\0\x70\0S".to_vec();
    endless.resize(ServerReply::MAX_INSPECTED - 1, b'x');
    assert_eq!(ServerReply::inspect(&endless), ServerReply::NeedMore);
    endless.push(b'x');
    assert_eq!(ServerReply::inspect(&endless), ServerReply::Other);

    let mut long_message = b"E\0\0\x70\0C57P03\0M".to_vec();
    long_message.resize(ServerReply::MAX_INSPECTED, b'x');
    let ServerReply::NotReady { message, .. } = ServerReply::inspect(&long_message) else { panic!() };
    assert_eq!(message.len(), ServerReply::MAX_INSPECTED - 13);
}

#[test]
fn answers_to_encryption_requests() {
    use EncryptionAnswer as Answer;
    for (asked, bytes, expected) in [
        (Encryption::Ssl, &b""[..], Answer::NeedMore),
        (Encryption::Ssl, b"S", Answer::Accepted),
        (Encryption::Ssl, b"N", Answer::Refused),
        (Encryption::Ssl, b"Sx", Answer::TrailingBytes),
        (Encryption::Ssl, b"G", Answer::Unexpected(b'G')),
        (Encryption::Ssl, b"HTTP/1.1", Answer::Unexpected(b'H')),
        (Encryption::Gss, b"G", Answer::Accepted),
        (Encryption::Gss, b"N", Answer::Refused),
        (Encryption::Gss, b"Gx", Answer::TrailingBytes),
        (Encryption::Gss, b"S", Answer::Unexpected(b'S')),
        (Encryption::Ssl, b"E", Answer::NeedMore),
        (Encryption::Ssl, b"Ecould not fork\0", Answer::Error(ServerReply::Other)),
    ] {
        assert_eq!(Answer::inspect(asked, bytes), expected, "{asked:?} {bytes:?}");
    }
    let Answer::Error(reply) = Answer::inspect(Encryption::Gss, STARTING) else { panic!() };
    assert_eq!(reply, ServerReply::inspect(STARTING));
}

proptest! {
    /// Once decided, more bytes do not change the decision; and every prefix of a decided reply waits or agrees.
    #[test]
    fn decisions_are_final(bytes in reply_bytes(), cut in any::<prop::sample::Index>()) {
        let shorter = ServerReply::inspect(&bytes[..cut.index(bytes.len() + 1)]);
        if shorter != ServerReply::NeedMore {
            prop_assert_eq!(shorter, ServerReply::inspect(&bytes));
        }
    }

    /// Waiting ends.
    #[test]
    fn a_full_window_is_decided(start in reply_bytes(), filler: u8) {
        let mut bytes = start;
        bytes.resize(bytes.len().max(ServerReply::MAX_INSPECTED), filler);
        prop_assert_ne!(ServerReply::inspect(&bytes), ServerReply::NeedMore);
    }
}

fn reply_bytes() -> impl Strategy<Value = Vec<u8>> {
    let field = prop_oneof![
        Just(b"C57P03\0".to_vec()),
        Just(b"C28000\0".to_vec()),
        Just(b"Mwords\0".to_vec()),
        Just(b"SFATAL\0".to_vec()),
        Just(b"\0".to_vec()),
        any::<Vec<u8>>()
    ];
    let fields = proptest::collection::vec(field, 0..6).prop_map(|fields| fields.concat());
    let error = (fields, -3i64..4).prop_map(|(fields, off_by)| {
        let length = u32::try_from((i64::try_from(fields.len()).unwrap() + 4 + off_by).max(0)).unwrap();
        [b"E".to_vec(), length.to_be_bytes().to_vec(), fields].concat()
    });
    let first = prop_oneof![Just(Vec::new()), Just(b"v\0\0\0\x04".to_vec()), any::<Vec<u8>>()];
    (first, error).prop_map(|(first, error)| [first, error].concat())
}
