//! What a kernel gives for segmentation, and packets of others that are given to it together: any
//! bytes are split into packets that say the same, or refused; and what is merged is split into the
//! very packets that it was made of.

#![no_main]

use fuzz::Steps;
use libfuzzer_sys::fuzz_target;
use mesh_tunnel::offload::{HEADER, InvalidOffload, PLAIN, merge, split};
use mesh_tunnel::{Batch, packet};

const MTU: usize = 1280;
/// Where an input goes, by its first byte.
const SPLIT: u8 = 0;

fuzz_target!(init: fuzz::seeds(seeds), |bytes: &[u8]| {
    match bytes.split_first() {
        Some((&SPLIT, rest)) => {
            if let Some((header, packet)) = rest.split_first_chunk() {
                splits(*header, packet);
            }
        }
        Some((_, rest)) => merges(Steps::new(rest).map(|step| step.bytes).collect()),
        None => {}
    }
});

/// Each segment is one packet of the same two ends with its own checksum; together they carry what
/// the whole did.
fn splits(header: [u8; HEADER], whole: &[u8]) {
    let Ok(segments) = split_all(header, whole) else {
        return;
    };
    assert!(segments.iter().all(|segment| segment.len() <= MTU));
    let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (kind, size, tcp) = (header[1] & 0x7f, word(4), word(6));
    if kind == 0 {
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0].len(), whole.len());
        return;
    }
    let payload = |packet: &[u8]| packet[tcp + usize::from(packet[tcp + 12] >> 4) * 4..].to_vec();
    let carried: Vec<Vec<u8>> = segments.iter().map(|segment| payload(segment)).collect();
    assert_eq!(carried.concat(), payload(whole));
    let (last, others) = carried.split_last().expect("at least one");
    assert!(others.iter().all(|part| part.len() == size) && last.len() <= size);
    let wanted = packet::parse(whole);
    for segment in &segments {
        let is_plain = tcp == if whole[0] >> 4 == 4 { 20 } else { 40 };
        if let (Ok(wanted), true) = (wanted, is_plain) {
            let header = packet::parse(segment).expect("a packet");
            assert_eq!((header.src, header.dst), (wanted.src, wanted.dst));
        }
        assert_eq!(tcp_sum(segment, tcp), 0xffff, "its checksum");
    }
}

fn merges(packets: Vec<&[u8]>) {
    let mut rest = packets.as_slice();
    while let Some(merged) = merge(rest.iter().copied()) {
        let (these, others) = rest.split_at(merged.count());
        rest = others;
        let mut written = merged.head().to_vec();
        for packet in these {
            written.extend(&packet[merged.payload()..]);
        }
        let (header, body) = written.split_first_chunk().expect("a header");
        if let [one] = these {
            assert_eq!((*header, body), (PLAIN, *one));
            continue;
        }
        let again = split_all(*header, body);
        // A packet that arrives is longer than this only by the other side's fault.
        let Ok(again) = again else {
            assert!(these[0].len() > MTU, "{again:?}");
            continue;
        };
        let these: Vec<_> = these.iter().map(|packet| without_id(packet)).collect();
        let again: Vec<_> = again.iter().map(|packet| without_id(packet)).collect();
        assert_eq!(again, these);
    }
    assert!(rest.is_empty());
}

fn split_all(header: [u8; HEADER], packet: &[u8]) -> Result<Vec<Vec<u8>>, InvalidOffload> {
    let mut batch = Batch::new();
    split(header, &mut packet.to_vec(), MTU, &mut batch)?;
    let mut segments: Vec<Vec<u8>> = batch.iter().map(<[u8]>::to_vec).collect();
    if fuzz::planted() && segments.len() > 1 {
        // A last segment with one byte is taken for none.
        let lengths = (segments[0].len(), segments[segments.len() - 1].len());
        let headers = lengths.0 - usize::from(u16::from_ne_bytes([header[4], header[5]]));
        if lengths.1 == headers + 1 {
            segments.pop();
        }
    }
    Ok(segments)
}

/// The sum of the pseudo header and TCP, word by word.
fn tcp_sum(packet: &[u8], tcp: usize) -> u32 {
    let addresses = if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    let length = u16::try_from(packet.len() - tcp).expect("a segment");
    let pseudo = [addresses, &[0, 6], &length.to_be_bytes()].concat();
    let mut sum = 0;
    for pair in pseudo.chunks(2).chain(packet[tcp..].chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Without what the network may change of an IPv4 packet that is not to be fragmented.
fn without_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn seeds() -> [(&'static str, Vec<u8>); 4] {
    let to_split = |v6: bool| {
        let mut input = vec![SPLIT];
        input.extend(header(v6, 100));
        input.extend(packet(v6, 0, 350));
        input
    };
    let to_merge = |v6: bool| {
        let parts: Vec<Vec<u8>> = [0, 100, 200].map(|at| packet(v6, at, 100)).to_vec();
        let steps = parts.iter().map(|part| (0, 0, part.as_slice()));
        let mut input = vec![1];
        input.extend(Steps::write(steps));
        input
    };
    [
        ("split_v4", to_split(false)),
        ("split_v6", to_split(true)),
        ("merge_v4", to_merge(false)),
        ("merge_v6", to_merge(true)),
    ]
}

fn header(v6: bool, size: u16) -> Vec<u8> {
    let start: u16 = if v6 { 40 } else { 20 };
    let mut bytes = vec![1, if v6 { 4 } else { 1 }];
    for word in [start + 20, size, start, 16] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// A TCP packet with its checksums.
fn packet(v6: bool, sequence: u32, payload: usize) -> Vec<u8> {
    let mut tcp = vec![0x13, 0x89, 0xc0, 1];
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0, 0, 0, 7, 0x50, 0x10, 0x20, 0, 0, 0, 0, 0]);
    tcp.resize(20 + payload, 5);
    let length = u16::try_from(tcp.len()).expect("small");
    let mut ip = if v6 {
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(length.to_be_bytes());
        ip.extend([6, 64]);
        for last in [1, 2] {
            ip.extend([0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0]);
            ip.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        ip
    } else {
        let mut ip = vec![0x45, 0];
        ip.extend((length + 20).to_be_bytes());
        ip.extend([0, 9, 0x40, 0, 64, 6, 0, 0, 100, 64, 0, 1, 100, 64, 0, 2]);
        let mut sum: u32 = ip
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        sum = (sum & 0xffff) + (sum >> 16);
        let sum = !u16::try_from(sum).expect("folded");
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip
    };
    let start = ip.len();
    ip.extend(tcp);
    let sum = !u16::try_from(tcp_sum(&ip, start)).expect("folded");
    ip[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
    ip
}
