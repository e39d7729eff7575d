//! One check for each target. They panic when something is wrong.

use pointsman_core::startup::{
    Encryption, EncryptionAnswer, FirstMessage, HotStandbyScanner, MAX_BODY, Parsed, ServerReply,
    StartupParser,
};

/// Reads first messages until the bytes end or are refused, whole and byte by byte: both must agree.
pub fn startup(data: &[u8]) {
    let mut whole = StartupParser::default();
    let mut bytewise = StartupParser::default();
    let mut rest = data;
    for _ in 0..3 {
        let parsed = whole.feed(rest);
        let mut fed = 0;
        let mut again = Parsed::NeedMore;
        for byte in rest {
            again = bytewise.feed(std::slice::from_ref(byte));
            if let Parsed::Message(_, consumed) = &mut again {
                fed += *consumed;
                *consumed = fed;
            } else {
                fed += 1;
            }
            if again != Parsed::NeedMore {
                break;
            }
        }
        assert_eq!(parsed, again);
        assert!(whole.received().len() <= rest.len().min(4 + MAX_BODY as usize));
        match parsed {
            Parsed::NeedMore => return,
            Parsed::Bad(error) => {
                assert_eq!(whole.feed(b"GET / HTTP/1.1"), Parsed::Bad(error));
                assert!(!error.to_string().is_empty());
                return;
            }
            Parsed::Message(message, consumed) => {
                first_message(&message, &rest[..consumed]);
                if !matches!(message, FirstMessage::Ssl | FirstMessage::Gss) {
                    return;
                }
                rest = &rest[consumed..];
            }
        }
    }
    panic!("each encryption request is allowed once, so the third message is the last");
}

fn first_message(message: &FirstMessage, raw: &[u8]) {
    match message {
        FirstMessage::Ssl | FirstMessage::Gss => assert_eq!(raw.len(), 8),
        FirstMessage::DirectTls => assert!(raw.is_empty()),
        FirstMessage::Cancel(cancel) => assert_eq!(cancel.encode(), raw),
        FirstMessage::Startup(start) => {
            assert_eq!(start.raw(), raw);
            let parameters: usize =
                start.parameters().map(|(name, value)| name.len() + value.len() + 2).sum();
            assert_eq!(parameters + 9, raw.len());
            for text in [start.user(), start.database(), start.application_name()].into_iter().flatten() {
                assert!(!text.chars().any(char::is_control));
            }
            let _ = start.replication();
        }
    }
}

/// Judges the bytes as a server's answer: a decision is final, and comes within the bound.
pub fn server_reply(data: &[u8]) {
    let last = ServerReply::inspect(data);
    assert!(last != ServerReply::NeedMore || data.len() < ServerReply::MAX_INSPECTED);
    let ends = (0..data.len().min(ServerReply::MAX_INSPECTED)).step_by(1 + data.len() / 64);
    for prefix in ends.filter_map(|end| data.get(..end)) {
        let early = ServerReply::inspect(prefix);
        assert!(early == ServerReply::NeedMore || early == last);
    }
    if let ServerReply::NotReady { message, .. } = last {
        assert!(!message.chars().any(char::is_control));
    }
    for asked in [Encryption::Ssl, Encryption::Gss] {
        let needs_more = EncryptionAnswer::inspect(asked, data) == EncryptionAnswer::NeedMore;
        assert!(!needs_more || data.is_empty() || data.starts_with(b"E"));
    }

    let (mut whole, mut bytewise) = (HotStandbyScanner::new(), HotStandbyScanner::new());
    let found = whole.feed(data);
    let again = data.iter().map(|byte| bytewise.feed(std::slice::from_ref(byte))).last().flatten();
    assert_eq!(found, again);
    assert!(found.is_none() || whole.is_done());
}
