//! The checks of what the hosts of a virtual router send each other. They panic when something is wrong.
//!
//! Whoever tries random bytes finds no seal: where one is needed, the check puts it there.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU8;
use std::path::Path;

use pointsman_config::{Centiseconds, Checksum, Host, NodeName, SecretSource, VrrpProtocol};
use pointsman_vrrp::advert::{Advert, Envelope, Form, PROTOCOL, Reject, decode, peek, split_ipv4};
use pointsman_vrrp::frame::{
    announcement, claim_of_arp, claim_of_neighbour_advertisement, claim_of_neighbour_frame,
};
use pointsman_vrrp::handshake::{Failure, Handshake, Heard, Hello, MAX_MESSAGE, NONCE, Progress, Role};
use pointsman_vrrp::report::{Incarnation, Key, MAX_SIZE, Unsealed, open, seal};
use ring::hmac;

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

/// Every way to speak, for both families and both ways to send.
fn forms(envelope: &Envelope) -> Vec<Form> {
    let auth = SecretSource::Variable("s3cr3t12".to_owned()).read(&Environment).ok();
    let interval = Centiseconds::new(10).expect("it is in range");
    let protocols = [
        VrrpProtocol::V2 { interval_seconds: NonZeroU8::MIN, auth: None },
        VrrpProtocol::V2 { interval_seconds: NonZeroU8::MIN, auth },
        VrrpProtocol::V3 { interval, checksum: Checksum::PseudoHeader },
        VrrpProtocol::V3 { interval, checksum: Checksum::Packet },
    ];
    let ipv6 = envelope.source.is_ipv6();
    let forms = protocols.iter().flat_map(|protocol| {
        [Vec::new(), vec![envelope.source, envelope.destination]]
            .map(|unicast| Form::new(protocol.clone(), ipv6, unicast))
    });
    forms.collect()
}

/// What an Ethernet frame carries, if it is an IP packet of VRRP.
fn packet(frame: &[u8]) -> Option<Result<(Envelope, &[u8]), Reject>> {
    let packet = frame.get(14..)?;
    if frame.get(12..14)? == [0x08, 0] {
        return Some(split_ipv4(packet));
    }
    let address = |at| packet.get(at..at + 16)?.first_chunk::<16>().map(|octets| IpAddr::from(*octets));
    let envelope = Envelope { source: address(8)?, destination: address(24)?, hop_limit: *packet.get(7)? };
    (packet.get(6) == Some(&PROTOCOL)).then_some(Ok((envelope, packet.get(40..)?)))
}

fn rejected(reject: Reject) {
    assert!(Reject::LABELS.contains(&reject.label()));
    assert!(!reject.to_string().is_empty());
}

/// Reads an Ethernet frame as an advert, in every form. What was read is written and read again, in the same length;
/// nothing is both of version 2 and of version 3.
pub fn vrrp_advert(data: &[u8]) {
    let (envelope, payload) = match packet(data) {
        None => return,
        Some(Ok(packet)) => packet,
        Some(Err(reject)) => return rejected(reject),
    };
    let mut versions = Vec::new();
    for form in forms(&envelope) {
        let mut advert = match decode(payload, &envelope, &form) {
            Ok(advert) => advert,
            Err(reject) => {
                rejected(reject);
                continue;
            }
        };
        assert_eq!(peek(payload), Some((form.version(), advert.router_id)));
        let written = advert.encode(&form, envelope.source, envelope.destination);
        assert_eq!(written.len(), payload.len());
        let is_link_local =
            |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        advert.addresses.sort_by_key(|address| !is_link_local(address));
        assert_eq!(decode(&written, &envelope, &form), Ok(advert.clone()));
        let quiet = Advert { priority: 0, ..advert };
        for packet in form.packets(&quiet, envelope.source) {
            assert_eq!(decode(&packet.payload, &packet.envelope, &form), Ok(quiet.clone()));
        }
        versions.push(form.version());
    }
    versions.dedup();
    assert!(versions.len() <= 1, "{versions:?}");
}

/// Reads an Ethernet frame as ARP: what it claims is what an announcement would claim.
pub fn arp_claim(data: &[u8]) {
    let Some((address, mac)) = claim_of_arp(data) else { return };
    assert!(data.len() >= 42 && !address.is_unspecified());
    assert_eq!(data[22..28], mac.0);
    let written = announcement(address.into(), mac, false);
    assert_eq!(written[..20], [&[0xff; 6][..], &mac.0, &data[12..20]].concat());
    assert_eq!(claim_of_arp(&written), Some((address, mac)));
    assert_eq!(claim_of_neighbour_frame(data), None);
}

