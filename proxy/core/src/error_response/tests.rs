use proptest::prelude::*;

use super::*;
use crate::startup::ServerReply;

#[test]
fn the_bytes_are_those_of_the_protocol() {
    let error = ErrorResponse {
        sqlstate: SqlState::CANNOT_CONNECT_NOW,
        message: "no primary",
        detail: Some("The leader key has expired."),
        hint: Some("Try again."),
    };
    let mut expected = b"E\0\0\0\x4f".to_vec();
    expected.extend_from_slice(b"SFATAL\0VFATAL\0C57P03\0Mno primary\0");
    expected.extend_from_slice(b"DThe leader key has expired.\0HTry again.\0\0");
    assert_eq!(error.encode(), expected);
}

#[test]
fn zero_bytes_cannot_end_a_field_early() {
    let bytes = ErrorResponse::new(SqlState::INTERNAL_ERROR, "a\0Hb").encode();
    assert!(bytes.ends_with(b"MaHb\0\0"));
}

#[test]
fn a_long_text_is_cut_at_the_end_of_a_character() {
    let long = "ä".repeat(MAX_FIELD); // two bytes each
    let bytes = ErrorResponse::new(SqlState::INTERNAL_ERROR, &format!("x{long}")).encode();
    let text = &bytes[bytes.iter().position(|byte| *byte == b'M').unwrap() + 1..bytes.len() - 2];
    assert_eq!(text.len(), MAX_FIELD - 1);
    assert!(std::str::from_utf8(text).is_ok());
}

#[test]
fn codes_are_five_digits_or_capitals() {
    assert_eq!(SqlState::parse(b"57P03"), Some(SqlState::CANNOT_CONNECT_NOW));
    for bad in [&b"57P0"[..], b"57P033", b"57p03", b"57P0\xff", b"", b"57P0\n"] {
        assert_eq!(SqlState::parse(bad), None);
    }
}

proptest! {
    /// Whatever the texts: the length is right, the terminator last, and our own reader understands it.
    #[test]
    fn every_error_is_well_formed(message in any::<String>(), detail: Option<String>, hint: Option<String>) {
        let error = ErrorResponse {
            sqlstate: SqlState::CANNOT_CONNECT_NOW,
            message: &message,
            detail: detail.as_deref(),
            hint: hint.as_deref(),
        };
        let bytes = error.encode();
        let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap());
        prop_assert_eq!(usize::try_from(length).unwrap() + 1, bytes.len());
        let pieces = bytes[5..].split(|byte| *byte == 0).count();
        prop_assert_eq!(pieces, 6 + usize::from(detail.is_some()) + usize::from(hint.is_some()));
        let is_not_ready = matches!(
            ServerReply::inspect(&bytes),
            ServerReply::NotReady { sqlstate: SqlState::CANNOT_CONNECT_NOW, .. }
        );
        prop_assert!(is_not_ready);
    }
}
