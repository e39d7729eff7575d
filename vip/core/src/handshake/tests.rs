use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

fn key() -> Key {
    Key::derive(b"sixteen bytes or more")
}

fn hello(name: &str, nonce: u8) -> Hello {
    Hello {
        node: NodeName::new(name).unwrap(),
        incarnation: Incarnation(u64::from(nonce) + 1000),
        nonce: [nonce; NONCE],
    }
}

fn caller(name: &str, nonce: u8) -> Handshake {
    Handshake::new(key(), hello(name, nonce), Role::Caller)
}

fn callee(name: &str, nonce: u8) -> Handshake {
    Handshake::new(key(), hello(name, nonce), Role::Callee)
}

fn peer(name: &str, nonce: u8) -> Peer {
    let Hello { node, incarnation, .. } = hello(name, nonce);
    Peer { node, incarnation }
}

/// Carries bytes to and fro until nobody has anything to say.
fn talk(one: &mut Handshake, other: &mut Handshake) -> [Progress; 2] {
    let mut progress = [Progress::NeedMore, Progress::NeedMore];
    loop {
        let (to_other, to_one) = (one.outgoing(), other.outgoing());
        if to_other.is_empty() && to_one.is_empty() {
            return progress;
        }
        progress = [one.feed(&to_one), other.feed(&to_other)];
    }
}

fn met() -> (Stream, Stream) {
    let (mut one, mut other) = (caller("lb1", 1), callee("lb2", 2));
    talk(&mut one, &mut other);
    (one.into_stream().unwrap(), other.into_stream().unwrap())
}

#[test]
fn two_hosts_meet() {
    let (mut one, mut other) = (caller("lb1", 1), callee("lb2", 2));
    let progress = talk(&mut one, &mut other);
    assert_eq!(progress, [Progress::Done(peer("lb2", 2)), Progress::Done(peer("lb1", 1))]);
    let (mut one, mut other) = (one.into_stream().unwrap(), other.into_stream().unwrap());
    assert_eq!((one.feed(&[]), other.feed(&[])), (Heard::Nothing, Heard::Nothing));
    let (farewell, answer) = (one.farewell(), other.farewell());
    assert_ne!(farewell, answer);
    assert_eq!(other.feed(&farewell), Heard::Farewell);
    assert_eq!(one.feed(&answer), Heard::Farewell);
}

/// The layout is a promise to other versions.
#[test]
fn the_layout_is_this() {
    let hello = caller("lb1", 1).outgoing();
    let expected = [&b"PVIP\x01\x03lb1"[..], &1001_u64.to_be_bytes(), &[1; NONCE]].concat();
    assert_eq!(hello, expected);
    assert!(hello.len() <= MAX_MESSAGE);
}

/// A stranger who calls learns nothing that it could try keys on.
#[test]
fn the_caller_proves_first() {
    let mut host = callee("lb2", 2);
    assert_eq!(host.feed(&caller("lb1", 1).outgoing()), Progress::NeedMore);
    assert_eq!(host.outgoing(), callee("lb2", 2).outgoing());
    assert_eq!(host.feed(&[0; SEAL]), Progress::Failed(Failure::Proof));
    assert!(host.outgoing().is_empty());
    assert!(host.into_stream().is_none());
}

#[test]
fn another_key_is_noticed_on_both_sides() {
    let stranger = || Key::derive(b"the key of another group");
    let mut one = Handshake::new(stranger(), hello("lb1", 1), Role::Caller);
    let mut other = callee("lb2", 2);
    // The caller sees the connection closed.
    assert_eq!(talk(&mut one, &mut other), [Progress::NeedMore, Progress::Failed(Failure::Proof)]);
    // A callee that does not know the key cannot prove anything either.
    let mut host = caller("lb1", 1);
    host.feed(&callee("lb2", 2).outgoing());
    assert_eq!(host.feed(&[7; SEAL]), Progress::Failed(Failure::Proof));
}

#[test]
fn what_was_recorded_is_worth_nothing() {
    let (mut one, mut other) = (caller("lb1", 1), callee("lb2", 2));
    let mut recorded = Vec::new();
    for _ in 0..2 {
        let (to_other, to_one) = (one.outgoing(), other.outgoing());
        recorded.extend_from_slice(&to_other);
        other.feed(&to_other);
        one.feed(&to_one);
    }
    assert_eq!(recorded.len(), caller("lb1", 1).outgoing().len() + SEAL);
    // To the same process, which draws another nonce; and to a host with the name of the other.
    for nonce in [3, 1] {
        assert_eq!(callee("lb2", nonce).feed(&recorded), Progress::Failed(Failure::Proof));
    }
    // With the same nonce it would be worth something: that is why it is random.
    assert_eq!(callee("lb2", 2).feed(&recorded), Progress::Done(peer("lb1", 1)));
}

