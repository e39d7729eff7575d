use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);

fn ipv6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

#[test]
fn macs_are_written_as_everywhere() {
    assert_eq!(Mac([0, 0x1b, 0x21, 0xab, 0xcd, 0xef]).to_string(), "00:1b:21:ab:cd:ef");
    assert_eq!(format!("{:?}", Mac::ALL_NODES), "33:33:00:00:00:01");
}

fn claim(change: impl Fn(&mut Vec<u8>)) -> Option<(Ipv4Addr, Mac)> {
    let mut frame = gratuitous_arp(OURS, MAC).to_vec();
    change(&mut frame);
    claim_of_arp(&frame)
}

#[test]
fn requests_and_replies_claim_the_address_of_their_sender() {
    assert_eq!(claim(|_| ()), Some((OURS, MAC)));
    // A reply, and a request for another address.
    assert_eq!(claim(|f| f[21] = 2), Some((OURS, MAC)));
    assert_eq!(claim(|f| f[38..42].copy_from_slice(&[10, 0, 0, 1])), Some((OURS, MAC)));
    // Short frames are filled up.
    assert_eq!(claim(|f| f.resize(60, 0)), Some((OURS, MAC)));
}

#[test]
fn probes_and_other_frames_claim_nothing() {
    for (what, change) in [
        ("a probe", &|f: &mut Vec<u8>| f[28..32].fill(0)),
        ("a group", &|f: &mut Vec<u8>| f[28] = 224),
        ("everybody", &|f: &mut Vec<u8>| f[28..32].fill(255)),
        ("no MAC", &|f: &mut Vec<u8>| f[22..28].fill(0)),
        ("the MAC of a group", &|f: &mut Vec<u8>| f[22] = 3),
        ("RARP", &|f: &mut Vec<u8>| f[21] = 3),
        ("opcode 256", &|f: &mut Vec<u8>| f[20] = 1),
        ("another EtherType", &|f: &mut Vec<u8>| f[13] = 0),
        ("a VLAN tag", &|f: &mut Vec<u8>| drop(f.splice(12..12, [0x81, 0, 0, 5]))),
        ("no Ethernet", &|f: &mut Vec<u8>| f[15] = 6),
        ("no IPv4", &|f: &mut Vec<u8>| f[16] = 0x86),
        ("long addresses", &|f: &mut Vec<u8>| f[18] = 8),
        ("cut", &|f: &mut Vec<u8>| f.truncate(41)),
    ] as [(&str, &dyn Fn(&mut Vec<u8>)); 13]
    {
        assert_eq!(claim(change), None, "{what}");
    }
}

fn message(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = neighbour_advertisement(ipv6("fd00::50"), MAC, false)[54..].to_vec();
    change(&mut message);
    message
}

#[test]
fn neighbour_advertisements_claim_their_target() {
    let claim =
        |change: &dyn Fn(&mut Vec<u8>)| claim_of_neighbour_advertisement(&message(change), ipv6("fe80::9"));
    let expected = Some((ipv6("fd00::50"), MAC));
    assert_eq!(claim(&|_| ()), expected);
    // Whatever the flags say.
    assert_eq!(claim(&|m| m[4] = 0xe0), expected);
    assert_eq!(claim(&|m| m[4] = 0), expected);
    // Other options before and after; the first address counts.
    assert_eq!(claim(&|m| drop(m.splice(24..24, [14, 1, 0, 0, 0, 0, 0, 0]))), expected);
    assert_eq!(claim(&|m| m.extend([14, 2].into_iter().chain([0; 14]))), expected);
    assert_eq!(claim(&|m| m.extend([2, 1, 9, 9, 9, 9, 9, 9])), expected);
}