/// Reads an Ethernet frame as a neighbour advertisement, and all of it as its message alone.
pub fn neighbour_claim(data: &[u8]) {
    let _ = claim_of_neighbour_advertisement(data, Ipv6Addr::LOCALHOST);
    let message = data.get(54..).unwrap_or_default();
    let loose = claim_of_neighbour_advertisement(message, Ipv6Addr::LOCALHOST);
    let Some((address, mac)) = claim_of_neighbour_frame(data) else { return };
    assert!(!address.is_multicast() && !address.is_unspecified());
    // Unless the frame was filled up, the message reaches to its end.
    let length = usize::from(u16::from_be_bytes([data[18], data[19]]));
    assert!(loose == Some((address, mac)) || length < message.len());
    for router in [false, true] {
        let written = announcement(address.into(), mac, router);
        assert_eq!(claim_of_neighbour_frame(&written), Some((address, mac)));
    }
    assert_eq!(claim_of_arp(data), None);
}

const SECRET: &[u8] = b"a key for the fuzz targets";
const SEAL: usize = 32;

/// As the documentation of the peers' protocol says: one key for each use.
fn sealed(purpose: &str, content: &[u8]) -> [u8; SEAL] {
    let root = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
    let derived = hmac::sign(&root, format!("pointsman-vip 1 {purpose}").as_bytes());
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()), content);
    *tag.as_ref().first_chunk().expect("SHA-256 has 32 bytes")
}

/// Reads the content of a report that somebody with the key has sealed: there is one way to write it. Without a seal it is
/// nothing.
pub fn peer_report(data: &[u8]) {
    let key = Key::derive(SECRET);
    let plain = open(&key, data);
    assert!(plain.is_err());
    let datagram = [data, &sealed("report", data)].concat();
    match open(&key, &datagram) {
        Ok((sender, report)) => {
            assert!(datagram.len() <= MAX_SIZE);
            assert!(report.routers.len() + report.sees.len() <= data.len());
            assert_eq!(seal(&key, &sender, &report), datagram);
        }
        Err(refusal) => {
            assert!(Unsealed::LABELS.contains(&refusal.label()));
            assert_ne!(refusal, Unsealed::Seal);
        }
    }
}

fn hello() -> Hello {
    let node = NodeName::new("lb2").expect("it is a name");
    Hello { node, incarnation: Incarnation(2), nonce: [2; NONCE] }
}

/// What a host says and hears when it is fed these pieces: progress, all that it said, and what came behind.
fn conversation<'a>(
    role: Role,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Progress, Vec<u8>, Option<Heard>) {
    let mut host = Handshake::new(Key::derive(SECRET), hello(), role);
    let mut said = host.outgoing();
    let mut progress = Progress::NeedMore;
    for piece in pieces {
        progress = host.feed(piece);
        said.extend(host.outgoing());
        if let Progress::Failed(failure) = progress {
            assert!(Failure::LABELS.contains(&failure.label()));
        }
    }
    (progress, said, host.into_stream().map(|mut stream| stream.feed(&[])))
}

/// Reads what another host says in a handshake. The first byte says whether it calls (1), whether its proof is made right
/// (2), and its farewell (4). In whatever pieces it comes, the same comes of it; without a proof there is no end to it.
pub fn peer_handshake(data: &[u8]) {
    let Some((bits, words)) = data.split_first() else { return };
    let (ours, theirs, mark) = match bits & 1 {
        1 => (Role::Callee, Role::Caller, b'>'),
        _ => (Role::Caller, Role::Callee, b'<'),
    };
    let mut words = words.to_vec();
    let length = words.get(5).map_or(usize::MAX, |name| 6 + usize::from(*name) + 8 + NONCE);
    let own = Handshake::new(Key::derive(SECRET), hello(), ours).outgoing();
    if let Some(hello) = words.get(..length) {
        let hellos = if theirs == Role::Caller { [hello, &own] } else { [&own, hello] };
        let transcript = [&[mark][..], &hellos.concat()].concat();
        for (bit, purpose, at) in [(2, "proof", length), (4, "farewell", length + SEAL)] {
            if let (true, Some(place)) = (bits & bit != 0, words.get_mut(at..at + SEAL)) {
                place.copy_from_slice(&sealed(purpose, &transcript));
            }
        }
    }
    let whole = conversation(ours, [&words[..]]);
    for size in [1, 7, 40] {
        assert_eq!(conversation(ours, words.chunks(size)), whole);
    }
    let (progress, said, heard) = whole;
    assert!(said.len() <= MAX_MESSAGE + SEAL);
    match progress {
        Progress::Done(peer) => {
            assert_ne!(peer.node, hello().node);
            assert!(bits & 2 != 0 && words.len() >= length + SEAL);
            let is_whole = words.len() >= length + 2 * SEAL;
            assert_eq!(heard == Some(Heard::Farewell), is_whole && bits & 4 != 0);
            assert_eq!(heard == Some(Heard::Nothing), !is_whole);
        }
        Progress::NeedMore | Progress::Failed(_) => assert_eq!(heard, None),
    }
}