#[test]
fn nobody_is_talked_into_talking_to_itself() {
    // What it says is sent back.
    for role in [Role::Caller, Role::Callee] {
        let mut host = Handshake::new(key(), hello("lb1", 1), role);
        let echo = host.outgoing();
        assert_eq!(host.feed(&echo), Progress::Failed(Failure::Ourselves));
    }
    // Two of its own connections are joined together.
    let (mut one, mut other) = (caller("lb1", 1), callee("lb1", 2));
    let progress = talk(&mut one, &mut other);
    assert_eq!(progress, [0, 1].map(|_| Progress::Failed(Failure::Ourselves)));
}

/// Whoever sits between a caller and a callee cannot make the one prove something that the other takes for its own: two
/// connections of lb1 that were called, and a stranger who carries the words of one to the other under the name lb2.
#[test]
fn proofs_are_not_taken_for_those_of_another_role() {
    let (mut one, mut other) = (callee("lb1", 1), callee("lb1", 2));
    let forged = |nonce| caller("lb2", nonce).outgoing();
    one.feed(&forged(2));
    other.feed(&forged(1));
    assert_eq!(one.feed(&[0; SEAL]), Progress::Failed(Failure::Proof));
    let transcript = Transcript([forged(1), callee("lb1", 2).outgoing()].concat());
    let wrong_role = key().seal(Use::Proof, &transcript.by(Role::Callee));
    assert_eq!(other.feed(&wrong_role), Progress::Failed(Failure::Proof));
    let mut other = callee("lb1", 2);
    other.feed(&forged(1));
    let right_role = key().seal(Use::Proof, &transcript.by(Role::Caller));
    assert_eq!(other.feed(&right_role), Progress::Done(peer("lb2", 1)));
}

#[test]
fn strangers_are_told_from_hosts() {
    let proper = caller("lb2", 2).outgoing();
    let fed = |bytes: &[u8]| caller("lb1", 1).feed(bytes);
    assert_eq!(fed(b"GET / HTTP/1.1\r\n"), Progress::Failed(Failure::Stranger));
    assert_eq!(fed(b"P"), Progress::NeedMore);
    assert_eq!(fed(b"PV?"), Progress::Failed(Failure::Stranger));
    assert_eq!(fed(b"PVIP\x02"), Progress::Failed(Failure::Version { theirs: 2 }));
    assert_eq!(fed(b"PVIP\x01\x41"), Progress::Failed(Failure::Name));
    assert_eq!(fed(b"PVIP\x01\x00"), Progress::Failed(Failure::Name));
    assert_eq!(fed(b"PVIP\x01\x02a/"), Progress::Failed(Failure::Name));
    assert_eq!(fed(&proper[..proper.len() - 1]), Progress::NeedMore);
}

#[test]
fn a_failure_is_final() {
    let mut host = callee("lb2", 2);
    host.outgoing();
    assert_eq!(host.feed(b"nonsense"), Progress::Failed(Failure::Stranger));
    assert_eq!(host.feed(&caller("lb1", 1).outgoing()), Progress::Failed(Failure::Stranger));
    assert!(host.outgoing().is_empty());
}

#[test]
fn a_farewell_is_for_one_connection() {
    let (mut one, mut other) = met();
    // Sent back, from another connection, from a stranger.
    let own = one.farewell();
    assert_eq!(one.feed(&own), Heard::Nonsense);
    let (mut third, mut fourth) = (caller("lb1", 3), callee("lb2", 4));
    talk(&mut third, &mut fourth);
    let elsewhere = third.into_stream().unwrap().farewell();
    assert_eq!(other.feed(&elsewhere), Heard::Nonsense);
    assert_eq!(other.feed(&met().0.farewell()), Heard::Nonsense, "once is enough");
    let (one, mut other) = met();
    assert_eq!(other.feed(&one.farewell()[..SEAL - 1]), Heard::Nothing);
    assert_eq!(other.feed(&one.farewell()[SEAL - 1..]), Heard::Farewell);
    assert_eq!(other.feed(b"more"), Heard::Farewell);
}

