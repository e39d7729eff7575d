//! The corpus of the fuzz targets on a stable toolchain: what it must be read as, and random mutations of it.
//!
//! Files named `keepalived-*` were captured from keepalived 2.2.7.
#![expect(clippy::unwrap_used, reason = "these are for tests: a missing file must fail them")]

use pointsman_vrrp::frame::{claim_of_arp, claim_of_neighbour_frame};
use pointsman_vrrp::handshake::{Handshake, Hello, Progress, Role};
use pointsman_vrrp::report::{Incarnation, Key};
use proptest::prelude::*;

#[path = "../../../fuzz/src/mutation.rs"]
pub mod mutation;
#[path = "../../../fuzz/src/vip_checks.rs"]
pub mod vip_checks;

use mutation::{corpus, mutated};

fn names(target: &str, is_read: impl Fn(&[u8]) -> bool) -> Vec<String> {
    corpus(target).into_iter().filter(|(_, bytes)| is_read(bytes)).map(|(name, _)| name).collect()
}

#[test]
fn these_files_claim_an_address() {
    assert_eq!(
        names("arp_claim", |bytes| claim_of_arp(bytes).is_some()),
        [
            "filled-up",
            "keepalived-gratuitous-arp",
            "keepalived-gratuitous-arp-vmac",
            "reply",
            "request-for-another"
        ]
    );
    assert_eq!(
        names("neighbour_claim", |bytes| claim_of_neighbour_frame(bytes).is_some()),
        [
            "keepalived-unsolicited-na-global-vip",
            "keepalived-unsolicited-na-global-vip-vmac",
            "keepalived-unsolicited-na-link-local-vip",
            "keepalived-unsolicited-na-link-local-vip-vmac",
            "router",
            "solicited",
            "two-options"
        ]
    );
}

/// What a host makes of these words, before any proof is made right.
#[test]
fn these_files_fail_at_once() {
    let failure = |bytes: &[u8]| {
        let hello = Hello { node: "lb2".parse().unwrap(), incarnation: Incarnation(2), nonce: [2; 32] };
        let progress = Handshake::new(Key::derive(b"any"), hello, Role::Callee).feed(&bytes[1..]);
        if let Progress::Failed(failure) = progress { failure.label() } else { "" }
    };
    for (name, label) in [
        ("http", "stranger"),
        ("version-2", "version"),
        ("name-too-long", "name"),
        ("no-name", "name"),
        ("our-own-name", "ourselves"),
        ("call", "proof"),
        ("hello-alone", ""),
        ("half", ""),
    ] {
        let files = corpus("peer_handshake");
        let (_, bytes) = files.iter().find(|(file, _)| file == name).unwrap();
        assert_eq!(failure(bytes), label, "{name}");
    }
}

#[test]
fn the_checks_hold_for_the_corpus() {
    for (target, check) in [
        ("vrrp_advert", vip_checks::vrrp_advert as fn(&[u8])),
        ("arp_claim", vip_checks::arp_claim),
        ("neighbour_claim", vip_checks::neighbour_claim),
        ("peer_report", vip_checks::peer_report),
        ("peer_handshake", vip_checks::peer_handshake),
    ] {
        for (_, bytes) in corpus(target) {
            check(&bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_checks_hold_for_mutated_adverts(bytes in mutated("vrrp_advert")) {
        vip_checks::vrrp_advert(&bytes);
    }

    #[test]
    fn the_checks_hold_for_mutated_arp(bytes in mutated("arp_claim")) {
        vip_checks::arp_claim(&bytes);
    }

    #[test]
    fn the_checks_hold_for_mutated_neighbour_advertisements(bytes in mutated("neighbour_claim")) {
        vip_checks::neighbour_claim(&bytes);
    }

    #[test]
    fn the_checks_hold_for_mutated_reports(bytes in mutated("peer_report")) {
        vip_checks::peer_report(&bytes);
    }

    #[test]
    fn the_checks_hold_for_mutated_handshakes(bytes in mutated("peer_handshake")) {
        vip_checks::peer_handshake(&bytes);
    }
}
