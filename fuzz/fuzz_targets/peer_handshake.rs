//! What another host says when it meets us.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pointsman_fuzz::vip_checks::peer_handshake(data));