/// A host that stops at once sends it together with its proof.
#[test]
fn a_farewell_may_come_with_the_proof() {
    let (mut one, mut other) = (caller("lb1", 1), callee("lb2", 2));
    one.feed(&other.outgoing());
    other.feed(&one.outgoing());
    let proof = other.outgoing();
    let farewell = other.into_stream().unwrap().farewell();
    assert_eq!(one.feed(&[proof, farewell].concat()), Progress::Done(peer("lb2", 2)));
    assert_eq!(one.into_stream().unwrap().feed(&[]), Heard::Farewell);
}

/// Whatever is sent after the handshake, no more than a farewell is kept.
#[test]
fn memory_is_bounded() {
    let (mut one, mut other) = (caller("lb1", 1), callee("lb2", 2));
    talk(&mut one, &mut other);
    for _ in 0..100 {
        one.feed(&[7; 1000]);
    }
    assert!(one.received.len() <= SEAL);
    let mut stream = one.into_stream().unwrap();
    for _ in 0..100 {
        assert_eq!(stream.feed(&[7; 1000]), Heard::Nonsense);
    }
    assert!(stream.received.len() <= SEAL);
    let mut host = callee("lb2", 2);
    for byte in caller(&"a".repeat(MAX_NAME), 1).outgoing().into_iter().chain([7; 1000]) {
        host.feed(&[byte]);
        assert!(host.received.len() <= MAX_MESSAGE);
    }
}

#[test]
fn every_failure_has_a_label_and_a_sentence() {
    let all = [
        Failure::Stranger,
        Failure::Version { theirs: 2 },
        Failure::Name,
        Failure::Ourselves,
        Failure::Proof,
    ];
    assert_eq!(all.map(Failure::label), Failure::LABELS);
    assert!(all.iter().all(|failure| failure.to_string().starts_with("the other side")));
}

#[test]
fn the_key_is_not_shown() {
    assert!(format!("{:?}", caller("lb1", 1)).contains("Key(***)"));
}

/// All that a callee is sent by a caller who says good-bye at once.
fn conversation() -> Vec<u8> {
    let (mut one, mut other) = (caller("lb1", 1), callee("lb2", 2));
    let mut bytes = one.outgoing();
    one.feed(&other.outgoing());
    bytes.extend(one.outgoing());
    other.feed(&bytes);
    one.feed(&other.outgoing());
    bytes.extend(one.into_stream().unwrap().farewell());
    bytes
}

/// What a callee says and hears when it is fed these pieces.
fn fed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Progress, Vec<u8>, Option<Heard>) {
    let mut host = callee("lb2", 2);
    let mut said = host.outgoing();
    let mut progress = Progress::NeedMore;
    for piece in pieces {
        progress = host.feed(piece);
        said.extend(host.outgoing());
    }
    (progress, said, host.into_stream().map(|mut stream| stream.feed(&[])))
}

#[test]
fn a_whole_conversation_may_come_at_once() {
    let (progress, said, heard) = fed([&conversation()[..]]);
    assert_eq!(progress, Progress::Done(peer("lb1", 1)));
    assert_eq!(said.len(), callee("lb2", 2).outgoing().len() + SEAL);
    assert_eq!(heard, Some(Heard::Farewell));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn pieces_do_not_matter(changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..2), end in any::<Index>()) {
        let mut bytes = conversation();
        for (at, byte) in changes {
            *at.get_mut(&mut bytes) = byte;
        }
        bytes.truncate(end.index(bytes.len() + 1));
        let whole = fed([&bytes[..]]);
        prop_assert_eq!(&fed(bytes.chunks(1)), &whole);
        prop_assert_eq!(&fed(bytes.chunks(7)), &whole);
    }

    #[test]
    fn one_changed_bit_is_found(at in any::<Index>(), bit in 0..8_u32) {
        let mut bytes = conversation();
        let until_proof = bytes.len() - SEAL;
        bytes.truncate(until_proof);
        *at.get_mut(&mut bytes) ^= 1_u8 << bit;
        let (progress, ..) = fed([&bytes[..]]);
        let is_done = matches!(progress, Progress::Done(_));
        prop_assert!(!is_done);
    }

    #[test]
    fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (progress, ..) = fed([&bytes[..]]);
        let is_done = matches!(progress, Progress::Done(_));
        prop_assert!(!is_done);
    }
}
