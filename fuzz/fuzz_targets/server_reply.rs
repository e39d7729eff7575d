//! A server's first bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pointsman_fuzz::checks::server_reply(data));
