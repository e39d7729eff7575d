//! What keepalived 2.2.7 was captured to send, whole Ethernet frames: each is read as what it is, and written again to the
//! byte.
#![expect(clippy::unwrap_used, reason = "a test: what is known cannot be missing")]

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU8;
use std::path::Path;
use std::time::Duration;

use pointsman_config::{Centiseconds, Checksum, Host, SecretSource, VrrpProtocol};
use pointsman_vrrp::advert::{Envelope, Form, PROTOCOL, Packet, decode, peek, split_ipv4};
use pointsman_vrrp::frame::{
    Mac, announcement, claim_of_arp, claim_of_neighbour_advertisement, claim_of_neighbour_frame,
    gratuitous_arp, neighbour_advertisement,
};

const VECTORS: &str = include_str!("vectors/keepalived-2.2.7.tsv");

fn vectors() -> Vec<(&'static str, Vec<u8>)> {
    let frames = VECTORS.lines().map(|line| {
        let (name, hex) = line.split_once('\t').unwrap();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (name, (0..hex.len()).step_by(2).map(byte).collect())
    });
    frames.collect()
}

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

/// How the routers were configured that sent this.
fn form_of(name: &str, envelope: &Envelope) -> Form {
    let protocol = if name.contains("VRRPv2") {
        let auth = SecretSource::Variable("s3cr3t12".to_owned()).read(&Environment).unwrap();
        VrrpProtocol::V2 { interval_seconds: NonZeroU8::MIN, auth: name.contains("PASS").then_some(auth) }
    } else {
        VrrpProtocol::V3 { interval: Centiseconds::new(10).unwrap(), checksum: Checksum::PseudoHeader }
    };
    let unicast =
        if name.contains("unicast") { vec![envelope.source, envelope.destination] } else { Vec::new() };
    Form::new(protocol, name.contains("IPv6"), unicast)
}

/// The envelope and the payload of a frame.
fn open(frame: &[u8]) -> (Envelope, &[u8]) {
    if frame[12..14] == [0x08, 0x00] {
        return split_ipv4(&frame[14..]).unwrap();
    }
    assert_eq!((frame[14] >> 4, frame[20]), (6, PROTOCOL));
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
    (Envelope { source: address(22), destination: address(38), hop_limit: frame[21] }, &frame[54..])
}

#[test]
fn adverts_are_read_and_written_to_the_byte() {
    let mut seen = 0;
    for (name, frame) in vectors().iter().filter(|(name, _)| name.starts_with("VRRP")) {
        let (envelope, payload) = open(frame);
        let form = form_of(name, &envelope);
        let advert = decode(payload, &envelope, &form).unwrap_or_else(|reject| panic!("{name}: {reject}"));
        assert_eq!(advert.encode(&form, envelope.source, envelope.destination), payload, "{name}");
        assert_eq!(peek(payload), Some((form.version(), advert.router_id)), "{name}");
        assert_eq!(advert.priority == 0, name.contains("priority 0"), "{name}");
        assert_eq!(advert.addresses.len(), 2, "{name}");
        let version_2 = name.contains("VRRPv2");
        let known = [10, 100].map(|hundredths| Duration::from_millis(hundredths * 10));
        assert!(known.contains(&advert.interval) && (!version_2 || advert.interval == known[1]), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 16);
}

/// Priority 0 as the guard sends it, one packet for each destination.
#[test]
fn packets_are_what_keepalived_sends() {
    for (name, frame) in vectors().iter().filter(|(name, _)| name.starts_with("VRRP")) {
        let (envelope, payload) = open(frame);
        let form = form_of(name, &envelope);
        let advert = decode(payload, &envelope, &form).unwrap();
        let envelope = Envelope { hop_limit: 255, ..envelope };
        assert_eq!(
            form.packets(&advert, envelope.source),
            [Packet { envelope, payload: payload.to_vec() }],
            "{name}"
        );
    }
}

#[test]
fn announcements_are_read_and_written_to_the_byte() {
    for (name, frame) in vectors() {
        let mac = if name.contains("VMAC") {
            let family = u8::from(name.contains("NA")) + 1;
            Mac([0, 0, 0x5e, 0, family, if family == 1 { 0x33 } else { 0x34 }])
        } else {
            Mac([2, 0, 0, 0, 0, if name.contains("NA") { 3 } else { 1 }])
        };
        if name.contains("ARP") {
            assert_eq!(claim_of_arp(&frame), Some(([10, 99, 0, 50].into(), mac)), "{name}");
            assert_eq!(gratuitous_arp([10, 99, 0, 50].into(), mac), *frame, "{name}");
            assert_eq!(announcement(IpAddr::from([10, 99, 0, 50]), mac, true), frame, "{name}");
        }
        if name.contains("NA") {
            let network = if name.contains("global") { 0xfd99 } else { 0xfe80 };
            let address = Ipv6Addr::new(network, 0, 0, 0, 0, 0, 0, 0x50);
            assert_eq!(claim_of_neighbour_frame(&frame), Some((address, mac)), "{name}");
            assert_eq!(
                claim_of_neighbour_advertisement(&frame[54..], address),
                Some((address, mac)),
                "{name}"
            );
            assert_eq!(neighbour_advertisement(address, mac, false), *frame, "{name}");
            assert_eq!(announcement(address.into(), mac, false), frame, "{name}");
        }
    }
}

/// No other kind of frame is taken for a claim.
#[test]
fn adverts_claim_nothing() {
    for (name, frame) in vectors().iter().filter(|(name, _)| name.starts_with("VRRP")) {
        assert_eq!(claim_of_arp(frame), None, "{name}");
        assert_eq!(claim_of_neighbour_frame(frame), None, "{name}");
    }
}
