use proptest::prelude::*;

use super::*;

fn message(length: u32, code: u32, body: &[u8]) -> Vec<u8> {
    let mut out = length.to_be_bytes().to_vec();
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(body);
    out
}

fn well_formed(code: u32, body: &[u8]) -> Vec<u8> {
    message(u32::try_from(body.len()).unwrap() + 8, code, body)
}

const V3: u32 = 196_608;

fn parse(bytes: &[u8]) -> Parsed {
    StartupParser::default().feed(bytes)
}

fn startup(body: &[u8]) -> StartupMessage {
    let parsed = parse(&well_formed(V3, body));
    let Parsed::Message(FirstMessage::Startup(startup), _) = parsed else { panic!("{parsed:?}") };
    startup
}

#[test]
fn the_requests_are_recognised() {
    assert_eq!(parse(&well_formed(SSL_REQUEST, b"")), Parsed::Message(FirstMessage::Ssl, 8));
    assert_eq!(parse(&well_formed(GSSENC_REQUEST, b"")), Parsed::Message(FirstMessage::Gss, 8));
    assert_eq!(parse(&[0x16, 3, 1, 2]), Parsed::Message(FirstMessage::DirectTls, 0));
}

#[test]
fn one_connection_may_ask_for_gss_then_tls_then_start() {
    let mut parser = StartupParser::default();
    assert_eq!(parser.feed(&well_formed(GSSENC_REQUEST, b"")), Parsed::Message(FirstMessage::Gss, 8));
    assert_eq!(parser.feed(&well_formed(SSL_REQUEST, b"")), Parsed::Message(FirstMessage::Ssl, 8));
    let last = parser.feed(&well_formed(V3, b"user\0ann\0\0"));
    assert!(matches!(last, Parsed::Message(FirstMessage::Startup(_), 18)), "{last:?}");
}

#[test]
fn an_encryption_request_is_allowed_once() {
    for (code, request) in [(SSL_REQUEST, "SSLRequest"), (GSSENC_REQUEST, "GSSENCRequest")] {
        let mut parser = StartupParser::default();
        let bytes = well_formed(code, b"");
        assert!(matches!(parser.feed(&bytes), Parsed::Message(_, 8)));
        assert_eq!(parser.feed(&bytes), Parsed::Bad(StartupError::Repeated { request }));
    }
}

#[test]
fn cancel_keys_have_4_to_256_bytes() {
    for length in [4, 32, 256] {
        let key = vec![7; length];
        let bytes = well_formed(CANCEL_REQUEST, &[&[0, 0, 1, 2][..], &key].concat());
        let request = CancelRequest { process_id: 258, key };
        assert_eq!(request.encode(), bytes);
        assert_eq!(parse(&bytes), Parsed::Message(FirstMessage::Cancel(request), bytes.len()));
    }
    for length in [0, 3, 257] {
        let bytes = well_formed(CANCEL_REQUEST, &vec![7; 4 + length]);
        assert!(matches!(parse(&bytes), Parsed::Bad(StartupError::WrongLength { .. })), "{length}");
    }
    let bytes = well_formed(CANCEL_REQUEST, b"");
    assert!(matches!(parse(&bytes), Parsed::Bad(StartupError::WrongLength { length: 8, .. })));
}

#[test]
fn a_cancel_key_is_not_shown() {
    let request = CancelRequest { process_id: 1, key: vec![222; 4] };
    assert!(!format!("{request:?}").contains("222"));
}

#[test]
fn parameters_are_read_in_order_and_the_last_one_wins() {
    let start = startup(b"user\0ann\0application_name\0psql\0options\0\0user\0bob\0\0");
    let names: Vec<_> = start.parameters().map(|(name, _)| name).collect();
    assert_eq!(names, [&b"user"[..], b"application_name", b"options", b"user"]);
    assert_eq!(start.user().as_deref(), Some("bob"));
    assert_eq!(start.database().as_deref(), Some("bob"));
    assert_eq!(start.application_name().as_deref(), Some("psql"));
    assert_eq!(start.get("options"), Some(&b""[..]));
    assert_eq!(start.get("replication"), None);
    assert_eq!(start.version().to_string(), "3.0");
}

