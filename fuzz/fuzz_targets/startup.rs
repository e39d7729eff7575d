//! A client's first bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pointsman_fuzz::checks::startup(data));
