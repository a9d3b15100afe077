//! Splitting against a plain reading of the RFCs, merging against splitting.

use proptest::prelude::*;

use super::*;
use crate::{Batch, packet};

const MTU: usize = 1280;

/// One TCP packet, put together word by word.
#[derive(Debug, Clone)]
struct Segment {
    v6: bool,
    id: u16,
    sequence: u32,
    flags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Segment {
    /// The packet, with `tcp_checksum` or the right one.
    fn packet(&self, tcp_checksum: Option<u16>) -> Vec<u8> {
        let mut tcp = vec![0x13, 0x89, 0xc0, 0x01];
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend([0, 0, 0, 7]);
        let words = (TCP_HEAD + self.options.len()) / 4;
        tcp.push(u8::try_from(words).expect("small") << 4);
        tcp.extend([self.flags, 0x20, 0, 0, 0, 0, 0]);
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let pseudo = self.pseudo(tcp.len());
        let sum = tcp_checksum.unwrap_or_else(|| !plain_sum(&[&pseudo[..], &tcp].concat()));
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let len = u16::try_from(tcp.len()).expect("fits");
        let mut ip = Vec::new();
        if self.v6 {
            ip.extend([0x60, 0x12, 0x34, 0x56]);
            ip.extend(len.to_be_bytes());
            ip.extend([TCP, 64]);
            ip.extend(addresses(true));
        } else {
            ip.extend([0x45, 0x02]);
            ip.extend((len + 20).to_be_bytes());
            ip.extend(self.id.to_be_bytes());
            ip.extend([0x40, 0, 64, TCP, 0, 0]);
            ip.extend(addresses(false));
            let sum = !plain_sum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        ip.extend(tcp);
        ip
    }

    fn pseudo(&self, len: usize) -> Vec<u8> {
        let mut bytes = addresses(self.v6);
        bytes.extend(u32::try_from(len).expect("fits").to_be_bytes());
        bytes.extend([0, 0, 0, TCP]);
        bytes
    }

    /// As the kernel gives it, to be split into segments of `size` bytes of payload.
    fn offloaded(&self, size: u16) -> ([u8; HEADER], Vec<u8>) {
        let tcp = TCP_HEAD + self.options.len() + self.payload.len();
        let start = if self.v6 { V6_HEAD } else { V4_HEAD };
        let header = Offload {
            flags: NEEDS_CSUM,
            gso_type: if self.v6 { GSO_TCPV6 } else { GSO_TCPV4 },
            header_len: length(start + TCP_HEAD + self.options.len()),
            gso_size: size,
            csum_start: length(start),
            csum_offset: 16,
        };
        let partial = plain_sum(&self.pseudo(tcp));
        (header.write(), self.packet(Some(partial)))
    }

    /// What it is to become: a segment for each `size` bytes.
    fn segments(&self, size: usize) -> Vec<Vec<u8>> {
        let parts: Vec<&[u8]> = self.payload.chunks(size).collect();
        let each = parts.iter().enumerate().map(|(at, part)| {
            let mut flags = self.flags;
            if at + 1 < parts.len() {
                flags &= !0x09;
            }
            if at > 0 {
                flags &= !0x80;
            }
            let skipped = u32::try_from(at * size).expect("fits");
            let segment = Self {
                id: self.id.wrapping_add(u16::try_from(at).expect("fits")),
                sequence: self.sequence.wrapping_add(skipped),
                flags,
                payload: part.to_vec(),
                ..self.clone()
            };
            segment.packet(None)
        });
        each.collect()
    }
}

/// Source, then destination.
fn addresses(v6: bool) -> Vec<u8> {
    if !v6 {
        return vec![100, 64, 0, 1, 100, 64, 0, 2];
    }
    let one = |last: u8| {
        let mut bytes = vec![0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0];
        bytes.extend([0; 9]);
        bytes.push(last);
        bytes
    };
    [one(1), one(2)].concat()
}

/// The sum of 16-bit words with end-around carry, word by word (RFC 1071, 1).
fn plain_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

fn split_all(header: [u8; HEADER], packet: &[u8]) -> Result<Vec<Vec<u8>>, InvalidOffload> {
    let mut batch = Batch::new();
    split(header, &mut packet.to_vec(), MTU, &mut batch)?;
    Ok(batch.iter().map(<[u8]>::to_vec).collect())
}

/// What a shell writes for packets, each with what it was made of.
fn written(packets: &[Vec<u8>]) -> Vec<(usize, [u8; HEADER], Vec<u8>)> {
    let mut all = Vec::new();
    let mut rest = packets;
    while let Some(merged) = merge(rest.iter().map(Vec::as_slice)) {
        let (these, others) = rest.split_at(merged.count());
        rest = others;
        let mut bytes = merged.head().to_vec();
        for packet in these {
            bytes.extend(&packet[merged.payload()..]);
        }
        let body = bytes.split_off(HEADER);
        all.push((these.len(), bytes.try_into().expect("a header"), body));
    }
    all
}

/// Without what the network may change of a packet that is not to be fragmented.
fn without_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn segment() -> impl Strategy<Value = Segment> {
    let flags = prop_oneof![
        Just(0x10_u8),
        Just(0x18),
        Just(0x11),
        Just(0x98),
        Just(0x90)
    ];
    (
        any::<bool>(),
        any::<u16>(),
        any::<u32>(),
        flags,
        0..3_usize,
        1..9000_usize,
        any::<u8>(),
    )
        .prop_map(|(v6, id, sequence, flags, options, len, seed)| Segment {
            v6,
            id,
            sequence,
            flags,
            options: (0..options * 4)
                .map(|n| length(n).to_be_bytes()[1])
                .collect(),
            payload: (0..len)
                .map(|n| (n.wrapping_mul(31) >> 3).to_be_bytes()[7] ^ seed)
                .collect(),
        })
}

proptest! {
    #[test]
    fn a_stretch_becomes_the_packets_that_the_kernel_would_have_sent(
        whole in segment(),
        size in 1..1200_u16,
    ) {
        let (header, packet) = whole.offloaded(size);
        let expected = whole.segments(usize::from(size));
        for packet in &expected {
            prop_assert!(packet::parse(packet).is_ok());
        }
        prop_assert_eq!(split_all(header, &packet), Ok(expected));
    }

    #[test]
    fn what_was_split_is_put_together_again(whole in segment(), size in 100..1200_u16) {
        let whole = Segment { flags: whole.flags & 0x18, ..whole };
        let (header, packet) = whole.offloaded(size);
        let packets = split_all(header, &packet).expect("splits");
        let written = written(&packets);
        prop_assert_eq!(written.len(), packets.len().div_ceil(MAX_MERGED));
        if packets.len() > 1 && written.len() == 1 {
            prop_assert_eq!(&written[0], &(packets.len(), header, packet));
        }
    }

    /// Also where one of them is lost, comes twice, out of order, damaged or of another connection.
    #[test]
    fn what_is_put_together_is_nothing_but_the_packets(
        whole in segment(),
        size in 1..600_u16,
        changes in proptest::collection::vec((any::<u16>(), any::<u16>(), 0..5_u8, any::<u8>()), 0..6),
    ) {
        let (header, packet) = whole.offloaded(size);
        let mut packets = split_all(header, &packet).expect("splits");
        for (at, other, kind, bits) in changes {
            let (at, other) = (usize::from(at) % packets.len(), usize::from(other) % packets.len());
            match kind {
                0 if packets.len() > 1 => drop(packets.remove(at)),
                1 => packets.insert(at, packets[other].clone()),
                2 => packets.swap(at, other),
                3 => {
                    let len = packets[at].len();
                    packets[at][other % len] ^= bits;
                }
                _ => {
                    let len = packets[at].len();
                    packets[at].truncate(len - usize::from(bits) % len);
                }
            }
        }
        let mut rest = packets.as_slice();
        for (count, header, body) in written(&packets) {
            let (these, others) = rest.split_at(count);
            rest = others;
            if count == 1 {
                prop_assert_eq!(header, PLAIN);
                prop_assert_eq!(&body, &these[0]);
                continue;
            }
            let again = split_all(header, &body).expect("a kernel takes it");
            let again: Vec<_> = again.into_iter().map(without_id).collect();
            let these: Vec<_> = these.iter().cloned().map(without_id).collect();
            prop_assert_eq!(again, these);
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn any_bytes_are_split_or_refused(
        header in any::<[u8; HEADER]>(),
        kind in prop_oneof![Just(GSO_NONE), Just(GSO_TCPV4), Just(GSO_TCPV6), any::<u8>()],
        start in 0..80_u16,
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut offload = Offload::read(header);
        (offload.gso_type, offload.csum_start) = (kind, start);
        if let Ok(packets) = split_all(offload.write(), &bytes) {
            prop_assert!(packets.iter().all(|packet| packet.len() <= MTU));
        }
    }
}

fn example() -> Segment {
    Segment {
        v6: false,
        id: 9,
        sequence: u32::MAX - 100,
        flags: 0x18,
        options: Vec::new(),
        payload: vec![5; 3000],
    }
}

#[test]
fn a_packet_that_is_whole_only_gets_its_checksum() {
    for v6 in [false, true] {
        let whole = Segment {
            v6,
            payload: vec![1, 2, 3],
            ..example()
        };
        let (header, packet) = whole.offloaded(0);
        let header = Offload {
            gso_type: GSO_NONE,
            ..Offload::read(header)
        };
        let expected = vec![whole.packet(None)];
        assert_eq!(split_all(header.write(), &packet), Ok(expected.clone()));
        assert_eq!(split_all(PLAIN, &expected[0]), Ok(expected));
    }
}

#[test]
fn a_checksum_of_zero_is_written_as_all_ones() {
    let header = Offload {
        flags: NEEDS_CSUM,
        gso_type: GSO_NONE,
        header_len: 0,
        gso_size: 0,
        csum_start: 20,
        csum_offset: 6,
    };
    let mut packet = vec![0x45; 28];
    // With what stands for the pseudo header the sum is all ones.
    packet[20..].copy_from_slice(&[0xff, 0xff, 0, 0, 0, 0, 0, 0]);
    let packets = split_all(header.write(), &packet).expect("whole");
    assert_eq!(packets[0][26..], [0xff, 0xff]);
}

#[test]
fn what_no_kernel_gives_is_refused() {
    use InvalidOffload::{Kind, Malformed, TooLong};
    let (header, packet) = example().offloaded(1000);
    let good = Offload::read(header);
    assert!(split_all(header, &packet).is_ok());
    let faults: [(Offload, InvalidOffload); 8] = [
        (
            Offload {
                gso_type: 3,
                ..good
            },
            Kind,
        ),
        (
            Offload {
                gso_type: GSO_TCPV6,
                ..good
            },
            Malformed,
        ),
        (
            Offload {
                gso_size: 0,
                ..good
            },
            Malformed,
        ),
        (Offload { flags: 0, ..good }, Malformed),
        (
            Offload {
                csum_start: 24,
                ..good
            },
            Malformed,
        ),
        (
            Offload {
                csum_start: 16,
                ..good
            },
            Malformed,
        ),
        (
            Offload {
                csum_offset: 6,
                ..good
            },
            Malformed,
        ),
        (
            Offload {
                gso_size: 1241,
                ..good
            },
            TooLong,
        ),
    ];
    for (offload, fault) in faults {
        assert_eq!(
            split_all(offload.write(), &packet),
            Err(fault),
            "{offload:?}"
        );
    }
    // A first fragment; and in IPv6 something before TCP, where there is room for nothing.
    let mut fragment = packet.clone();
    fragment[6] = 0x20;
    assert_eq!(split_all(header, &fragment), Err(Malformed));
    let (header_v6, mut options) = Segment {
        v6: true,
        ..example()
    }
    .offloaded(1000);
    assert!(split_all(header_v6, &options).is_ok());
    options[6] = 0;
    assert_eq!(split_all(header_v6, &options), Err(Malformed));
    for len in [0, 1, 19, 33, 39, 40] {
        assert_eq!(split_all(header, &packet[..len]), Err(Malformed), "{len}");
    }
    assert_eq!(split_all(PLAIN, &packet), Err(TooLong));
}

#[test]
fn what_ends_a_stretch_ends_it() {
    let packets = Segment {
        flags: 0x10,
        ..example()
    }
    .segments(1000);
    let counts = |packets: &[Vec<u8>]| -> Vec<usize> {
        written(packets).iter().map(|(count, ..)| *count).collect()
    };
    assert_eq!(counts(&packets), [3]);
    let changed = |at: usize, change: fn(&mut Segment)| {
        let mut segments = [0_u32, 1000, 2000].map(|skipped| Segment {
            flags: 0x10,
            sequence: example().sequence.wrapping_add(skipped),
            payload: vec![5; 1000],
            ..example()
        });
        change(&mut segments[at]);
        segments.map(|segment| segment.packet(None)).to_vec()
    };
    assert_eq!(counts(&changed(1, |one| one.flags = 0x18)), [2, 1], "PSH");
    assert_eq!(
        counts(&changed(1, |one| one.flags = 0x11)),
        [1, 1, 1],
        "FIN"
    );
    assert_eq!(
        counts(&changed(1, |one| one.options = vec![1; 4])),
        [1, 1, 1]
    );
    assert_eq!(counts(&changed(0, |one| one.v6 = true)), [1, 2]);
    assert_eq!(
        counts(&changed(1, |one| one.payload = vec![5; 999])),
        [2, 1],
        "a shorter one"
    );
    assert_eq!(
        counts(&changed(2, |one| one.payload = vec![5; 1001])),
        [2, 1]
    );
    assert_eq!(
        counts(&changed(2, |one| one.payload.clear())),
        [2, 1],
        "no data"
    );
    let mut damaged = packets;
    damaged[1][900] ^= 1;
    assert_eq!(counts(&damaged), [1, 1, 1], "its checksum is wrong");
}
