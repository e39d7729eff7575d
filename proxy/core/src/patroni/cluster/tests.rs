use proptest::prelude::*;

use super::*;

const BODY: &str = r#"{"members":[
    {"name":"n1","role":"leader","state":"running","api_url":"https://10.0.0.1:8008/patroni","host":"10.0.0.1","port":5432,"timeline":3},
    {"name":"n2","role":"sync_standby","state":"streaming","api_url":"https://10.0.0.2:8008/patroni","host":"10.0.0.2","port":5433,
     "timeline":3,"tags":{"zone":"a","noloadbalance":true},"receive_lsn":"0/5","lag":"unknown"}],
    "scheduled_switchover":{"at":"2026-11-21T23:30:00+00:00","from":"n1","to":"n2"},"pause":true,"scope":"demo"}"#;

fn parsed(text: &str) -> ClusterAnswer {
    parse_cluster(text.as_bytes(), "demo").unwrap_or_else(|error| panic!("{error:?}: {text}"))
}

fn error(text: &str) -> (AskError, String) {
    parse_cluster(text.as_bytes(), "demo").unwrap_err()
}

fn entry(fields: &str) -> Result<MemberView, String> {
    let text = format!(r#"{{"members":[{{"name":"n1",{fields}}}]}}"#);
    parsed(&text).members.remove(&"n1".into()).unwrap()
}

#[test]
fn a_whole_answer() {
    let answer = parsed(BODY);
    assert_eq!((answer.leader, answer.standby_cluster, answer.paused), (Some("n1".into()), false, true));
    assert_eq!(answer.standbys, ["n2".into()].into());
    let scheduled = answer.scheduled.unwrap();
    assert_eq!((scheduled.leader, scheduled.candidate), (Some("n1".into()), Some("n2".into())));
    assert_eq!(scheduled.scheduled_at, Some(1_795_303_800_000));
    let replica = answer.members[&"n2".into()].as_ref().unwrap();
    assert_eq!(replica.addresses[0].to_string(), "10.0.0.2:5433");
    assert_eq!(replica.api.as_ref().unwrap().to_string(), "https://10.0.0.2:8008");
    assert_eq!((replica.role, &replica.state), (MemberRole::Replica, &MemberState::Running));
    assert_eq!(replica.replication, Replication::Streaming);
    assert!(replica.tags.noloadbalance && replica.tags.all["zone"] == "a");
}

#[test]
fn states_of_replicas() {
    let host = r#""host":"a","port":1,"role":"replica","#;
    for (fields, state, replication) in [
        (r#""state":"streaming""#, "running", Replication::Streaming),
        (r#""state":"in archive recovery""#, "running", Replication::NotStreaming),
        (r#""state":"running","receive_lsn":"unknown""#, "running", Replication::NotStreaming),
        (r#""state":"running","lag":0"#, "running", Replication::Unknown),
        (r#""state":"creating replica""#, "creating replica", Replication::Unknown),
        (r#""state":null"#, "unknown", Replication::Unknown),
    ] {
        let view = entry(&format!("{host}{fields}")).unwrap();
        assert_eq!((view.state.as_str(), view.replication), (state, replication), "{fields}");
    }
    let roles = [
        ("quorum_standby", MemberRole::Replica),
        ("standby_leader", MemberRole::StandbyLeader),
        ("leader", MemberRole::Primary),
        ("king", MemberRole::Unknown),
    ];
    for (word, role) in roles {
        assert_eq!(entry(&format!(r#""host":"a","role":"{word}""#)).unwrap().role, role);
    }
}

#[test]
fn hosts_of_members() {
    for (fields, addresses) in [
        (r#""host":"pg1.example.com","port":5442"#, "pg1.example.com:5442"),
        (r#""host":"fd00::1","port":5432"#, "[fd00::1]:5432"),
        (r#""host":"[fd00::1]","port":"5432""#, "[fd00::1]:5432"),
        (r#""host":"10.0.0.1""#, "10.0.0.1:5432"),
        (r#""host":"a,fd00::1","port":5432"#, "a:5432 [fd00::1]:5432"),
    ] {
        let view = entry(fields).unwrap();
        let found: Vec<_> = view.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(found.join(" "), addresses, "{fields}");
    }
    for (fields, wanted) in [
        (r#""port":5432"#, "no host"),
        (r#""host":"","port":5432"#, "names no host"),
        (r#""host":"a b","port":5432"#, "its host is of no use"),
        (r#""host":7,"port":5432"#, "its host is not a text"),
        (r#""host":"a","port":0"#, "its port"),
        (r#""host":"a","port":65536"#, "its port"),
        (r#""host":"a","api_url":"ftp://a""#, "its api_url is of no use"),
        (r#""host":"a","timeline":-1"#, "its timeline"),
        (r#""host":"a","tags":[]"#, "its tags"),
    ] {
        let why = entry(fields).unwrap_err();
        assert!(why.contains(wanted), "{fields}: {why}");
    }
}

#[test]
fn what_is_no_answer() {
    for (text, kind, wanted) in [
        ("", AskError::Nonsense, "not JSON"),
        ("[]", AskError::Nonsense, "not a JSON object"),
        ("{}", AskError::Nonsense, "its members are missing"),
        (r#"{"members":{}}"#, AskError::Nonsense, "not a list"),
        (r#"{"members":[7]}"#, AskError::Nonsense, "a member is not an object"),
        (r#"{"members":[{}]}"#, AskError::Nonsense, "a member has no name"),
        (r#"{"members":[{"name":7}]}"#, AskError::Nonsense, "its name is not a text"),
        (
            r#"{"members":[],"scope":"other"}"#,
            AskError::Stranger,
            "scope \"other\" answers where \"demo\" is expected",
        ),
        (r#"{"members":[{"name":"a"},{"name":"a"}]}"#, AskError::Nonsense, "a is there twice"),
        (
            r#"{"members":[{"name":"a","role":"leader"},{"name":"b","role":"standby_leader"}]}"#,
            AskError::Nonsense,
            "both a and b lead",
        ),
        (
            r#"{"members":[],"scheduled_switchover":{"at":"soon"}}"#,
            AskError::Nonsense,
            "no time with an offset",
        ),
    ] {
        let (found, why) = error(text);
        assert_eq!(found, kind, "{text}");
        assert!(why.contains(wanted), "{text}: {why}");
    }
    let many = vec![r#"{"name":"a"}"#; MAX_MEMBERS + 1].join(",");
    assert!(error(&format!(r#"{{"members":[{many}]}}"#)).1.contains("it has 1001 members"));
    assert_eq!(parsed(r#"{"members":[]}"#), ClusterAnswer::default());
}

proptest! {
    #[test]
    fn broken_json_never_panics(at: prop::sample::Index, byte: u8) {
        let mut bytes = BODY.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(answer) = parse_cluster(&bytes, "demo") {
            for member in answer.members.values().flatten() {
                prop_assert!(!member.addresses.is_empty());
            }
        }
    }

    #[test]
    fn half_an_answer_is_none(at: prop::sample::Index) {
        let cut = &BODY.as_bytes()[..at.index(BODY.len())];
        prop_assert!(parse_cluster(cut, "demo").is_err());
    }

    #[test]
    fn hosts_never_panic(text: String, tail in "[-:0-9.,%\\[\\]a-f]{0,20}") {
        for text in [text, tail] {
            let _ = url::hosts(&text, Some(1)).map(|hosts| assert!(!hosts.is_empty()));
        }
    }
}
