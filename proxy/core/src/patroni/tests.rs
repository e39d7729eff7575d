use proptest::prelude::*;

use super::*;
use crate::event::AskError;
use crate::view::{MemberRole, MemberState, Replication, Timeline};

const MEMBER: &str = r#"{"conn_url":"postgres://10.0.0.1:5432/postgres","api_url":"https://10.0.0.1:8008/patroni",
    "state":"running","role":"replica","version":"4.1.5","xlog_location":200,"replay_lsn":100,"receive_lsn":200,
    "replication_state":"streaming","timeline":3,"tags":{"zone":"a"}}"#;

/// A good value of every key.
const GOOD: [(&str, &str); 8] = [
    ("leader", "n1"),
    ("members/n1", MEMBER),
    ("status", r#"{"optime":84307568,"slots":{"n1":84307568},"retain_slots":["n1"]}"#),
    ("failover", r#"{"leader":"n1","member":"n2","scheduled_at":"2026-11-21T23:30:00+00:00"}"#),
    ("sync", r#"{"leader":"n1","quorum":0,"sync_standby":"n2,n3"}"#),
    ("config", r#"{"ttl":20,"loop_wait":3,"pause":true}"#),
    ("history", r#"[[1,84283632,"no recovery target specified","2026-11-21T07:31:37.111519+00:00","n2"]]"#),
    ("initialize", "7710523600955260323"),
];

fn good() -> Keyspace {
    let mut keys = Keyspace::new();
    keys.replace_all(Revision(10), GOOD.map(|(key, value)| (key, value.as_bytes(), Revision(10))));
    assert_eq!(keys.view().complaints, []);
    keys
}

/// A member key with one field replaced.
fn member_with(field: &str, value: &str) -> Result<MemberView, String> {
    let mut json: serde_json::Value = serde_json::from_str(MEMBER).unwrap();
    json[field] = serde_json::from_str(value).unwrap();
    values::member(&"n1".into(), json.to_string().as_bytes(), Revision(1), ConnectTo::ConnUrl)
}

fn hosts(conn_url: &str) -> Result<Vec<String>, String> {
    Ok(url::conn_url(conn_url)?.iter().map(ToString::to_string).collect())
}

#[test]
fn conn_urls() {
    let ok = |url: &str, wanted: &[&str]| assert_eq!(hosts(url).unwrap(), wanted, "{url}");
    ok("postgres://10.0.0.1:5432/postgres", &["10.0.0.1:5432"]);
    ok("postgresql://pg1.example.com", &["pg1.example.com:5432"]);
    ok("POSTGRES://pg1:/db", &["pg1:5432"]);
    ok("postgres://user:p%40ss@pg1:6432/db?sslmode=require&x=a@b:1", &["pg1:6432"]);
    ok("postgres://[fd00::1]:5433/postgres", &["[fd00::1]:5433"]);
    ok("postgres://[fd00::1]/postgres", &["[fd00::1]:5432"]);
    ok("postgres://[fe80::1%25eth0]:5433/", &["[fe80::1%eth0]:5433"]);
    // As Patroni writes them, of connect_address = "fe80::1%eth0:5433" and "127.0.0.2,[::1]:5433".
    ok("postgres://[fe80::1%eth0]:5433/postgres", &["[fe80::1%eth0]:5433"]);
    ok("postgres://[127.0.0.2,::1]:5433/postgres", &["127.0.0.2:5433", "[::1]:5433"]);
    ok("postgres://[::1,pg1,::2]/postgres", &["[::1]:5432", "pg1:5432", "[::2]:5432"]);
    ok("postgres://a:1,[::1]:2,c:3/db", &["a:1", "[::1]:2", "c:3"]);
    ok("postgres://a,b:5433/db", &["a:5433", "b:5433"]);
    ok("postgres://a,b/db", &["a:5432", "b:5432"]);
    ok("postgres://pg%2D1:5432", &["pg-1:5432"]);
    for bad in [
        "",
        "10.0.0.1:5432",
        "http://a:5432",
        "postgres://",
        "postgres:///db",
        "postgres://a:0",
        "postgres://a:65536",
        "postgres://a:+1",
        "postgres://a:x",
        "postgres://a,,b",
        "postgres://[::1",
        "postgres://[nope]:1",
        "postgres://[::1]5432",
        "postgres://[::1,]:5432",
        "postgres://[::1,nope!]:5432",
        "postgres://[::1,::2]5432",
        "postgres://[fe80::1%]:5432",
        "postgres://[fe80::1%a/b]:5432",
        "postgres://[fe80::1%an-interface-with-a-long-name]:5432",
        "postgres://%2Fvar%2Frun/db",
        "postgres://a%zz",
        "postgres://a%2",
        "postgres://ä:1",
        "postgres://fd00::1:5432/db",
        "postgres://a b:1",
    ] {
        assert!(hosts(bad).is_err(), "{bad} was read as {:?}", hosts(bad));
    }
}

#[test]
fn a_pooler_is_used_where_it_is_wanted_and_there_is_one() {
    let address = |connect_to, proxy: &str| {
        let mut keys = Keyspace::leading_to(connect_to);
        let value = format!(r#"{{"conn_url":"postgres://pg1:5432/postgres"{proxy}}}"#);
        keys.put("members/pg1", value.as_bytes(), Revision(1));
        let view = keys.view();
        view.members
            .values()
            .next()
            .map_or_else(|| view.complaints[0].problem.clone(), |m| m.addresses[0].to_string())
    };
    let pooler = r#","proxy_url":"postgres://pg1:6432/postgres""#;
    assert_eq!(address(ConnectTo::ConnUrl, pooler), "pg1:5432");
    assert_eq!(address(ConnectTo::ProxyUrl, pooler), "pg1:6432");
    assert_eq!(address(ConnectTo::ProxyUrl, ""), "pg1:5432");
    assert_eq!(address(ConnectTo::ProxyUrl, r#","proxy_url":null"#), "pg1:5432");
    assert_eq!(address(ConnectTo::ConnUrl, r#","proxy_url":7"#), "pg1:5432");
    assert!(address(ConnectTo::ProxyUrl, r#","proxy_url":"pg1""#).contains("its proxy_url is of no use"));
}

#[test]
fn api_urls() {
    let ok = |text: &str, wanted: &str| assert_eq!(url::api_url(text).unwrap().to_string(), wanted);
    ok("http://10.0.0.1:8008/patroni", "http://10.0.0.1:8008");
    ok("https://[fd00::1]:8008/patroni", "https://[fd00::1]:8008");
    ok("https://pg1/patroni", "https://pg1:443");
    for bad in ["", "10.0.0.1:8008", "ftp://a:1", "http://", "http://a:b", "http://a,b:1"] {
        assert!(url::api_url(bad).is_err(), "{bad}");
    }
}

#[test]
fn times() {
    let read = iso8601::unix_millis;
    let noon = 1_769_860_800_000; // date -u -d 2026-01-31T12:00Z +%s
    assert_eq!(read("2026-01-31T12:00:00+00:00"), Some(noon));
    assert_eq!(read("2026-01-31T12:00Z"), Some(noon));
    assert_eq!(read("2026-01-31 14:00:00.250999+02:00"), Some(noon + 250));
    assert_eq!(read("2026-01-31T08:30:00.5-0330"), Some(noon + 500));
    assert_eq!(read("1970-01-01T00:00:00Z"), Some(0));
    assert_eq!(read("2000-02-29T00:00:00Z"), Some(951_782_400_000));
    assert_eq!(read("2028-02-29T23:59:60Z"), read("2028-02-29T23:59:59Z"));
    for bad in [
        "",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-02-29T12:00:00Z",
        "2100-02-29T12:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-04-31T00:00:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T12:60:00Z",
        "2026-01-31T12:00:00.Z",
        "2026-01-31T12:00:00+2",
        "2026-01-31T12:00:00+24:00",
        "1969-12-31T23:59:59Z",
        "+026-01-31T12:00:00Z",
        "2026-01-31T12:00:00ZZ",
        "äääääääääääääääääää",
    ] {
        assert_eq!(read(bad), None, "{bad}");
    }
}

/// Every day of four centuries has its own number, and time reads what time writes.
#[test]
fn times_agree_with_their_display() {
    for day in 0..150_000 {
        let millis = day * 86_400_000 + 45_296_789;
        assert_eq!(iso8601::unix_millis(&crate::time::UnixMillis(millis).to_string()), Some(millis));
    }
}

#[test]
fn replication_of_members() {
    let state = |json: &str| {
        let json = format!(r#"{{"conn_url":"postgres://a",{json}}}"#);
        values::member(&"n1".into(), json.as_bytes(), Revision(1), ConnectTo::ConnUrl).unwrap().replication
    };
    assert_eq!(state(r#""role":"replica","replication_state":"streaming""#), Replication::Streaming);
    assert_eq!(
        state(r#""role":"replica","replication_state":"in archive recovery""#),
        Replication::NotStreaming
    );
    assert_eq!(state(r#""role":"replica","replay_lsn":1"#), Replication::NotStreaming);
    assert_eq!(state(r#""role":"replica","receive_lsn":1"#), Replication::NotStreaming);
    assert_eq!(state(r#""role":"replica","xlog_location":1"#), Replication::Unknown);
    assert_eq!(state(r#""role":"master","replay_lsn":1"#), Replication::Unknown);
    assert_eq!(state(r#""role":"standby_leader","replication_state":"streaming""#), Replication::Streaming);
}

#[test]
fn fields_of_a_member() {
    let member = member_with("role", "\"master\"").unwrap();
    assert_eq!(
        (member.role, member.replay, member.position),
        (MemberRole::Primary, Some(Lsn(100)), Some(Lsn(200)))
    );
    assert_eq!(member_with("replay_lsn", "null").unwrap().replay, Some(Lsn(200)));
    assert_eq!(member_with("timeline", "0").unwrap().timeline, None);
    assert_eq!(member_with("timeline", "7").unwrap().timeline, Some(Timeline(7)));
    assert_eq!(member_with("role", "null").unwrap().role, MemberRole::Unknown);
    assert_eq!(member_with("state", "\"creating replica\"").unwrap().state.as_str(), "creating replica");
    assert_eq!(member_with("api_url", "null").unwrap().api, None);
    for (field, value) in [
        ("conn_url", "null"),
        ("conn_url", "5"),
        ("conn_url", "\"nonsense\""),
        ("api_url", "\"nonsense\""),
        ("role", "5"),
        ("state", "[]"),
        ("timeline", "-1"),
        ("timeline", "4294967296"),
        ("xlog_location", "1.5"),
        ("replay_lsn", "\"0/5\""),
        ("tags", "[]"),
        ("version", "4"),
        ("replication_state", "true"),
    ] {
        let problem = member_with(field, value).unwrap_err();
        assert!(problem.contains(field), "{problem:?} does not name {field}");
    }
}

#[test]
fn tags_of_any_type() {
    let member =
        member_with("tags", r#"{"zone":"a","priority":5,"noloadbalance":"yes","x":null,"l":[1],"b":false}"#);
    let tags = member.unwrap().tags;
    assert!(tags.noloadbalance && !tags.nofailover);
    let all: Vec<_> = tags.all.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(all, ["b=false", "l=[1]", "noloadbalance=yes", "priority=5", "x=null", "zone=a"]);
    let on = |json: &str| member_with("tags", json).unwrap().tags;
    assert!(!on(r#"{"noloadbalance":false}"#).noloadbalance);
    assert!(!on(r#"{"noloadbalance":"off"}"#).noloadbalance);
    assert!(on(r#"{"noloadbalance":1}"#).noloadbalance);
    assert!(on(r#"{"failover_priority":0}"#).nofailover);
    assert!(!on(r#"{"failover_priority":0,"nofailover":false}"#).nofailover);
    assert!(!on(r#"{"failover_priority":1}"#).nofailover);
}

#[test]
fn nothing_is_announced_by_an_empty_failover_key() {
    let read = |json: &str| values::failover(json.as_bytes(), Revision(1));
    assert_eq!(read(""), Ok(None));
    assert_eq!(read("{}"), Ok(None));
    assert_eq!(read(r#"{"leader":"","member":null}"#), Ok(None));
    assert_eq!(read(r#"{"member":"n2"}"#).unwrap().unwrap().candidate, Some("n2".into()));
    assert!(read(r#"{"leader":"n1","scheduled_at":"soon"}"#).is_err());
    assert!(read(r#"{"leader":"n1","scheduled_at":5}"#).is_err());
}

#[test]
fn sync_status_config_initialize() {
    let sync = |json: &str| values::sync(json.as_bytes()).unwrap().unwrap();
    assert!(sync(r#"{"leader":"n1","sync_standby":null}"#).standbys.is_empty());
    assert_eq!(sync(r#"{"leader":null,"sync_standby":"n2, n3,"}"#).standbys.len(), 2);
    assert_eq!(values::status(b"5", Revision(1)), Ok(Some((Lsn(5), Revision(1)))));
    assert_eq!(values::status(b"{}", Revision(1)), Ok(None));
    assert_eq!(values::status(br#"{"optime":"7"}"#, Revision(1)), Ok(Some((Lsn(7), Revision(1)))));
    assert!(values::status(b"[]", Revision(1)).is_err());
    let config = |json: &str| values::config(json.as_bytes()).unwrap();
    assert_eq!(config("{}"), ClusterSettings::default());
    assert!(config(r#"{"synchronous_mode":"quorum"}"#).synchronous);
    assert!(!config(r#"{"synchronous_mode":"off","standby_cluster":{}}"#).synchronous);
    assert!(config(r#"{"synchronous_mode":"Quorum"}"#).synchronous);
    for on in ["true", "1", r#""on""#, r#""Yes""#] {
        assert!(config(&format!(r#"{{"pause":{on}}}"#)).paused, "{on}");
    }
    // What Patroni takes for off must not look like a pause here.
    for off in ["false", "0", "2", "null", "[1]", r#""no""#, r#""perhaps""#, r#""""#] {
        assert!(!config(&format!(r#"{{"pause":{off}}}"#)).paused, "{off}");
    }
    assert!(config(r#"{"failsafe_mode":true}"#).failsafe);
    let standby = |section: &str| config(&format!(r#"{{"standby_cluster":{section}}}"#)).standby_cluster;
    for follows in [r#"{"host":"a"}"#, r#"{"port":5432}"#, r#"{"restore_command":"cp %f %p","host":null}"#] {
        assert!(standby(follows), "{follows}");
    }
    // Patroni promotes with these: writes must not be refused.
    for none in ["null", "{}", r#"{"host":""}"#, r#"{"create_replica_methods":["basebackup"]}"#, "true", "[]"]
    {
        assert!(!standby(none), "{none}");
    }
    assert!(values::config(br#"{"ttl":0}"#).is_err() && values::config(br#"{"ttl":-5}"#).is_err());
    assert_eq!(values::initialize(b""), Ok(None));
    assert!(values::initialize(b"what").is_err());
    assert_eq!(values::history(b"[]"), Ok(vec![]));
    assert!(values::history(b"[[1]]").is_err() && values::history(b"[5]").is_err());
}

#[test]
fn nonsense_keeps_the_last_good_value_and_deletion_does_not() {
    let before = good().view();
    let huge = vec![b'1'; 10 << 20];
    for (key, _) in GOOD {
        for nonsense in [&b"{\"conn_url\":"[..], b"\xff\xfe", b"[{]", &huge] {
            let mut keys = good();
            keys.put(key, nonsense, Revision(11));
            let mut after = keys.view();
            let complaints = mem::take(&mut after.complaints);
            if key == "leader" && std::str::from_utf8(nonsense).is_ok_and(|text| text.len() < MAX_VALUE) {
                assert!(
                    complaints[0].problem.contains("names"),
                    "any short text may be a name: {complaints:?}"
                );
                continue;
            }
            assert_eq!(complaints.len(), 1, "{key}");
            assert_eq!(complaints[0].key, key);
            assert!(complaints[0].problem.len() < 200);
            assert_eq!(after, ClusterView { revision: Revision(11), ..before.clone() }, "{key}");
            keys.delete(key, Revision(12));
            assert!(
                keys.view()
                    .complaints
                    .iter()
                    .all(|complaint| key == "members/n1" && complaint.key == "leader")
            );
            keys.put(key, nonsense, Revision(13));
            assert_ne!(keys.view(), after, "a deleted key came back: {key}");
        }
    }
}

#[test]
fn a_leader_key() {
    let mut keys = good();
    keys.put("leader", b"n9", Revision(11));
    let view = keys.view();
    assert_eq!(view.leader, Some(LeaderKey { member: "n9".into(), revision: Revision(11) }));
    assert_eq!(view.complaints.len(), 1);
    keys.put("leader", b"", Revision(12));
    assert_eq!(keys.view().leader, view.leader, "an empty key takes nothing away");
    assert_eq!(keys.view().complaints.len(), 2);
    keys.put("leader", b"n1", Revision(13));
    assert_eq!(keys.view().complaints, []);
}

#[test]
fn a_full_read_drops_what_is_gone_and_keeps_what_was_good() {
    let mut keys = good();
    keys.put("members/n2", MEMBER.as_bytes(), Revision(11));
    let read = [("leader", &b"n1"[..], Revision(10)), ("members/n1", b"{\"half", Revision(15))];
    keys.replace_all(Revision(20), read);
    let view = keys.view();
    assert_eq!((view.revision, view.members.len(), view.optime, view.sync), (Revision(20), 1, None, None));
    assert_eq!(view.members[&"n1".into()].revision, Revision(10), "the good value is the old one");
    assert_eq!(view.complaints.len(), 1);
    keys.replace_all(Revision(3), []);
    assert_eq!(keys.view(), ClusterView { revision: Revision(3), ..ClusterView::default() });
}

fn body(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut body = serde_json::json!({"state": "running", "role": "primary", "xlog": {"location": 5}, "timeline": 2,
        "dcs_last_seen": 9, "patroni": {"version": "4.1.5", "scope": "demo", "name": "n1"}});
    change(&mut body);
    body.to_string().into_bytes()
}

fn status(body: &[u8]) -> Result<crate::event::Status, AskError> {
    parse_status(body, "demo", &"n1".into()).map_err(|(error, _)| error)
}

#[test]
fn rest_status() {
    let primary = status(&body(|_| ())).unwrap();
    assert!(primary.writable());
    assert_eq!(
        (primary.position, primary.timeline, primary.dcs_last_seen),
        (Some(Lsn(5)), Some(Timeline(2)), Some(9))
    );
    let stopping = status(&body(|b| b["state"] = "stopping".into())).unwrap();
    assert_eq!((stopping.writable(), stopping.state), (false, MemberState::Other("stopping".into())));
    let replication = |version: &str, state: serde_json::Value| {
        let replica = body(|b| {
            b["role"] = "replica".into();
            b["patroni"]["version"] = version.into();
            b["replication_state"] = state;
            b["xlog"] = serde_json::json!({"received_location": 7, "replayed_location": 6});
        });
        let status = status(&replica).unwrap();
        assert_eq!(status.position, Some(Lsn(6)));
        status.replication
    };
    assert_eq!(replication("4.1.5", "streaming".into()), Replication::Streaming);
    assert_eq!(replication("4.1.5", "in archive recovery".into()), Replication::NotStreaming);
    assert_eq!(replication("4.0.0", serde_json::Value::Null), Replication::NotStreaming);
    assert_eq!(replication("3.3.1", serde_json::Value::Null), Replication::Unknown);
    assert_eq!(replication("what", serde_json::Value::Null), Replication::Unknown);
}

#[test]
fn rest_strangers_and_nonsense() {
    assert_eq!(status(&body(|b| b["patroni"]["scope"] = "other".into())), Err(AskError::Stranger));
    assert_eq!(status(&body(|b| b["patroni"]["name"] = "n2".into())), Err(AskError::Stranger));
    let nameless = body(|b| drop(b["patroni"].as_object_mut().unwrap().remove("name")));
    assert!(status(&nameless).is_ok(), "Patroni 3.0 does not say its name");
    for nonsense in [
        body(|b| b["patroni"] = serde_json::Value::Null),
        body(|b| b["patroni"]["scope"] = serde_json::Value::Null),
        body(|b| b["role"] = serde_json::Value::Null),
        body(|b| b["state"] = 5.into()),
        body(|b| b["xlog"] = 5.into()),
        body(|b| b["timeline"] = "x".into()),
        b"<!DOCTYPE HTML>".to_vec(),
        b"[]".to_vec(),
        Vec::new(),
    ] {
        assert_eq!(status(&nonsense), Err(AskError::Nonsense));
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(which in 0..GOOD.len(), bytes: Vec<u8>) {
        let mut keys = good();
        keys.put(GOOD[which].0, &bytes, Revision(11));
        let _ = keys.view();
        let _ = parse_status(&bytes, "demo", &"n1".into());
    }

    #[test]
    fn broken_json_never_panics(which in 1..GOOD.len(), at: prop::sample::Index, byte: u8) {
        let mut bytes = GOOD[which].1.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let mut keys = good();
        keys.put(GOOD[which].0, &bytes, Revision(11));
        prop_assert_eq!(keys.view().members.len(), 1);
    }

    #[test]
    fn urls_and_times_never_panic(text: String, tail in "[-:0-9.,@%\\[\\]a-f]{0,20}") {
        for text in [text, tail] {
            let _ = url::conn_url(&text);
            let _ = url::conn_url(&format!("postgres://{text}"));
            let _ = url::api_url(&format!("http://{text}"));
            let _ = iso8601::unix_millis(&text);
            let _ = iso8601::unix_millis(&format!("2026-01-31T{text}Z"));
        }
    }

    /// A truncation of a good value is either understood or leaves the last good value in use.
    #[test]
    fn a_truncation_takes_nothing_away(which in 1..GOOD.len(), at: prop::sample::Index) {
        let (key, value) = GOOD[which];
        let cut = &value.as_bytes()[..at.index(value.len())];
        let mut keys = good();
        let before = keys.view();
        keys.put(key, cut, Revision(11));
        let after = keys.view();
        prop_assert_eq!(&after.members, &before.members);
        prop_assert_eq!(after.settings, before.settings);
        if !["failover", "sync", "initialize"].contains(&key) || !cut.is_empty() {
            prop_assert_eq!(after.announcement, before.announcement);
            prop_assert_eq!(after.sync, before.sync);
        }
        prop_assert_eq!(after.optime, before.optime);
        prop_assert_eq!(after.history, before.history);
        prop_assert_eq!(after.leader, before.leader);
    }

    /// The order of puts and deletions of different keys does not matter for the outcome.
    #[test]
    fn a_replayed_watch_equals_a_full_read(ops in prop::collection::vec((0..GOOD.len(), any::<bool>()), 0..40)) {
        let mut watched = Keyspace::new();
        let mut truth = BTreeMap::new();
        for (revision, (which, put)) in (1..).map(Revision).zip(ops) {
            let (key, value) = GOOD[which];
            if put {
                watched.put(key, value.as_bytes(), revision);
                truth.insert(key, (value.as_bytes(), revision));
            } else {
                watched.delete(key, revision);
                truth.remove(key);
            }
        }
        let mut read = Keyspace::new();
        read.replace_all(watched.view().revision, truth.into_iter().map(|(key, (value, at))| (key, value, at)));
        prop_assert_eq!(watched.view(), read.view());
    }
}
