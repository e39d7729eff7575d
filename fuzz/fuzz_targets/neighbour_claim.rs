//! An Ethernet frame that may be a neighbour advertisement.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pointsman_fuzz::vip_checks::neighbour_claim(data));
