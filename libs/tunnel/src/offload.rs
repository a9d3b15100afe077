//! Segmentation offload of a network device: several packets as one, with a header that says so
//! (`struct virtio_net_hdr`; virtio 1.2, 5.1.6).
//!
//! A kernel that may leave segmentation to us gives whole stretches of a TCP connection at once,
//! and leaves out checksums: [`split()`] makes packets of them. The other way round [`merge()`] finds
//! packets of one connection that follow each other, so that the kernel takes them in one go and
//! acknowledges them together. Either saves a system call, and a way through the kernel's own
//! TCP/IP stack, for most packets of a fast connection.
//!
//! Pure: bytes in, bytes out.

mod checksum;
mod merge;
mod split;

pub use merge::{MAX_HEAD, MAX_MERGED, Merged, merge};
pub use split::{InvalidOffload, split};

/// Length of the header in front of each packet, in bytes.
pub const HEADER: usize = 10;
/// Longest packet behind it: what an IP header can say.
pub const MAX_PACKET: usize = 65_535 + 40;
/// The header of a packet that is one and has its checksum.
pub const PLAIN: [u8; HEADER] = [0; HEADER];

/// `flags`: the checksum from `csum_start` on is to be finished.
const NEEDS_CSUM: u8 = 1;
/// `gso_type`: what the packet is to be split into.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Or'ed to it where the connection has congestion notification (RFC 3168).
const GSO_ECN: u8 = 0x80;

const TCP: u8 = 6;
const V4_HEAD: usize = 20;
const V6_HEAD: usize = 40;
const TCP_HEAD: usize = 20;
/// Where the checksum is in a TCP header, and the flags (RFC 9293, 3.1).
const TCP_CHECKSUM: usize = 16;
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// The header's fields; those of 16 bits are in the machine's own byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offload {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Offload {
    fn read(bytes: [u8; HEADER]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    fn write(self) -> [u8; HEADER] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [
            self.header_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
        ];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn set_word(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

fn double(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A length that an IP header has room for; longer packets are refused before.
fn length(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
