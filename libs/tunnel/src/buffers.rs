//! The shell's buffers: outgoing IP packets in ([`Batch`]), everything that leaves the device out
//! ([`Out`]).
//!
//! Both are arenas that keep their memory when they are cleared, so a shell that reuses a few of
//! them allocates nothing per packet. [`Out`] lays datagrams for one destination side by side, so
//! that a run of them is one UDP send with segmentation offload.

use std::net::SocketAddr;

use mesh_types::{NodeId, RelayId, WgPublicKey};

use crate::derp::PACKET_HEADER;

/// Bytes that WireGuard adds to a packet: header 16, authenticator 16.
pub const WG_OVERHEAD: usize = 32;
/// WireGuard pads inner packets to a multiple of this.
pub(crate) const PADDING: usize = 16;
/// Most datagrams in one segmented send (Linux, `UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: usize = 64;
/// Most bytes in one segmented send: what one UDP datagram over IPv4 may carry.
const MAX_RUN: usize = 65_507;

/// Bytes that grow but are never given back.
#[derive(Debug, Default)]
struct Arena {
    bytes: Vec<u8>,
    used: usize,
}

impl Arena {
    /// The next `len` bytes, whatever is in them; they stay free until `commit`.
    #[inline]
    fn reserve(&mut self, len: usize) -> &mut [u8] {
        let end = self.used + len;
        if self.bytes.len() < end {
            self.bytes.resize(end.next_power_of_two().max(4096), 0);
        }
        &mut self.bytes[self.used..end]
    }

    #[inline]
    fn commit(&mut self, len: usize) {
        self.used += len;
    }
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    len: usize,
}

/// Outgoing IP packets, for [`crate::Device::seal`].
#[derive(Debug, Default)]
pub struct Batch {
    arena: Arena,
    packets: Vec<Span>,
}

impl Batch {
    /// A batch that grows as needed.
    pub fn new() -> Self {
        Self::default()
    }

    /// A batch that will hold this many packets of this many bytes without growing.
    pub fn with_capacity(packets: usize, mtu: usize) -> Self {
        let mut batch = Self::new();
        batch.arena.reserve(packets * mtu.next_multiple_of(PADDING));
        batch.packets.reserve(packets);
        batch
    }

    /// Appends a copy of the packet.
    #[inline]
    pub fn push(&mut self, packet: &[u8]) {
        let padded = packet.len().next_multiple_of(PADDING);
        let slot = self.arena.reserve(padded);
        let (body, padding) = slot.split_at_mut(packet.len());
        body.copy_from_slice(packet);
        padding.fill(0);
        self.append(packet.len(), padded);
    }

    /// Appends a packet of `len` bytes that `fill` writes in place; the bytes are zero before.
    pub fn push_with<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let padded = len.next_multiple_of(PADDING);
        let slot = self.arena.reserve(padded);
        slot.fill(0);
        let result = fill(&mut slot[..len]);
        self.append(len, padded);
        result
    }

    /// Appends a packet of at most `most` bytes that `fill` writes in place, such as a read from a
    /// device; it says how long the packet is. What is in the bytes before is left as it was.
    ///
    /// # Errors
    /// That of `fill`; nothing is appended then, nor when the packet is empty.
    pub fn push_up_to<E>(
        &mut self,
        most: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let slot = self.arena.reserve(most.next_multiple_of(PADDING));
        let len = fill(&mut slot[..most])?.min(most);
        let padded = len.next_multiple_of(PADDING);
        slot[len..padded].fill(0);
        if len > 0 {
            self.append(len, padded);
        }
        Ok(len)
    }

    #[inline]
    fn append(&mut self, len: usize, padded: usize) {
        self.packets.push(Span {
            start: self.arena.used,
            len,
        });
        self.arena.commit(padded);
    }

    /// How many packets are in it.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether no packet is in it.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Drops all packets and keeps the memory.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.arena.used = 0;
    }

    /// The packets, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.packets.len()).map(|i| self.packet(i))
    }

    #[inline]
    pub(crate) fn packet(&self, i: usize) -> &[u8] {
        let Span { start, len } = self.packets[i];
        &self.arena.bytes[start..start + len]
    }

    /// The packet with zeros behind it up to a multiple of 16 bytes, or up to the MTU.
    #[inline]
    pub(crate) fn padded(&self, i: usize, mtu: usize) -> &[u8] {
        let Span { start, len } = self.packets[i];
        let padded = len.next_multiple_of(PADDING).min(mtu).max(len);
        &self.arena.bytes[start..start + padded]
    }
}

