//! An Ethernet frame with an advert.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pointsman_fuzz::vip_checks::vrrp_advert(data));
