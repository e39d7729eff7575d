use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;

use super::*;

const PREFIX: &str = "service/demo/";

fn listed(key: &str, value: &str, index: u64) -> String {
    format!(
        r#"{{"LockIndex":0,"Key":{key:?},"Flags":0,"Value":{value},"CreateIndex":1,"ModifyIndex":{index}}}"#
    )
}

#[test]
fn an_answer_is_read() {
    let body = format!(
        "[\n {},\n {},\n {}]",
        listed("service/demo/", "null", 2),
        listed("service/demo/leader", "\"bjE=\"", 12),
        listed("service/demo/members/n1", "null", 13),
    );
    let entry = |key: &str, value: &[u8], revision| KvEntry {
        key: key.to_owned(),
        value: value.to_vec(),
        revision: Revision(revision),
    };
    assert_eq!(
        parse_kv(body.as_bytes(), PREFIX),
        Ok(vec![entry("leader", b"n1", 12), entry("members/n1", b"", 13)])
    );
    assert_eq!(parse_kv(b"[]", PREFIX), Ok(Vec::new()));
}

#[test]
fn what_is_no_answer_of_consul_says_so() {
    let one = |key: &str, value: &str| format!("[{}]", listed(key, value, 3));
    for (body, problem) in [
        (String::new(), "the answer is no list of keys: EOF while parsing a value at line 1 column 0"),
        (
            "null".to_owned(),
            "the answer is no list of keys: invalid type: null, expected a sequence at line 1 column 4",
        ),
        (
            r#"[{"Key":"#.to_owned(),
            "the answer is no list of keys: EOF while parsing a value at line 1 column 8",
        ),
        (
            r#"[{"Key":"service/demo/leader","Value":null}]"#.to_owned(),
            "the answer is no list of keys: missing field `ModifyIndex` at line 1 column 43",
        ),
        (
            one("service/demo2/leader", "null"),
            "the answer holds \"service/demo2/leader\", which was not asked for",
        ),
        (one("service/demo/leader", "\"b*E=\""), "the value of \"leader\" is not base64"),
        (one("service/demo/leader", "\"bjE\""), "the value of \"leader\" is not base64"),
    ] {
        assert_eq!(parse_kv(body.as_bytes(), PREFIX).unwrap_err().to_string(), problem);
    }
    let many: Vec<_> =
        (0..=MAX_KEYS).map(|number| listed(&format!("service/demo/{number}"), "null", 3)).collect();
    let body = format!("[{}]", many.join(","));
    assert_eq!(parse_kv(body.as_bytes(), PREFIX), Err(KvError::TooManyKeys { count: MAX_KEYS + 1 }));
}

proptest! {
    #[test]
    fn base64_is_what_others_think_it_is(text in "[A-Za-z0-9+/=]{0,12}|[ -~]{0,9}") {
        prop_assert_eq!(base64(text.as_bytes()), BASE64_STANDARD.decode(&text).ok());
    }

    #[test]
    fn what_was_written_is_read(entries in proptest::collection::vec(
        ("[a-z/ \"\\\\é]{1,12}", proptest::collection::vec(any::<u8>(), 0..40), any::<u64>()), 0..8)
    ) {
        let list: Vec<_> = entries
            .iter()
            .map(|(key, value, index)| serde_json::json!({
                "Key": format!("{PREFIX}{key}"),
                "Value": (!value.is_empty()).then(|| BASE64_STANDARD.encode(value)),
                "ModifyIndex": index,
                "Session": "some",
            }))
            .collect();
        let read = parse_kv(serde_json::to_vec(&list).unwrap().as_slice(), PREFIX).unwrap();
        let read: Vec<_> = read.into_iter().map(|entry| (entry.key, entry.value, entry.revision.0)).collect();
        prop_assert_eq!(read, entries);
    }

    #[test]
    fn half_an_answer_is_none(cut in 0_usize..100) {
        let body = format!("[{}]", listed("service/demo/leader", "\"bjE=\"", 12));
        let cut = cut % body.len();
        prop_assert!(parse_kv(&body.as_bytes()[..cut], PREFIX).is_err());
    }
}
