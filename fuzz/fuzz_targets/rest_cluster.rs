//! The bodies of several answers to `GET /cluster`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pointsman_fuzz::checks::rest_cluster(data));
