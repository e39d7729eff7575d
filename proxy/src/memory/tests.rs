use proptest::prelude::*;

use super::*;

fn record() -> Record {
    let member = |port, api| Remembered {
        addresses: vec![Host { host: "10.0.0.1".to_owned(), port }, Host { host: "::1".to_owned(), port }],
        api,
    };
    let api = Api { tls: true, host: "pg1.example".to_owned(), port: 8008 };
    let members =
        BTreeMap::from([("pg1".to_owned(), member(5432, Some(api))), ("pg2".to_owned(), member(5433, None))]);
    Record { version: VERSION, scope: "main".to_owned(), ttl: 20, loop_wait: 3, members }
}

#[test]
fn what_is_written_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state/main.view.json");
    for _ in 0..2 {
        write(&file, &record()).unwrap();
        assert_eq!(read(&file, "main").unwrap(), record());
    }
    assert_eq!(fs::read_dir(directory.path().join("state")).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn the_view_names_members_and_no_leader() {
    let view = record().view();
    assert_eq!(view.leader, None);
    assert_eq!((view.settings.ttl, view.settings.loop_wait), (20, 3));
    let pg1 = view.members.get(&"pg1".into()).unwrap();
    assert_eq!(pg1.api.as_ref().unwrap().to_string(), "https://pg1.example:8008");
    let addresses: Vec<_> = pg1.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1:5432", "[::1]:5432"]);
}

#[test]
fn what_is_of_no_use_is_said() {
    let text = |change: fn(&mut Record)| {
        let mut changed = record();
        change(&mut changed);
        serde_json::to_vec(&changed).unwrap()
    };
    let why = |text: &[u8]| parse(text, "main").unwrap_err();
    assert!(why(b"{").contains("EOF"));
    assert_eq!(why(&text(|r| r.version = 2)), "it has the form 2, and only 1 is understood");
    assert_eq!(
        why(&text(|r| r.scope = "other".to_owned())),
        "it is of the scope \"other\", and \"main\" is configured"
    );
    assert_eq!(why(&vec![b' '; (1 << 20) + 1]), "it is longer than 1024 KiB");
    assert_eq!(
        read(Path::new("/nowhere/main.view.json"), "main").unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(text in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..400_usize) {
        let _ = parse(&text, "main").map(|record| record.view());
        let mut good = serde_json::to_vec(&record()).unwrap();
        good.truncate(cut);
        let _ = parse(&good, "main").map(|record| record.view());
    }
}
