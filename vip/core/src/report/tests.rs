use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn vip(name: &str) -> VipName {
    VipName::new(name).unwrap()
}

fn key() -> Key {
    Key::derive(b"sixteen bytes or more")
}

fn sender() -> Sender {
    Sender { node: node("lb1"), incarnation: Incarnation(0x0102_0304_0506_0708), sequence: 9 }
}

fn report() -> Report {
    let write = RouterReport {
        state: State::Active,
        priority: 150,
        fit: true,
        source: Some([10, 0, 0, 1].into()),
        offer: None,
    };
    let read = RouterReport {
        state: State::Backup,
        fit: false,
        source: Some("fd00::1".parse().unwrap()),
        offer: Some(node("lb2")),
        ..write.clone()
    };
    let down = RouterReport { state: State::Initialize, source: None, ..write.clone() };
    Report {
        routers: [(vip("write"), write), (vip("read"), read), (vip("down"), down)].into(),
        sees: [(node("lb2"), Sight::Alive), (node("lb3"), Sight::Lost), (node("lb4"), Sight::Unknown)].into(),
    }
}

/// Changes the content of a datagram and seals it anew, as only a host with the key could.
fn resealed(change: impl Fn(&mut Vec<u8>)) -> Result<(Sender, Report), Unsealed> {
    let mut bytes = seal(&key(), &sender(), &report());
    bytes.truncate(bytes.len() - SEAL);
    change(&mut bytes);
    bytes.extend(key().seal(Use::Report, &bytes));
    open(&key(), &bytes)
}

#[test]
fn a_report_arrives() {
    let datagram = seal(&key(), &sender(), &report());
    assert_eq!(open(&key(), &datagram), Ok((sender(), report())));
    assert!(datagram.len() < 200, "{}", datagram.len());
    let empty = seal(&key(), &sender(), &Report::default());
    assert_eq!(open(&key(), &empty), Ok((sender(), Report::default())));
}

/// The layout is a promise to other versions.
#[test]
fn the_layout_is_this() {
    let bytes = seal(&key(), &sender(), &report());
    let mut expected = vec![1, 3];
    expected.extend(b"lb1");
    expected.extend([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 3]);
    expected.extend(b"\x04down\x00\x96\x01");
    expected.extend(b"\x04read\x01\x96\x0c\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x03lb2");
    expected.extend(b"\x05write\x02\x96\x03\x0a\0\0\x01");
    expected.extend(b"\0\x03\x03lb2\x01\x03lb3\x02\x03lb4\x00");
    assert_eq!(bytes[..bytes.len() - SEAL], expected);
}

#[test]
fn without_the_key_nothing_is_read() {
    let datagram = seal(&Key::derive(b"the key of another group"), &sender(), &report());
    assert_eq!(open(&key(), &datagram), Err(Unsealed::Seal));
    // What was sealed for another use with the same key is none either.
    let content = &datagram[..datagram.len() - SEAL];
    for purpose in [Use::Proof, Use::Farewell] {
        let other = [content, &key().seal(purpose, content)].concat();
        assert_eq!(open(&key(), &other), Err(Unsealed::Seal));
    }
}

#[test]
fn lengths_are_bounded() {
    assert_eq!(open(&key(), &[]), Err(Unsealed::TooShort));
    assert_eq!(open(&key(), &[1; SEAL - 1]), Err(Unsealed::TooShort));
    assert_eq!(open(&key(), &[1; SEAL]), Err(Unsealed::TooShort));
    assert_eq!(open(&key(), &[1; SEAL + 1]), Err(Unsealed::Seal));
    assert_eq!(open(&key(), &[1; MAX_SIZE]), Err(Unsealed::Seal));
    assert_eq!(open(&key(), &[1; MAX_SIZE + 1]), Err(Unsealed::TooLong));
    assert_eq!(open(&key(), &[2; 100]), Err(Unsealed::Version { theirs: 2 }));
}

#[test]
fn there_is_one_way_to_write_a_report() {
    let names = 23;
    for (what, change) in [
        ("something follows", &|b: &mut Vec<u8>| b.push(0)),
        ("something is missing", &|b: &mut Vec<u8>| b.truncate(b.len() - 1)),
        ("no name", &|b: &mut Vec<u8>| drop(b.splice(1..5, [0]))),
        ("a name that is none", &|b: &mut Vec<u8>| b[2] = b'/'),
        ("a name that is no text", &|b: &mut Vec<u8>| b[2] = 0xff),
        ("a long name", &|b: &mut Vec<u8>| drop(b.splice(1..5, [65].into_iter().chain([b'a'; 65])))),
        ("more routers than there are", &|b: &mut Vec<u8>| b[names - 1] = 4),
        ("very many routers", &|b: &mut Vec<u8>| b[names - 2] = 0xff),
        ("fewer routers than there are", &|b: &mut Vec<u8>| b[names - 1] = 2),
        ("a name twice", &|b: &mut Vec<u8>| b[names + 1..names + 5].copy_from_slice(b"read")),
        ("another order", &|b: &mut Vec<u8>| b[names + 1] = b'z'),
        ("an unknown state", &|b: &mut Vec<u8>| b[names + 5] = 3),
        ("an unknown bit", &|b: &mut Vec<u8>| b[names + 7] |= 0x10),
        ("two sources", &|b: &mut Vec<u8>| b[names + 7] |= SOURCE_V4 | SOURCE_V6),
        ("an unknown sight", &|b: &mut Vec<u8>| *b.last_mut().unwrap() = 3),
    ] as [(&str, &dyn Fn(&mut Vec<u8>)); 15]
    {
        assert_eq!(resealed(change), Err(Unsealed::Content), "{what}");
    }
    assert_eq!(resealed(|b| b[names + 7] = 0).unwrap().1.routers.len(), 3);
}