#[test]
fn the_database_has_its_own_name() {
    assert_eq!(startup(b"user\0ann\0database\0shop\0\0").database().as_deref(), Some("shop"));
    assert_eq!(startup(b"user\0ann\0database\0\0\0").database().as_deref(), Some("ann"));
    assert_eq!(startup(b"\0").database(), None);
}

#[test]
fn text_cannot_forge_a_log_line() {
    let start = startup(b"user\0a\nb\x1b[2J\xff\0\0");
    assert_eq!(start.user().as_deref(), Some("a?b?[2J\u{fffd}"));
}

#[test]
fn replication_is_read_as_the_server_reads_it() {
    for (value, expected) in [
        ("database", Replication::Logical),
        ("true", Replication::Physical),
        ("T", Replication::Physical),
        ("yes", Replication::Physical),
        ("1", Replication::Physical),
        ("on", Replication::Physical),
        ("o", Replication::No),
        ("off", Replication::No),
        ("0", Replication::No),
        ("", Replication::No),
        ("truely", Replication::No),
    ] {
        let start = startup(format!("user\0a\0replication\0{value}\0\0").as_bytes());
        assert_eq!(start.replication(), expected, "{value}");
    }
}

#[test]
fn a_newer_minor_version_is_the_servers_business() {
    let bytes = well_formed(V3 + 9999, b"user\0a\0_pq_.x\0y\0\0");
    let Parsed::Message(FirstMessage::Startup(start), _) = parse(&bytes) else { panic!() };
    assert_eq!(start.version().to_string(), "3.9999");
    assert_eq!(start.raw(), bytes);
}

#[test]
fn parameters_must_end_with_the_message() {
    for body in [&b""[..], b"user", b"user\0", b"user\0ann", b"user\0ann\0", b"user\0ann\0\0x", b"\0\0"] {
        assert_eq!(parse(&well_formed(V3, body)), Parsed::Bad(StartupError::NotTerminated), "{body:?}");
    }
}

#[test]
fn bad_headers_have_their_own_errors() {
    for (bytes, expected) in [
        (message(7, V3, b""), StartupError::TooShort { length: 7 }),
        (message(0, V3, b""), StartupError::TooShort { length: 0 }),
        (message(10_005, V3, b""), StartupError::TooLong { length: 10_005 }),
        (message(u32::MAX, V3, b""), StartupError::TooLong { length: u32::MAX }),
        (message(9, SSL_REQUEST, b"x"), StartupError::WrongLength { request: "SSLRequest", length: 9 }),
        (message(9, 131_072, b""), StartupError::UnknownProtocol(131_072)),
        (message(9, 80_877_105, b""), StartupError::UnknownProtocol(80_877_105)),
        (b"GET / HTTP/1.1".to_vec(), StartupError::LooksLikeHttp),
        (b"POST /".to_vec(), StartupError::LooksLikeHttp),
        (b"SSH-2.0-x".to_vec(), StartupError::LooksLikeSsh),
        (b"PROXY TCP4".to_vec(), StartupError::LooksLikeProxyHeader),
        (b"\r\n\r\n\0\r\nQUIT\n".to_vec(), StartupError::LooksLikeProxyHeader),
    ] {
        let mut parser = StartupParser::default();
        assert_eq!(parser.feed(&bytes), Parsed::Bad(expected));
        assert_eq!(parser.feed(&bytes), Parsed::Bad(expected), "an error stays");
    }
}

#[test]
fn the_longest_body_is_that_of_the_server() {
    let mut body = b"user\0".to_vec();
    body.resize(9_994, b'a');
    body.extend_from_slice(b"\0\0");
    let longest = well_formed(V3, &body);
    assert_eq!(longest.len(), 10_004);
    assert!(matches!(parse(&longest), Parsed::Message(FirstMessage::Startup(_), 10_004)));
}

#[test]
fn a_claimed_length_costs_no_memory() {
    let mut parser = StartupParser::default();
    assert_eq!(parser.feed(&message(10_004, V3, b"user")), Parsed::NeedMore);
    assert!(parser.received.capacity() < 100);
    assert_eq!(parser.received().len(), 12);
}

