use proptest::prelude::*;

use super::*;

const FILE: &str = "0000000300000001000000A7";

fn row<'a>(recovery: &'a str, position: &'a str, rest: [Option<&'a str>; 3]) -> Result<Status, Failure> {
    let [file, receiver, timeline] = rest;
    parse_row(&[Some(recovery), Some(position), file, receiver, timeline])
}

#[test]
fn a_primary_tells_its_timeline_by_its_wal_file() {
    let status = row("f", "1/A7000028", [Some(FILE), None, None]).unwrap();
    assert!(status.writable());
    assert_eq!((status.timeline, status.position), (Some(Timeline(3)), Some(Lsn(0x1_A700_0028))));
    assert_eq!(status.replication, Replication::Unknown);
}

#[test]
fn a_replica_tells_what_the_user_may_see() {
    let seen = row("t", "0/3000000", [None, Some("streaming"), Some("2")]).unwrap();
    assert_eq!((seen.role, seen.timeline), (MemberRole::Replica, Some(Timeline(2))));
    assert_eq!(seen.replication, Replication::Streaming);
    let hidden = row("t", "0/3000000", [None, Some(""), None]).unwrap();
    assert_eq!((hidden.replication, hidden.timeline), (Replication::Unknown, None));
    for receiver in [None, Some("waiting"), Some("starting")] {
        let status = row("t", "0/3000000", [None, receiver, Some("0")]).unwrap();
        assert_eq!((status.replication, status.timeline), (Replication::NotStreaming, None));
    }
    assert_eq!(parse_row(&[Some("t"), None, None, None, None]).unwrap().position, None);
}

#[test]
fn nonsense_is_told_and_short() {
    let long = "9".repeat(10_000);
    let rows: [&[Option<&str>]; 9] = [
        &[],
        &[Some("t")],
        &[None, None, None, None, None],
        &[Some("true"), None, None, None, None],
        &[Some("f"), Some("0/1"), None, None, None],
        &[Some("f"), Some("0/1"), Some("000000030000000100000"), None, None],
        &[Some("f"), Some("0/1"), Some("000000000000000100000001"), None, None],
        &[Some("t"), Some("1"), None, None, None],
        &[Some("t"), Some("0/1"), None, None, Some(&long)],
    ];
    for row in rows {
        let (kind, why) = parse_row(row).unwrap_err();
        assert_eq!(kind, AskError::Nonsense);
        assert!(!why.is_empty() && why.len() < 200, "{why}");
    }
}

proptest! {
    #[test]
    fn positions_are_read_as_they_are_printed(position: u64) {
        prop_assert_eq!(Lsn(position).to_string().parse(), Ok(Lsn(position)));
        prop_assert_eq!(Lsn(position).to_string().to_lowercase().parse(), Ok(Lsn(position)));
    }

    #[test]
    fn a_position_that_is_read_is_printed_as_it_was(text in "[0-9A-Fa-f/+ -]{0,20}") {
        if let Ok(position) = text.parse::<Lsn>() {
            let short = |half: &str| half.trim_start_matches('0').to_uppercase();
            let printed = position.to_string();
            let halves = printed.split('/').map(short).collect::<Vec<_>>();
            prop_assert_eq!(halves, text.split('/').map(short).collect::<Vec<_>>());
        }
    }

    #[test]
    fn any_row_is_read_or_refused(row in prop::collection::vec(prop::option::of(".{0,50}"), 0..7)) {
        let row: Vec<Option<&str>> = row.iter().map(Option::as_deref).collect();
        if let Err((kind, why)) = parse_row(&row) {
            prop_assert_eq!(kind, AskError::Nonsense);
            prop_assert!(!why.is_empty() && why.len() < 500);
        }
    }
}