/// What the documentation promises of [`MAX_SIZE`].
#[test]
fn forty_routers_and_sixteen_hosts_fit() {
    let long = |number: usize| format!("{number:064}");
    let router = RouterReport {
        state: State::Active,
        priority: 255,
        fit: true,
        source: Some("fd00::1".parse().unwrap()),
        offer: Some(node(&long(0))),
    };
    let report = Report {
        routers: (0..40).map(|number| (vip(&long(number)), router.clone())).collect(),
        sees: (0..15).map(|number| (node(&long(number)), Sight::Alive)).collect(),
    };
    let sender = Sender { node: node(&long(99)), ..sender() };
    let datagram = seal(&key(), &sender, &report);
    assert!(datagram.len() <= MAX_SIZE, "{}", datagram.len());
    assert_eq!(open(&key(), &datagram), Ok((sender, report)));
}

#[test]
fn every_refusal_has_a_label_and_a_sentence() {
    let all = [
        Unsealed::TooLong,
        Unsealed::TooShort,
        Unsealed::Version { theirs: 2 },
        Unsealed::Seal,
        Unsealed::Content,
    ];
    assert_eq!(all.map(Unsealed::label), Unsealed::LABELS);
    assert!(all.iter().all(|refusal| refusal.to_string().starts_with("it")));
    assert_eq!(Unsealed::TooLong.to_string(), "it is longer than 8192 bytes");
}

#[test]
fn the_key_is_not_shown() {
    assert_eq!(format!("{:?}", key()), "Key(***)");
}

fn any_name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9._-]{1,64}"
}

fn any_router() -> impl Strategy<Value = RouterReport> {
    let state = prop::sample::select(STATES.to_vec());
    let offer = proptest::option::of(any_name().prop_map(|name| node(&name)));
    (state, any::<u8>(), any::<bool>(), any::<Option<IpAddr>>(), offer).prop_map(
        |(state, priority, fit, source, offer)| RouterReport { state, priority, fit, source, offer },
    )
}

fn any_report() -> impl Strategy<Value = Report> {
    let routers = proptest::collection::btree_map(any_name().prop_map(|name| vip(&name)), any_router(), 0..6);
    let sight = prop::sample::select(SIGHTS.to_vec());
    let sees = proptest::collection::btree_map(any_name().prop_map(|name| node(&name)), sight, 0..6);
    (routers, sees).prop_map(|(routers, sees)| Report { routers, sees })
}

fn any_sender() -> impl Strategy<Value = Sender> {
    (any_name(), any::<u64>(), any::<u64>()).prop_map(|(name, incarnation, sequence)| Sender {
        node: node(&name),
        incarnation: Incarnation(incarnation),
        sequence,
    })
}

proptest! {
    #[test]
    fn what_was_sealed_is_opened(sender in any_sender(), report in any_report()) {
        let datagram = seal(&key(), &sender, &report);
        prop_assert_eq!(open(&key(), &datagram), Ok((sender, report)));
    }

    #[test]
    fn one_changed_bit_is_found(report in any_report(), at in any::<Index>(), bit in 0..8_u32) {
        let mut datagram = seal(&key(), &sender(), &report);
        *at.get_mut(&mut datagram) ^= 1_u8 << bit;
        prop_assert!(open(&key(), &datagram).is_err());
    }

    #[test]
    fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(open(&key(), &bytes).is_err());
    }

    /// Even a host with the key can only say what there is one way to write.
    #[test]
    fn what_is_read_is_written_the_same(report in any_report(), at in any::<Index>(), byte in any::<u8>()) {
        let mut bytes = seal(&key(), &sender(), &report);
        bytes.truncate(bytes.len() - SEAL);
        *at.get_mut(&mut bytes) = byte;
        bytes.extend(key().seal(Use::Report, &bytes));
        if let Ok((sender, report)) = open(&key(), &bytes) {
            prop_assert_eq!(seal(&key(), &sender, &report), bytes);
        }
    }
}