#[test]
fn every_error_has_a_label_of_the_list() {
    for (index, error) in [
        StartupError::TooLong { length: 1 },
        StartupError::TooShort { length: 1 },
        StartupError::WrongLength { request: "x", length: 1 },
        StartupError::UnknownProtocol(131_072),
        StartupError::NotTerminated,
        StartupError::Repeated { request: "x" },
        StartupError::LooksLikeHttp,
        StartupError::LooksLikeSsh,
        StartupError::LooksLikeProxyHeader,
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(error.label(), StartupError::LABELS[index]);
    }
    assert_eq!(StartupError::UnknownProtocol(131_072).to_string(), "unsupported frontend protocol 2.0");
    assert_eq!(StartupError::UnknownProtocol(0).sqlstate().as_str(), "0A000");
    assert_eq!(StartupError::NotTerminated.sqlstate().as_str(), "08P01");
}

/// Feeds `bytes` in pieces of the given sizes, over and over, until the parser has an answer.
fn feed_in_pieces(bytes: &[u8], sizes: &[usize]) -> (Parsed, usize) {
    let mut parser = StartupParser::default();
    let mut fed = 0;
    for size in sizes.iter().cycle() {
        let piece = &bytes[fed..bytes.len().min(fed + size)];
        match parser.feed(piece) {
            Parsed::NeedMore => fed += piece.len(),
            Parsed::Message(message, consumed) => return (Parsed::Message(message, 0), fed + consumed),
            Parsed::Bad(error) => return (Parsed::Bad(error), 0),
        }
        if fed == bytes.len() {
            break;
        }
    }
    (Parsed::NeedMore, fed)
}

fn first_bytes() -> impl Strategy<Value = Vec<u8>> {
    let code = prop_oneof![
        Just(V3),
        Just(V3 + 2),
        Just(SSL_REQUEST),
        Just(GSSENC_REQUEST),
        Just(CANCEL_REQUEST),
        any::<u32>()
    ];
    let text = proptest::collection::vec(prop_oneof![Just(0u8), b'a'..=b'c'], 0..40);
    let framed = (code, text, -2i64..3, any::<Vec<u8>>()).prop_map(|(code, body, off_by, tail)| {
        let length = u32::try_from(i64::try_from(body.len()).unwrap() + 8 + off_by).unwrap();
        [message(length, code, &body), tail].concat()
    });
    prop_oneof![framed, any::<Vec<u8>>()]
}

proptest! {
    /// How the bytes are cut into pieces makes no difference, and a message takes exactly its own bytes.
    #[test]
    fn pieces_make_no_difference(bytes in first_bytes(), sizes in proptest::collection::vec(1usize..9, 1..5)) {
        let (whole, end) = feed_in_pieces(&bytes, &[bytes.len().max(1)]);
        let (pieces, pieces_end) = feed_in_pieces(&bytes, &sizes);
        prop_assert_eq!(&whole, &pieces);
        prop_assert_eq!(end, pieces_end);
        match whole {
            Parsed::Message(FirstMessage::Startup(start), _) => {
                prop_assert_eq!(start.raw(), &bytes[..end]);
                let pairs: usize = start.parameters().map(|(name, value)| name.len() + value.len() + 2).sum();
                prop_assert_eq!(pairs + 9, end);
            }
            Parsed::Message(FirstMessage::Cancel(cancel), _) => prop_assert_eq!(cancel.encode(), &bytes[..end]),
            Parsed::Message(FirstMessage::Ssl | FirstMessage::Gss, _) => prop_assert_eq!(end, 8),
            Parsed::Message(FirstMessage::DirectTls, _) => prop_assert_eq!(end, 0),
            Parsed::NeedMore | Parsed::Bad(_) => {}
        }
    }

    /// A well-formed message is understood, whatever its parameters are.
    #[test]
    fn parameters_survive(pairs in proptest::collection::vec(("[a-z_.]{1,12}", "[^\0]{0,20}"), 0..8)) {
        let mut body: Vec<u8> =
            pairs.iter().flat_map(|(name, value)| format!("{name}\0{value}\0").into_bytes()).collect();
        body.push(0);
        let start = startup(&body);
        let read: Vec<_> = start.parameters().collect();
        let expected: Vec<_> = pairs.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        prop_assert_eq!(read, expected);
    }
}
