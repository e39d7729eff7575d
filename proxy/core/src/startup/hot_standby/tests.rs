use proptest::prelude::*;

use super::*;

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// What a server sends after a password was accepted.
fn login(hot_standby: Option<&str>) -> Vec<u8> {
    let mut out = message(b'R', &[0; 4]);
    out.extend(message(b'S', b"application_name\0a name longer than everything we would keep\0"));
    out.extend(message(b'S', b"is_superuser\0on\0"));
    if let Some(value) = hot_standby {
        out.extend(message(b'S', format!("in_hot_standby\0{value}\0").as_bytes()));
    }
    out.extend(message(b'K', &[1; 8]));
    out.extend(message(b'Z', b"I"));
    out
}

#[test]
fn the_role_is_found() {
    for (value, expected) in
        [(Some("on"), Some(true)), (Some("off"), Some(false)), (Some("odd"), None), (None, None)]
    {
        let mut scanner = HotStandbyScanner::new();
        assert_eq!(scanner.feed(&login(value)), expected);
        assert!(scanner.is_done());
    }
}

#[test]
fn nothing_after_ready_for_query_counts() {
    let mut scanner = HotStandbyScanner::new();
    assert_eq!(scanner.feed(&login(None)), None);
    assert_eq!(scanner.feed(&message(b'S', b"in_hot_standby\0on\0")), None);
}

#[test]
fn what_is_known_stays() {
    let mut scanner = HotStandbyScanner::new();
    assert_eq!(scanner.feed(&login(Some("on"))), Some(true));
    assert_eq!(scanner.feed(&login(Some("off"))), Some(true));
}

#[test]
fn nonsense_ends_the_scan() {
    for bytes in [&b"HTTP/1.1 400 Bad Request"[..], b"S\0\0\0\x03", b"E\0\0\0\x05\0", b"S\0\0\0\0"] {
        let mut scanner = HotStandbyScanner::new();
        assert_eq!(scanner.feed(bytes), None);
        assert!(scanner.is_done(), "{bytes:?}");
    }
}

#[test]
fn scanning_has_an_end_and_keeps_nothing() {
    let mut scanner = HotStandbyScanner::new();
    assert_eq!(scanner.feed(b"R\x7f\xff\xff\xff"), None);
    for _ in 0..HotStandbyScanner::MAX_SCANNED / 1024 {
        assert_eq!(scanner.feed(&[0; 1024]), None);
    }
    assert!(scanner.is_done());
    assert_eq!(scanner.message.capacity(), 0);
}

proptest! {
    /// How the stream is cut makes no difference.
    #[test]
    fn pieces_make_no_difference(
        value in prop_oneof![Just(None), Just(Some("on")), Just(Some("off"))],
        damage in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
        size in 1usize..30,
    ) {
        let mut bytes = login(value);
        if let Some((place, byte)) = damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let mut whole = HotStandbyScanner::new();
        let mut pieces = HotStandbyScanner::new();
        let expected = whole.feed(&bytes);
        let found = bytes.chunks(size).map(|piece| pieces.feed(piece)).last().flatten();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(whole.is_done(), pieces.is_done());
        prop_assert!(pieces.message.len() <= HotStandbyScanner::HEADER + HotStandbyScanner::MAX_KEPT_BODY);
    }
}
