//! From what the kernel gives to packets.

use super::{
    CWR, FIN, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, HEADER, NEEDS_CSUM, Offload, PSH, TCP,
    TCP_CHECKSUM, TCP_FLAGS, TCP_HEAD, V4_HEAD, V6_HEAD, checksum, double, length, set_word, word,
};
use crate::Batch;

/// What stands in front of a packet does not fit it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOffload {
    /// It is shorter than its headers, or these contradict each other.
    #[error("a packet to be split that contradicts its header")]
    Malformed,
    /// It is to be split into something that was never asked for.
    #[error("segmentation of an unknown kind")]
    Kind,
    /// A packet of it would be longer than packets may be here.
    #[error("a segment that is longer than the device's MTU")]
    TooLong,
}

/// Appends the packets that `packet` stands for to `batch`: itself, with its checksum, or segments
/// of a TCP connection. `header` is what the kernel put in front of it; no packet is longer than
/// `mtu`.
///
/// # Errors
/// It is none that a kernel would give. Nothing is appended.
pub fn split(
    header: [u8; HEADER],
    packet: &mut [u8],
    mtu: usize,
    batch: &mut Batch,
) -> Result<(), InvalidOffload> {
    let offload = Offload::read(header);
    let version = packet.first().ok_or(InvalidOffload::Malformed)? >> 4;
    match (offload.gso_type & !GSO_ECN, version) {
        (GSO_NONE, _) => whole(offload, packet, mtu, batch),
        (GSO_TCPV4, 4) | (GSO_TCPV6, 6) => {
            let shape = Shape::of(offload, packet, mtu)?;
            shape.segments(packet, batch);
            Ok(())
        }
        (GSO_TCPV4 | GSO_TCPV6, _) => Err(InvalidOffload::Malformed),
        _ => Err(InvalidOffload::Kind),
    }
}

fn whole(
    offload: Offload,
    packet: &mut [u8],
    mtu: usize,
    batch: &mut Batch,
) -> Result<(), InvalidOffload> {
    if packet.len() > mtu {
        return Err(InvalidOffload::TooLong);
    }
    if offload.flags & NEEDS_CSUM != 0 {
        let start = usize::from(offload.csum_start);
        let at = start + usize::from(offload.csum_offset);
        if at + 2 > packet.len() {
            return Err(InvalidOffload::Malformed);
        }
        // The field has the sum of the pseudo header.
        let sum = !checksum::fold(checksum::add(&packet[start..], 0));
        // None at all is what zero means to UDP (RFC 768), and all ones are the same to the rest.
        set_word(packet, at, if sum == 0 { 0xffff } else { sum });
    }
    batch.push(packet);
    Ok(())
}

/// Where things are in a packet that is to be split.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Where TCP begins.
    tcp: usize,
    /// Where its payload does.
    payload: usize,
    /// Payload of each segment but the last, which may have less.
    size: usize,
}

impl Shape {
    fn of(offload: Offload, packet: &[u8], mtu: usize) -> Result<Self, InvalidOffload> {
        let tcp = usize::from(offload.csum_start);
        let is_headed = match packet[0] >> 4 {
            // No fragment: TCP that is to be split is whole.
            4 => {
                let header = usize::from(packet[0] & 0x0f) * 4;
                let whole = packet.len() >= V4_HEAD && word(packet, 6) & 0x3fff == 0;
                whole && packet[9] == TCP && header >= V4_HEAD && tcp == header
            }
            // There may be further headers between, and then something else is next.
            _ => {
                packet.len() >= V6_HEAD && tcp >= V6_HEAD && (packet[6] == TCP) == (tcp == V6_HEAD)
            }
        };
        // The checksum is always left to us with the rest.
        let fits = is_headed
            && offload.flags & NEEDS_CSUM != 0
            && usize::from(offload.csum_offset) == TCP_CHECKSUM
            && tcp + TCP_HEAD <= packet.len();
        if !fits {
            return Err(InvalidOffload::Malformed);
        }
        let payload = tcp + usize::from(packet[tcp + 12] >> 4) * 4;
        let size = usize::from(offload.gso_size);
        if payload < tcp + TCP_HEAD || payload >= packet.len() || size == 0 {
            return Err(InvalidOffload::Malformed);
        }
        let longest = payload + size.min(packet.len() - payload);
        if longest > mtu.min(usize::from(u16::MAX)) {
            return Err(InvalidOffload::TooLong);
        }
        Ok(Self { tcp, payload, size })
    }

    fn segments(self, packet: &[u8], batch: &mut Batch) {
        let Self { payload, size, .. } = self;
        let (headers, body) = packet.split_at(payload);
        let segments = body.chunks(size);
        let last = segments.len() - 1;
        for (at, part) in segments.enumerate() {
            let fill = |to: &mut [u8]| -> Result<usize, std::convert::Infallible> {
                let (head, rest) = to.split_at_mut(payload);
                head.copy_from_slice(headers);
                rest.copy_from_slice(part);
                // At most 64 KiB of them, so no position is cut off.
                let position = u32::try_from(at * size).unwrap_or(u32::MAX);
                self.set_headers(to, at, position, at == last);
                Ok(to.len())
            };
            let Ok(_) = batch.push_up_to(payload + part.len(), fill);
        }
    }

    /// Makes the headers of the whole those of one segment.
    fn set_headers(self, segment: &mut [u8], at: usize, position: u32, is_last: bool) {
        let len = segment.len();
        if segment[0] >> 4 == 4 {
            set_word(segment, 2, length(len));
            // Each packet of its own, for who puts fragments together (RFC 6864 has no need of it).
            let id = word(segment, 4).wrapping_add(length(at));
            set_word(segment, 4, id);
            set_word(segment, 10, 0);
            let sum = checksum::of_v4(&segment[..self.tcp]);
            set_word(segment, 10, sum);
        } else {
            set_word(segment, 4, length(len - V6_HEAD));
        }
        let pseudo = checksum::pseudo(segment, len - self.tcp);
        let tcp = &mut segment[self.tcp..];
        let sequence = double(tcp, 4).wrapping_add(position);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if !is_last {
            tcp[TCP_FLAGS] &= !(FIN | PSH);
        }
        if at > 0 {
            // Said once (RFC 3168, 6.1.2).
            tcp[TCP_FLAGS] &= !CWR;
        }
        set_word(tcp, TCP_CHECKSUM, 0);
        let sum = !checksum::fold(checksum::add(tcp, pseudo));
        set_word(tcp, TCP_CHECKSUM, sum);
    }
}
