//! What must hold for any bytes. The fuzz targets feed these checks; so does a test of `pointsman-core`, with the
//! corpus and random mutations of it, where only a stable toolchain is at hand.
//!
//! Run with `cargo +nightly fuzz run TARGET` in the repository's root: `startup`, `server_reply`, `patroni_keys`,
//! `rest_status`, `rest_cluster`, `consul_kv`.

pub mod checks;
