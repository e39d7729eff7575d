//! The content of a report of another host.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pointsman_fuzz::vip_checks::peer_report(data));
