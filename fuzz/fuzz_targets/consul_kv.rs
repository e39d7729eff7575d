//! What Consul's KV store answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pointsman_fuzz::checks::consul_kv(data));
