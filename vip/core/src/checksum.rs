//! The checksum of the Internet protocols (RFC 1071), with and without what it covers of the IP header.

use std::net::IpAddr;

/// What the checksum covers beside the payload: both addresses, the protocol and the length (RFC 9568, section 5.2.8;
/// RFC 8200, section 8.1).
pub(crate) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let address = |address| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    address(source) + address(destination) + u64::from(protocol) + length as u64
}

/// The checksum for a payload whose own checksum field is zero. `pseudo_header`: 0 for none.
pub(crate) fn of(payload: &[u8], pseudo_header: u64) -> u16 {
    !folded(pseudo_header + sum(payload))
}

/// A payload that holds its right checksum adds up to all ones.
pub(crate) fn is_right(payload: &[u8], pseudo_header: u64) -> bool {
    folded(pseudo_header + sum(payload)) == u16::MAX
}

/// The sum of all 16-bit words; an odd byte at the end counts as if a zero followed.
fn sum(bytes: &[u8]) -> u64 {
    let (words, odd) = bytes.as_chunks::<2>();
    let sum: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    sum + odd.first().map_or(0, |byte| u64::from(*byte) << 8)
}

fn folded(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}
