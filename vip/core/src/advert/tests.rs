use std::io;
use std::path::Path;

use pointsman_config::{Centiseconds, Host, Secret, SecretSource};
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// The value of each variable is its name.
struct Environment;

impl Host for Environment {
    fn read_file(&self, _: &Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn variable(&self, name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    fn host_name(&self) -> Option<String> {
        None
    }
}

fn secret(text: &str) -> Secret {
    SecretSource::Variable(text.to_owned()).read(&Environment).unwrap()
}

fn v2(auth: Option<&str>) -> VrrpProtocol {
    VrrpProtocol::V2 { interval_seconds: NonZeroU8::MIN, auth: auth.map(secret) }
}

fn v3(checksum: Checksum) -> VrrpProtocol {
    VrrpProtocol::V3 { interval: Centiseconds::new(100).unwrap(), checksum }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn multicast(protocol: VrrpProtocol, ipv6: bool) -> Form {
    Form::new(protocol, ipv6, Vec::new())
}

fn unicast(protocol: VrrpProtocol, hosts: &[&str]) -> Form {
    Form::new(protocol, hosts[0].contains(':'), hosts.iter().map(|host| ip(host)).collect())
}

fn advert(addresses: &[&str]) -> Advert {
    Advert {
        router_id: NonZeroU8::new(51).unwrap(),
        priority: 100,
        interval: Duration::from_secs(1),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
    }
}

fn envelope(source: &str, destination: &str) -> Envelope {
    Envelope { source: ip(source), destination: ip(destination), hop_limit: 255 }
}

const V4: &[&str] = &["10.0.0.50", "10.0.0.60"];

/// What a router of this form sends, with its envelope.
fn sent(form: &Form, source: &str) -> (Envelope, Vec<u8>) {
    let addresses = if form.is_ipv6() { &["fe80::50", "fd00::50"] } else { V4 };
    let packet = form.packets(&advert(addresses), ip(source)).remove(0);
    (packet.envelope, packet.payload)
}

/// The same with something changed and the checksum made right again.
fn forged(form: &Form, source: &str, change: impl Fn(&mut Vec<u8>)) -> Result<Advert, Reject> {
    let (envelope, mut payload) = sent(form, source);
    change(&mut payload);
    if payload.len() >= HEADER {
        payload[6..8].fill(0);
        let sum = checksum::of(&payload, form.pseudo_header(&envelope, payload.len()));
        payload[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    decode(&payload, &envelope, form)
}

#[test]
fn forged_packets_are_refused_for_what_is_wrong_with_them() {
    let v3_form = multicast(v3(Checksum::PseudoHeader), false);
    let change = |change: &dyn Fn(&mut Vec<u8>)| forged(&v3_form, "10.0.0.1", change).unwrap_err();
    assert_eq!(change(&|p| p.truncate(7)), Reject::Length { length: 7, expected: 8 });
    assert_eq!(change(&|p| p.truncate(0)), Reject::Length { length: 0, expected: 8 });
    assert_eq!(change(&|p| p.truncate(12)), Reject::Length { length: 12, expected: 16 });
    assert_eq!(change(&|p| p.push(0)), Reject::Length { length: 17, expected: 16 });
    // As some routers send with version 3 what only version 2 has.
    assert_eq!(change(&|p| p.extend([0; 8])), Reject::Length { length: 24, expected: 16 });
    assert_eq!(change(&|p| p[3] = 3), Reject::Length { length: 16, expected: 20 });
    assert_eq!(change(&|p| p[3] = 0), Reject::NoAddresses);
    assert_eq!(change(&|p| p[0] = 0x21), Reject::Version { theirs: 2, ours: 3 });
    assert_eq!(change(&|p| p[0] = 0x41), Reject::Version { theirs: 4, ours: 3 });
    assert_eq!(change(&|p| p[0] = 0x32), Reject::Type { theirs: 2 });
    assert_eq!(change(&|p| p[1] = 0), Reject::RouterId);
    assert_eq!(change(&|p| p[4..6].fill(0)), Reject::NoInterval);
}

#[test]
fn version_2_is_strict_about_password_and_interval() {
    let (open, closed) = (multicast(v2(None), false), multicast(v2(Some("s3cr3t12")), false));
    let change = |form, change: &dyn Fn(&mut Vec<u8>)| forged(form, "10.0.0.1", change);
    let (none, password) = (AuthType::NONE, AuthType::PASSWORD);
    assert_eq!(change(&closed, &|p| p[4] = 0), Err(Reject::AuthType { theirs: none, ours: password }));
    assert_eq!(change(&closed, &|p| p[4] = 2), Err(Reject::AuthType { theirs: AuthType(2), ours: password }));
    assert_eq!(change(&open, &|p| p[4] = 1), Err(Reject::AuthType { theirs: password, ours: none }));
    for at in 16..24 {
        assert_eq!(change(&closed, &|p| p[at] ^= 1), Err(Reject::Password));
        // Without authentication the bytes are there and mean nothing (RFC 3768, section 5.3.10).
        assert_eq!(change(&open, &|p| p[at] ^= 1), Ok(advert(V4)));
    }
    let [theirs, ours] = [3, 1].map(Duration::from_secs);
    assert_eq!(change(&open, &|p| p[5] = 3), Err(Reject::Interval { theirs, ours }));
    let theirs = Duration::ZERO;
    assert_eq!(change(&closed, &|p| p[5] = 0), Err(Reject::Interval { theirs, ours }));
    assert_eq!(change(&open, &|p| p.truncate(16)), Err(Reject::Length { length: 16, expected: 24 }));
    assert_eq!(change(&open, &|p| p[0] = 0x31), Err(Reject::Version { theirs: 3, ours: 2 }));
}

/// A shorter password is padded with zeros; one with more than eight bytes is cut, as keepalived does.
#[test]
fn passwords_have_eight_bytes() {
    let written = |password| sent(&multicast(v2(Some(password)), false), "10.0.0.1").1[16..].to_vec();
    assert_eq!(written("abc"), b"abc\0\0\0\0\0");
    assert_eq!(written("123456789"), b"12345678");
}

#[test]
fn what_the_reserved_bits_say_does_not_matter() {
    let form = multicast(v3(Checksum::PseudoHeader), false);
    assert_eq!(forged(&form, "10.0.0.1", |p| p[4] |= 0xf0), Ok(advert(V4)));
    let slow = Advert { interval: Duration::from_millis(40_950), ..advert(V4) };
    assert_eq!(forged(&form, "10.0.0.1", |p| p[4..6].fill(0xff)), Ok(slow));
}

#[test]
fn the_checksum_may_cover_the_pseudo_header_or_not_for_ipv4() {
    let forms = [Checksum::PseudoHeader, Checksum::Packet].map(|sum| multicast(v3(sum), false));
    let [with, without] = forms.each_ref().map(|form| sent(form, "10.0.0.1"));
    assert_ne!(with, without);
    for form in &forms {
        for (envelope, payload) in [&with, &without] {
            assert_eq!(decode(payload, envelope, form), Ok(advert(V4)));
        }
        let (envelope, mut payload) = with.clone();
        payload[2] ^= 1;
        assert_eq!(decode(&payload, &envelope, form), Err(Reject::Checksum));
    }
    let (envelope, payload) = with;
    let elsewhere = Envelope { source: ip("10.0.0.2"), ..envelope };
    assert_eq!(decode(&payload, &elsewhere, &forms[0]), Err(Reject::Checksum));
}

/// Version 2 has it without, IPv6 with the pseudo-header; nothing else is right.
#[test]
fn the_checksum_has_one_form_elsewhere() {
    for (form, source) in
        [(multicast(v2(None), false), "10.0.0.1"), (multicast(v3(Checksum::Packet), true), "fe80::1")]
    {
        let (envelope, mut payload) = sent(&form, source);
        assert!(decode(&payload, &envelope, &form).is_ok());
        let other = if form.is_ipv6() { 0 } else { pseudo_header(&envelope, payload.len()) };
        payload[6..8].fill(0);
        let sum = checksum::of(&payload, other);
        payload[6..8].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(decode(&payload, &envelope, &form), Err(Reject::Checksum));
    }
}

#[test]
fn multicast_routers_hear_only_the_group_and_only_from_next_door() {
    for (form, source, alone) in [
        (multicast(v2(None), false), "10.0.0.1", "10.0.0.2"),
        (multicast(v3(Checksum::Packet), false), "10.0.0.1", "10.0.0.2"),
        (multicast(v3(Checksum::PseudoHeader), true), "fe80::1", "fe80::2"),
    ] {
        let (envelope, payload) = sent(&form, source);
        assert_eq!(envelope, Envelope { source: ip(source), destination: form.group(), hop_limit: 255 });
        let through = |envelope: Envelope| decode(&payload, &envelope, &form);
        assert!(through(envelope).is_ok());
        let least = 255;
        for hop_limit in [0, 1, 64, 254] {
            let far = Envelope { hop_limit, ..envelope };
            assert_eq!(through(far), Err(Reject::HopLimit { hop_limit, least }));
        }
        let destination = ip(alone);
        assert_eq!(through(Envelope { destination, ..envelope }), Err(Reject::Unicast { destination }));
    }
}

#[test]
fn unicast_routers_hear_only_the_configured_hosts() {
    for hosts in [["10.0.0.1", "10.0.0.2", "10.0.9.3"], ["fd00::1", "fd00::2", "fd00::3"]] {
        let form = unicast(v3(Checksum::PseudoHeader), &hosts);
        let (envelope, payload) = sent(&form, hosts[0]);
        assert_eq!(envelope, Envelope { source: ip(hosts[0]), destination: ip(hosts[1]), hop_limit: 255 });
        let through = |envelope: Envelope| decode(&payload, &envelope, &form);
        for hop_limit in [64, 128, 254, 255] {
            assert!(through(Envelope { hop_limit, ..envelope }).is_ok());
        }
        let far = Envelope { hop_limit: 63, ..envelope };
        assert_eq!(through(far), Err(Reject::HopLimit { hop_limit: 63, least: 64 }));
        let stranger = if form.is_ipv6() { ip("fd00::9") } else { ip("10.0.0.9") };
        let strange = Envelope { source: stranger, ..envelope };
        assert_eq!(through(strange), Err(Reject::Stranger { host: stranger }));
        assert_eq!(through(Envelope { destination: form.group(), ..envelope }), Err(Reject::Multicast));
    }
}

#[test]
fn a_sender_is_a_host_of_the_same_family() {
    let form = multicast(v3(Checksum::PseudoHeader), false);
    let (_, payload) = sent(&form, "10.0.0.1");
    let from = |source, destination| decode(&payload, &envelope(source, destination), &form);
    assert_eq!(from("fe80::1", "ff02::12"), Err(Reject::Family { ipv6: true }));
    assert_eq!(from("10.0.0.1", "ff02::12"), Err(Reject::Family { ipv6: false }));
    for source in ["0.0.0.0", "224.0.0.18", "255.255.255.255"] {
        assert_eq!(from(source, "224.0.0.18"), Err(Reject::Source { host: ip(source) }));
    }
}

#[test]
fn a_link_local_address_goes_first() {
    let form = multicast(v3(Checksum::PseudoHeader), true);
    let order = |addresses: &[&str]| {
        let payload = advert(addresses).encode(&form, ip("fe80::1"), GROUP_V6.into());
        decode(&payload, &envelope("fe80::1", "ff02::12"), &form).unwrap().addresses
    };
    let expected = ["fe80::9", "fe80::8", "fd00::2", "fd00::1"].map(ip);
    assert_eq!(order(&["fd00::2", "fe80::9", "fd00::1", "fe80::8"]), expected);
    assert_eq!(order(&["fd00::2", "fd00::1"]), [ip("fd00::2"), ip("fd00::1")]);
}

#[test]
fn packets_go_to_every_other_host() {
    let form = unicast(v3(Checksum::PseudoHeader), &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let quiet = Advert { priority: 0, ..advert(V4) };
    let packets = form.packets(&quiet, ip("10.0.0.2"));
    let to: Vec<_> = packets.iter().map(|packet| packet.envelope.destination).collect();
    assert_eq!(to, [ip("10.0.0.1"), ip("10.0.0.3")]);
    for packet in packets {
        assert_eq!(decode(&packet.payload, &packet.envelope, &form), Ok(quiet.clone()));
    }
}

/// What does not fit into a field is cut to what does.
#[test]
fn nothing_is_too_large_to_be_written() {
    let many =
        (0..300_u16).map(|number| IpAddr::from([10, 0, number.to_be_bytes()[0], number.to_be_bytes()[1]]));
    let large = Advert { addresses: many.collect(), interval: Duration::from_secs(3600), ..advert(V4) };
    for form in [multicast(v2(None), false), multicast(v3(Checksum::PseudoHeader), false)] {
        let payload = large.encode(&form, ip("10.0.0.1"), GROUP_V4.into());
        assert_eq!(payload[3], 255);
        let read = decode(&payload, &envelope("10.0.0.1", "224.0.0.18"), &form);
        match form.version() {
            2 => assert!(matches!(read, Err(Reject::Interval { .. })), "{read:?}"),
            _ => assert_eq!(read.unwrap().addresses, large.addresses[..255]),
        }
    }
}

fn ipv4_packet(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = vec![0x45, 0xc0, 0, 24, 0, 1, 0, 0, 255, 112, 0, 0, 10, 0, 0, 1, 224, 0, 0, 18];
    packet.extend([1, 2, 3, 4]);
    change(&mut packet);
    packet
}

#[test]
fn the_header_is_taken_off() {
    let from = envelope("10.0.0.1", "224.0.0.18");
    let split = |change: &dyn Fn(&mut Vec<u8>)| {
        split_ipv4(&ipv4_packet(change)).map(|(envelope, payload)| (envelope, payload.to_vec()))
    };
    assert_eq!(split(&|_| ()), Ok((from, vec![1, 2, 3, 4])));
    // Short Ethernet frames are filled up.
    assert_eq!(split(&|p| p.extend([0; 22])), Ok((from, vec![1, 2, 3, 4])));
    let options = |packet: &mut Vec<u8>| {
        packet[0] = 0x46;
        packet[3] = 28;
        packet.splice(20..20, [0x94, 4, 0, 0]);
    };
    assert_eq!(split(&options), Ok((from, vec![1, 2, 3, 4])));
    // "Do not fragment" is not a fragment.
    assert_eq!(split(&|p| p[6] = 0x40), Ok((from, vec![1, 2, 3, 4])));
    assert_eq!(split(&|p| p[6] = 0x20), Err(Reject::Fragment));
    assert_eq!(split(&|p| p[7] = 1), Err(Reject::Fragment));
    assert_eq!(split(&|p| p[9] = 17), Err(Reject::Protocol { theirs: 17 }));
    for broken in [
        &|p: &mut Vec<u8>| p.truncate(19),
        &|p: &mut Vec<u8>| p.truncate(23),
        &|p: &mut Vec<u8>| p[0] = 0x44,
        &|p: &mut Vec<u8>| p[0] = 0x4f,
        &|p: &mut Vec<u8>| p[0] = 0x65,
        &|p: &mut Vec<u8>| p[3] = 19,
    ] as [&dyn Fn(&mut Vec<u8>); 6]
    {
        assert_eq!(split(broken), Err(Reject::Header));
    }
}

#[test]
fn whose_a_packet_is() {
    assert_eq!(peek(&[0x21, 7]), Some((2, NonZeroU8::new(7).unwrap())));
    assert_eq!(peek(&[0x31, 255, 1, 1]), Some((3, NonZeroU8::MAX)));
    assert_eq!(peek(&[0x31, 0, 1, 1]), None);
    assert_eq!(peek(&[0x31]), None);
    assert_eq!(peek(&[]), None);
}

/// One of each.
fn rejects() -> Vec<Reject> {
    let host = ip("10.0.0.9");
    let seconds = Duration::from_secs;
    vec![
        Reject::Header,
        Reject::Protocol { theirs: 6 },
        Reject::Fragment,
        Reject::Family { ipv6: true },
        Reject::Source { host },
        Reject::Unicast { destination: host },
        Reject::Multicast,
        Reject::Stranger { host },
        Reject::HopLimit { hop_limit: 3, least: 64 },
        Reject::Length { length: 9, expected: 16 },
        Reject::Version { theirs: 2, ours: 3 },
        Reject::Type { theirs: 2 },
        Reject::RouterId,
        Reject::NoAddresses,
        Reject::Checksum,
        Reject::AuthType { theirs: AuthType::HEADER, ours: AuthType::NONE },
        Reject::Password,
        Reject::Interval { theirs: seconds(3), ours: seconds(1) },
        Reject::NoInterval,
    ]
}

#[test]
fn every_reject_has_a_label_and_a_sentence() {
    let labels: Vec<_> = rejects().iter().map(Reject::label).collect();
    assert_eq!(labels, Reject::LABELS);
    for reject in rejects() {
        let sentence = reject.to_string();
        assert!(sentence.starts_with("it"), "{sentence}");
        assert!(!sentence.contains("  ") && !sentence.ends_with('.'), "{sentence}");
    }
    let words = |reject: Reject| reject.to_string();
    assert_eq!(
        words(Reject::Interval { theirs: Duration::from_secs(3), ours: Duration::from_secs(1) }),
        "it is sent every 3 s and ours every 1 s: with version 2 all hosts have to have the same `advert_interval`"
    );
    assert_eq!(
        words(Reject::AuthType { theirs: AuthType::NONE, ours: AuthType::PASSWORD }),
        "it uses no authentication and this router a password: give all hosts the same `auth` (keepalived: `auth_type PASS` \
         or no authentication)"
    );
}

/// A form and hosts of it.
fn any_form() -> impl Strategy<Value = (Form, IpAddr, IpAddr)> {
    let protocol = prop_oneof![
        (1..=255_u8, proptest::option::of("[!-~]{1,8}")).prop_map(|(seconds, password)| VrrpProtocol::V2 {
            interval_seconds: NonZeroU8::new(seconds).unwrap(),
            auth: password.as_deref().map(secret),
        }),
        any::<bool>().prop_map(|packet| v3(if packet { Checksum::Packet } else { Checksum::PseudoHeader })),
    ];
    (protocol, any::<bool>(), any::<bool>()).prop_map(|(protocol, ipv6, unicast)| {
        let ipv6 = ipv6 && matches!(protocol, VrrpProtocol::V3 { .. });
        let hosts = if ipv6 { ["fd00::1", "fd00::2"].map(ip) } else { ["10.0.0.1", "10.0.0.2"].map(ip) };
        let form = Form::new(protocol, ipv6, if unicast { hosts.to_vec() } else { Vec::new() });
        let destination = if unicast { hosts[1] } else { form.group() };
        (form, hosts[0], destination)
    })
}

fn any_advert() -> impl Strategy<Value = (Form, Envelope, Advert)> {
    let addresses = proptest::collection::vec(any::<u128>(), 1..=255);
    (any_form(), any::<u8>(), 1..=255_u8, 1..=4095_u64, addresses).prop_map(
        |((form, source, destination), priority, router_id, hundredths, addresses)| {
            let interval = match form.protocol {
                VrrpProtocol::V2 { interval_seconds, .. } => {
                    Duration::from_secs(interval_seconds.get().into())
                }
                VrrpProtocol::V3 { .. } => Duration::from_millis(hundredths * 10),
            };
            let short = |bits: u128| IpAddr::from(<[u8; 4]>::try_from(&bits.to_be_bytes()[12..]).unwrap());
            let long = |bits: u128| IpAddr::from(bits.to_be_bytes());
            let mut addresses: Vec<_> =
                addresses.into_iter().map(|bits| if form.ipv6 { long(bits) } else { short(bits) }).collect();
            addresses.sort_by_key(|address| !is_link_local(*address));
            let router_id = NonZeroU8::new(router_id).unwrap();
            let envelope = Envelope { source, destination, hop_limit: 255 };
            (form, envelope, Advert { router_id, priority, interval, addresses })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_was_written_is_read((form, envelope, advert) in any_advert()) {
        let payload = advert.encode(&form, envelope.source, envelope.destination);
        prop_assert_eq!(decode(&payload, &envelope, &form), Ok(advert));
    }

    #[test]
    fn any_bytes_are_judged((form, source, destination) in any_form(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let envelope = Envelope { source, destination, hop_limit: 255 };
        let _ = decode(&bytes, &envelope, &form);
        let _ = peek(&bytes);
        let _ = split_ipv4(&bytes);
    }

    /// The checksum finds every change of one bit; what is left is what nobody looks at.
    #[test]
    fn one_changed_bit_is_found((form, envelope, advert) in any_advert(), at in any::<Index>(), bit in 0..8_u32) {
        let mut payload = advert.encode(&form, envelope.source, envelope.destination);
        *at.get_mut(&mut payload) ^= 1_u8 << bit;
        prop_assert!(decode(&payload, &envelope, &form).is_err());
    }

    #[test]
    fn a_packet_is_cut_nowhere((form, envelope, advert) in any_advert(), end in any::<Index>()) {
        let payload = advert.encode(&form, envelope.source, envelope.destination);
        let end = end.index(payload.len());
        let is_length = matches!(decode(&payload[..end], &envelope, &form), Err(Reject::Length { .. }));
        prop_assert!(is_length);
    }
}
