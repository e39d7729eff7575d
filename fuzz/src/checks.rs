//! One check for each target. They panic when something is wrong.

use pointsman_core::consul::{KvEntry, MAX_KEYS, parse_kv};
use pointsman_core::event::AskError;
use pointsman_core::patroni::{Asked, Keyspace, Polls, Verdict, parse_cluster, parse_status};
use pointsman_core::startup::{
    Encryption, EncryptionAnswer, FirstMessage, HotStandbyScanner, MAX_BODY, Parsed, ServerReply,
    StartupParser,
};
use pointsman_core::time::Moment;
use pointsman_core::view::{Address, ApiUrl, ClusterView, MemberName, Revision};

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

/// Reads the bytes as changes of Patroni's keys, one for each line: a key, a tab, its value; without a tab the
/// key is deleted. Whatever they are, a change touches no other key; what makes no sense takes nothing away and
/// is complained about; and a full read of what was written last brings the same view.
pub fn patroni_keys(data: &[u8]) {
    let mut keys = Keyspace::new();
    let mut before = keys.view();
    for (revision, line) in (1..).map(Revision).zip(data.split(|byte| *byte == b'\n').take(200)) {
        let mut parts = line.splitn(2, |byte| *byte == b'\t');
        let Ok(key) = std::str::from_utf8(parts.next().unwrap_or_default()) else { continue };
        match parts.next() {
            Some(value) => keys.put(key, value, revision),
            None => keys.delete(key, revision),
        }
        let after = keys.view();
        assert!(after.revision == revision, "a change shows its revision");
        let complained = after.complaints.iter().find(|complaint| complaint.key == key);
        if complained.is_some_and(|complaint| !complaint.problem.starts_with("it names ")) {
            let quiet = |view: &ClusterView| ClusterView { revision, complaints: Vec::new(), ..view.clone() };
            assert_eq!(quiet(&before), quiet(&after), "nonsense changes nothing");
        }
        for member in after.members.values() {
            assert!(!member.addresses.is_empty() && member.addresses.iter().all(|to| to.port != 0));
        }
        assert!(after.complaints.iter().all(|complaint| complaint.problem.len() < 1000));
        before = after;
    }
    let revision = before.revision;
    keys.replace_all(revision, []);
    assert_eq!(keys.view(), ClusterView { revision, ..ClusterView::default() });
}

/// Reads the bytes as an answer of Consul's KV store: what was read, written down again, is read again; a key that
/// was not asked for is never taken; and whatever it holds, Patroni's keys can be made of it.
pub fn consul_kv(data: &[u8]) {
    const PREFIX: &str = "service/demo/";
    let entries = match parse_kv(data, PREFIX) {
        Ok(entries) => entries,
        Err(error) => {
            let why = error.to_string();
            return assert!(!why.is_empty() && why.len() < 1000);
        }
    };
    assert!(entries.len() <= MAX_KEYS && entries.len() <= data.len());
    assert!(entries.iter().all(|entry| !entry.key.is_empty()));
    let plain = |entry: &&KvEntry| !entry.key.contains(['"', '\\']) && !entry.key.contains(char::is_control);
    let plain: Vec<_> = entries.iter().filter(plain).collect();
    let written = plain.iter().map(|KvEntry { key, value, revision }| {
        format!(r#"{{"Key":"{PREFIX}{key}","Value":"{}","ModifyIndex":{}}}"#, base64(value), revision.0)
    });
    let again = format!("[{}]", written.collect::<Vec<_>>().join(","));
    let again = parse_kv(again.as_bytes(), PREFIX).expect("what was written is read");
    assert_eq!(again.iter().collect::<Vec<_>>(), plain);
    let stranger = parse_kv(data, "elsewhere/");
    assert!(entries.is_empty() || stranger.is_err());

    let mut keys = Keyspace::new();
    let all = entries.iter().map(|entry| (entry.key.as_str(), entry.value.as_slice(), entry.revision));
    keys.replace_all(Revision(1), all);
    let view = keys.view();
    assert!(view.members.keys().all(|name| !name.as_str().is_empty()));
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = bytes.chunks(3).flat_map(|chunk| {
        let bits = (0..3).fold(0_usize, |bits, at| bits << 8 | usize::from(*chunk.get(at).unwrap_or(&0)));
        (0..4).map(move |place| {
            if place <= chunk.len() { char::from(alphabet[bits >> (18 - 6 * place) & 63]) } else { '=' }
        })
    });
    letters.collect()
}

/// Reads the bytes as a member's REST status: an answer is of the member that was asked, or it is none.
pub fn rest_status(data: &[u8]) {
    let member = MemberName::from("n1");
    match parse_status(data, "demo", &member) {
        Ok(_) => {
            // Whoever answers for this scope does not answer for another.
            let other = parse_status(data, "other", &member);
            assert!(matches!(other, Err((AskError::Stranger, _))));
        }
        Err((error, why)) => {
            assert!(matches!(error, AskError::Stranger | AskError::Nonsense));
            assert!(!why.is_empty() && why.len() < 1000);
        }
    }
}

/// Reads each line as an answer to `GET /cluster`, of one Patroni after the other. Whatever they say, each view is newer
/// than the last, and an answer that makes no sense or does not count changes nothing but complaints.
pub fn rest_cluster(data: &[u8]) {
    let mut polls = Polls::new();
    let mut last = ClusterView::default();
    for (number, line) in (0_u64..).zip(data.split(|byte| *byte == b'\n').take(50)) {
        let answer = match parse_cluster(line, "demo") {
            Ok(answer) => answer,
            Err((error, why)) => {
                assert!(matches!(error, AskError::Stranger | AskError::Nonsense));
                assert!(!why.is_empty() && why.len() < 5000);
                continue;
            }
        };
        let address = Address { host: "10.0.0.1".to_owned(), port: 8000 + u16::from(number % 3 == 0) };
        let at = Moment::from_millis(number * 100);
        let whom = ApiUrl { tls: false, address };
        let verdict = polls.take_cluster(&Asked { whom, asked_at: at, answered_at: at }, answer);
        let Some(view) = polls.settle(at) else { continue };
        assert!(view.revision > last.revision);
        for member in view.members.values() {
            assert!(!member.addresses.is_empty() && member.addresses.iter().all(|to| to.port != 0));
            assert!(member.revision <= view.revision);
        }
        assert!(view.leader.as_ref().is_none_or(|key| key.revision <= view.revision));
        if !matches!(verdict, Verdict::Counts { .. }) {
            assert_eq!((&view.leader, &view.members), (&last.leader, &last.members));
        }
        last = view;
    }
}
