//! What must hold for any bytes. The fuzz targets feed these checks; so does a test of `pointsman-core`, with the
//! corpus and random mutations of it, where only a stable toolchain is at hand.
//!
//! Run with `cargo +nightly fuzz run startup` or `server_reply`, in the repository's root.

pub mod checks;
