//! The Internet checksum (RFC 1071).

use super::{TCP, V4_HEAD, V6_HEAD, length};

/// Adds bytes to a sum of 16-bit words; an odd last byte counts as the higher one.
#[inline]
pub(super) fn add(bytes: &[u8], sum: u64) -> u64 {
    let (fours, rest) = bytes.as_chunks::<4>();
    // Words of 32 bits add up to the same, folded at the end (RFC 1071, 2 (C)); a packet has too few
    // of them to overflow.
    let sum = fours
        .iter()
        .fold(sum, |sum, four| sum + u64::from(u32::from_be_bytes(*four)));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

/// The sum in 16 bits.
#[inline]
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The sum of the pseudo header of `len` bytes of TCP: addresses, protocol, length (RFC 9293, 3.1;
/// RFC 8200, 8.1). The packet's first header is whole.
#[inline]
pub(super) fn pseudo(packet: &[u8], len: usize) -> u64 {
    let addresses = if packet[0] >> 4 == 4 {
        &packet[12..V4_HEAD]
    } else {
        &packet[8..V6_HEAD]
    };
    add(addresses, u64::from(TCP) + u64::from(length(len)))
}

/// The checksum of an IPv4 header whose checksum field is zero (RFC 791, 3.1).
#[inline]
pub(super) fn of_v4(header: &[u8]) -> u16 {
    !fold(add(header, 0))
}
