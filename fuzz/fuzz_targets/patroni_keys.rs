//! What the store holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pointsman_fuzz::checks::patroni_keys(data));
