//! An Ethernet frame that may be ARP.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pointsman_fuzz::vip_checks::arp_claim(data));