#[derive(Debug, Clone, Copy)]
struct Run {
    to: SocketAddr,
    start: usize,
    len: usize,
    stride: usize,
    segments: usize,
}

#[derive(Debug, Clone, Copy)]
struct RelayRun {
    relay: RelayId,
    to: WgPublicKey,
    span: Span,
}

#[derive(Debug, Clone, Copy)]
struct Inner {
    peer: NodeId,
    span: Span,
}

/// What the device wants sent and delivered. Calls append; the shell sends, then clears.
#[derive(Debug, Default)]
pub struct Out {
    udp: Arena,
    runs: Vec<Run>,
    relay: Arena,
    relayed: Vec<RelayRun>,
    inner: Arena,
    packets: Vec<Inner>,
}

/// Datagrams for one underlay address, one segmented UDP send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// Where they go.
    pub to: SocketAddr,
    /// The datagrams side by side; at most 64 of them and 65,507 bytes.
    pub bytes: &'a [u8],
    /// Length of each datagram in bytes; only the last may be shorter.
    pub stride: usize,
}

impl<'a> Transmit<'a> {
    /// The datagrams one by one, for shells without segmentation offload.
    pub fn datagrams(&self) -> std::slice::Chunks<'a, u8> {
        self.bytes.chunks(self.stride)
    }
}

/// A datagram for one peer by way of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayed<'a> {
    /// Through which relay.
    pub relay: RelayId,
    /// For which peer.
    pub to: WgPublicKey,
    /// The whole DERP `SendPacket` frame, to be written to the relay's stream as it is.
    pub frame: &'a [u8],
}

impl<'a> Relayed<'a> {
    /// The datagram in the frame.
    pub fn payload(&self) -> &'a [u8] {
        &self.frame[PACKET_HEADER..]
    }
}

/// A decrypted IP packet that passed the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<'a> {
    /// The peer whose key authenticated it.
    pub peer: NodeId,
    /// The packet.
    pub packet: &'a [u8],
}