#[test]
fn other_messages_claim_nothing() {
    let source = ipv6("fe80::9");
    for (what, change) in [
        ("a solicitation", &|m: &mut Vec<u8>| m[0] = 135),
        ("another code", &|m: &mut Vec<u8>| m[1] = 1),
        ("a group", &|m: &mut Vec<u8>| m[8] = 0xff),
        ("nothing", &|m: &mut Vec<u8>| m[8..24].fill(0)),
        ("no option", &|m: &mut Vec<u8>| m.truncate(24)),
        ("half an option", &|m: &mut Vec<u8>| m.truncate(30)),
        ("one byte more", &|m: &mut Vec<u8>| m.push(2)),
        ("an option of no length", &|m: &mut Vec<u8>| m.extend([2, 0, 0, 0, 0, 0, 0, 0])),
        ("an option beyond the end", &|m: &mut Vec<u8>| m[25] = 2),
        ("another option", &|m: &mut Vec<u8>| m[24] = 1),
        ("cut", &|m: &mut Vec<u8>| m.truncate(23)),
        ("no MAC", &|m: &mut Vec<u8>| m[26..32].fill(0)),
    ] as [(&str, &dyn Fn(&mut Vec<u8>)); 12]
    {
        assert_eq!(claim_of_neighbour_advertisement(&message(change), source), None, "{what}");
    }
    for source in [Ipv6Addr::UNSPECIFIED, ALL_NODES] {
        assert_eq!(claim_of_neighbour_advertisement(&message(|_| ()), source), None);
    }
}

#[test]
fn whole_frames_are_looked_at_more_closely() {
    let claim = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = neighbour_advertisement(ipv6("fd00::50"), MAC, true).to_vec();
        change(&mut frame);
        claim_of_neighbour_frame(&frame)
    };
    assert_eq!(claim(&|_| ()), Some((ipv6("fd00::50"), MAC)));
    assert_eq!(claim(&|f| f.extend([0; 3])), Some((ipv6("fd00::50"), MAC)));
    for (what, change) in [
        ("a router has passed it on", &|f: &mut Vec<u8>| f[21] = 254),
        ("its checksum is wrong", &|f: &mut Vec<u8>| f[56] ^= 1),
        ("it was damaged", &|f: &mut Vec<u8>| f[85] ^= 1),
        ("it is for somebody else", &|f: &mut Vec<u8>| f[53] ^= 2),
        ("no ICMPv6", &|f: &mut Vec<u8>| f[20] = 59),
        ("no IPv6", &|f: &mut Vec<u8>| f[14] = 0x45),
        ("another EtherType", &|f: &mut Vec<u8>| f[13] = 0),
        ("cut", &|f: &mut Vec<u8>| f.truncate(85)),
        ("longer than it is", &|f: &mut Vec<u8>| f[19] = 40),
    ] as [(&str, &dyn Fn(&mut Vec<u8>)); 9]
    {
        assert_eq!(claim(change), None, "{what}");
    }
}

fn any_mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(Mac).prop_filter("of one network card", |mac| !mac.is_nobody())
}

proptest! {
    #[test]
    fn an_announcement_claims_its_address(bits in any::<u128>(), mac in any_mac(), router in any::<bool>()) {
        let short = Ipv4Addr::from([10, bits.to_be_bytes()[0], bits.to_be_bytes()[1], bits.to_be_bytes()[2]]);
        prop_assert_eq!(claim_of_arp(&announcement(short.into(), mac, router)), Some((short, mac)));
        let long = Ipv6Addr::from(bits >> 8 | 0xfd << 120);
        prop_assert_eq!(claim_of_neighbour_frame(&announcement(long.into(), mac, router)), Some((long, mac)));
    }

    #[test]
    fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let _ = claim_of_arp(&bytes);
        let _ = claim_of_neighbour_frame(&bytes);
        let _ = claim_of_neighbour_advertisement(&bytes, ALL_NODES);
        let message = [&[ADVERTISEMENT, 0][..], &bytes].concat();
        let _ = claim_of_neighbour_advertisement(&message, Ipv6Addr::LOCALHOST);
    }

    /// The checksum finds every change of one bit behind the Ethernet header, except of the flow and its class.
    #[test]
    fn one_changed_bit_is_found(at in any::<Index>(), bit in 0..8_u32) {
        let mut frame = neighbour_advertisement(ipv6("fd00::50"), MAC, false);
        let at = 18 + at.index(frame.len() - 18);
        frame[at] ^= 1_u8 << bit;
        prop_assert_eq!(claim_of_neighbour_frame(&frame), None);
    }
}
