//! What must hold for any bytes. The fuzz targets feed these checks; so do tests of `pointsman-core` and
//! `pointsman-vrrp`, with the corpus and random mutations of it, where only a stable toolchain is at hand.
//!
//! Run with `cargo +nightly fuzz run TARGET` in the repository's root: `startup`, `server_reply`, `patroni_keys`,
//! `rest_status`, `rest_cluster`, `consul_kv`, `sql_row`; `vrrp_advert`, `arp_claim`, `neighbour_claim`, `peer_report`,
//! `peer_handshake`.

pub mod checks;
pub mod vip_checks;