impl Out {
    /// An empty one that grows as needed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.udp.used = 0;
        self.runs.clear();
        self.relay.used = 0;
        self.relayed.clear();
        self.inner.used = 0;
        self.packets.clear();
    }

    /// Whether there is nothing to send and nothing to deliver.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.relayed.is_empty() && self.packets.is_empty()
    }

    /// What goes out by UDP, in order.
    pub fn transmits(&self) -> impl Iterator<Item = Transmit<'_>> {
        self.runs.iter().map(|run| Transmit {
            to: run.to,
            bytes: &self.udp.bytes[run.start..run.start + run.len],
            stride: run.stride,
        })
    }

    /// What goes out by relays, in order.
    pub fn relayed(&self) -> impl Iterator<Item = Relayed<'_>> {
        self.relayed.iter().map(|run| Relayed {
            relay: run.relay,
            to: run.to,
            frame: &self.relay.bytes[run.span.start..run.span.start + run.span.len],
        })
    }

    /// The decrypted IP packets, in order.
    pub fn packets(&self) -> impl Iterator<Item = Received<'_>> {
        self.packets.iter().map(|inner| Received {
            peer: inner.peer,
            packet: &self.inner.bytes[inner.span.start..inner.span.start + inner.span.len],
        })
    }

    /// The decrypted IP packet in this place of [`Out::packets`]; `None` past the last.
    #[inline]
    pub fn packet(&self, at: usize) -> Option<&[u8]> {
        let Span { start, len } = self.packets.get(at)?.span;
        Some(&self.inner.bytes[start..start + len])
    }

    /// Room for a datagram of up to `len` bytes; kept by `commit_direct`.
    #[inline]
    pub(crate) fn reserve_direct(&mut self, len: usize) -> &mut [u8] {
        self.udp.reserve(len)
    }

    /// Keeps the first `len` bytes of what was reserved as a datagram to `to`.
    #[inline]
    pub(crate) fn commit_direct(&mut self, to: SocketAddr, len: usize) {
        let start = self.udp.used;
        self.udp.commit(len);
        if let Some(run) = self.runs.last_mut()
            && run.to == to
            && len <= run.stride
            && run.segments < MAX_SEGMENTS
            // INVARIANT: only the last segment of a run is shorter than its stride.
            && run.segments * run.stride == run.len
            && run.len + len <= MAX_RUN
        {
            run.len += len;
            run.segments += 1;
            return;
        }
        self.runs.push(Run {
            to,
            start,
            len,
            stride: len,
            segments: 1,
        });
    }

    /// Room for a datagram of up to `len` bytes; kept by `commit_relayed`.
    #[inline]
    pub(crate) fn reserve_relayed(&mut self, len: usize) -> &mut [u8] {
        &mut self.relay.reserve(PACKET_HEADER + len)[PACKET_HEADER..]
    }

    /// Keeps the first `len` bytes of what was reserved as a datagram through `relay` to `to`.
    #[inline]
    pub(crate) fn commit_relayed(&mut self, relay: RelayId, to: &WgPublicKey, len: usize) {
        let head = crate::derp::send_header(to, len);
        self.relay.reserve(PACKET_HEADER)[..PACKET_HEADER].copy_from_slice(&head);
        let len = PACKET_HEADER + len;
        self.relayed.push(RelayRun {
            relay,
            to: *to,
            span: Span {
                start: self.relay.used,
                len,
            },
        });
        self.relay.commit(len);
    }

    /// Room for a decrypted packet of up to `len` bytes; kept by `commit_inner`.
    #[inline]
    pub(crate) fn reserve_inner(&mut self, len: usize) -> &mut [u8] {
        self.inner.reserve(len)
    }

    /// Keeps the first `len` bytes of what was reserved as a packet from `peer`.
    #[inline]
    pub(crate) fn commit_inner(&mut self, peer: NodeId, len: usize) {
        self.packets.push(Inner {
            peer,
            span: Span {
                start: self.inner.used,
                len,
            },
        });
        self.inner.commit(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(out: &mut Out, to: SocketAddr, len: usize) {
        out.reserve_direct(len)
            .fill(u8::try_from(len % 251).expect("small"));
        out.commit_direct(to, len);
    }

    #[test]
    fn equal_datagrams_to_one_address_are_one_send_and_a_shorter_one_ends_it() {
        let to = "192.0.2.1:1".parse().expect("an address");
        let mut out = Out::new();
        for len in [100, 100, 60, 60, 100] {
            send(&mut out, to, len);
        }
        let runs: Vec<_> = out
            .transmits()
            .map(|transmit| (transmit.bytes.len(), transmit.stride))
            .collect();
        assert_eq!(runs, [(260, 100), (60, 60), (100, 100)]);
        let sizes: Vec<_> = out
            .transmits()
            .flat_map(|transmit| transmit.datagrams())
            .map(<[u8]>::len)
            .collect();
        assert_eq!(sizes, [100, 100, 60, 60, 100]);
    }

    #[test]
    fn a_send_never_exceeds_what_the_kernel_takes() {
        let to = "192.0.2.1:1".parse().expect("an address");
        let mut out = Out::new();
        for _ in 0..200 {
            send(&mut out, to, 1312);
        }
        for transmit in out.transmits() {
            assert!(transmit.bytes.len() <= MAX_RUN);
            assert!(transmit.datagrams().count() <= MAX_SEGMENTS);
        }
        assert_eq!(
            out.transmits()
                .map(|t| t.datagrams().count())
                .sum::<usize>(),
            200
        );
    }

    #[test]
    fn a_relayed_datagram_is_a_whole_frame() {
        let mut out = Out::new();
        let to = WgPublicKey::from_bytes([4; 32]);
        let relay = RelayId::from_bytes([1; 16]);
        for payload in [b"one".as_slice(), b"two2"] {
            out.reserve_relayed(64)[..payload.len()].copy_from_slice(payload);
            out.commit_relayed(relay, &to, payload.len());
        }
        let mut expected = Vec::new();
        crate::derp::encode_send(&to, b"one", &mut expected);
        let first = out.relayed().next().expect("two were written");
        assert_eq!(first.frame, expected);
        assert_eq!(out.relayed().nth(1).expect("two").payload(), b"two2");
    }

    #[test]
    fn padding_is_zero_even_in_reused_memory() {
        let mut batch = Batch::new();
        batch.push(&[0xff; 64]);
        batch.clear();
        batch.push(&[1; 17]);
        assert_eq!(batch.padded(0, 1280).len(), 32);
        assert!(batch.padded(0, 1280)[17..].iter().all(|&byte| byte == 0));
        batch.push(&[1; 1279]);
        assert_eq!(batch.padded(1, 1279).len(), 1279);
    }
}
