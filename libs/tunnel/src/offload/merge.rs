//! From packets to what the kernel takes in one go.

use super::{
    ACK, GSO_TCPV4, GSO_TCPV6, HEADER, NEEDS_CSUM, Offload, PLAIN, PSH, TCP, TCP_CHECKSUM,
    TCP_FLAGS, TCP_HEAD, V4_HEAD, V6_HEAD, checksum, double, length, set_word, word,
};

/// Most packets in one go.
pub const MAX_MERGED: usize = 64;
/// Most bytes of [`Merged::head`]: that header, one of IP, and one of TCP with its options.
pub const MAX_HEAD: usize = HEADER + V6_HEAD + 60;
/// Longest packet, headers included.
const MAX_LEN: usize = 65_535;

/// The first packets of several, as one.
#[derive(Debug, Clone, Copy)]
pub struct Merged {
    count: usize,
    payload: usize,
    head: [u8; MAX_HEAD],
    head_len: usize,
}

impl Merged {
    /// How many of the packets it is made of; one when the second does not continue the first.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What is written in front of the payloads.
    pub fn head(&self) -> &[u8] {
        &self.head[..self.head_len]
    }

    /// Where in each of its packets the payload begins: behind the headers that `head` stands for.
    pub fn payload(&self) -> usize {
        self.payload
    }

    /// A packet as it is.
    fn plain() -> Self {
        let mut head = [0; MAX_HEAD];
        head[..HEADER].copy_from_slice(&PLAIN);
        Self {
            count: 1,
            payload: 0,
            head,
            head_len: HEADER,
        }
    }
}

/// A TCP packet that others may continue: no fragment, no IP options, nothing but data.
#[derive(Debug, Clone, Copy)]
struct Data<'a> {
    packet: &'a [u8],
    /// Where TCP begins, and where its payload does.
    tcp: usize,
    payload: usize,
}

impl<'a> Data<'a> {
    fn read(packet: &'a [u8]) -> Option<Self> {
        let tcp = match packet.first()? {
            // Not to be fragmented: else the number of each packet would matter (RFC 6864).
            0x45 => {
                let head = packet.get(..V4_HEAD)?;
                let whole = usize::from(word(head, 2)) == packet.len() && word(head, 6) == 0x4000;
                (whole && head[9] == TCP).then_some(V4_HEAD)?
            }
            0x60..=0x6f => {
                let head = packet.get(..V6_HEAD)?;
                let whole = usize::from(word(head, 4)) + V6_HEAD == packet.len();
                (whole && head[6] == TCP).then_some(V6_HEAD)?
            }
            _ => return None,
        };
        let head = packet.get(tcp..tcp + TCP_HEAD)?;
        let payload = tcp + usize::from(head[12] >> 4) * 4;
        let plain = head[TCP_FLAGS] & !PSH == ACK && head[12] & 0x0f == 0;
        (plain && payload >= tcp + TCP_HEAD && payload < packet.len()).then_some(Self {
            packet,
            tcp,
            payload,
        })
    }

    fn len(&self) -> usize {
        self.packet.len() - self.payload
    }

    fn flags(&self) -> u8 {
        self.packet[self.tcp + TCP_FLAGS]
    }

    fn sequence(&self) -> u32 {
        double(self.packet, self.tcp + 4)
    }

    /// Whether everything but length, number, sequence, PSH and checksums is the same.
    fn is_like(&self, other: &Self) -> bool {
        let (a, b) = (self.packet, other.packet);
        let ip = |packet: &'a [u8]| {
            if packet[0] >> 4 == 4 {
                (&packet[..2], &packet[6..10], &packet[12..V4_HEAD])
            } else {
                (&packet[..4], &packet[6..8], &packet[8..V6_HEAD])
            }
        };
        if (self.tcp, self.payload) != (other.tcp, other.payload) || ip(a) != ip(b) {
            return false;
        }
        let (a, b) = (&a[self.tcp..self.payload], &b[self.tcp..self.payload]);
        // Ports; acknowledgement and data offset; window; urgent pointer and options.
        a[..4] == b[..4] && a[8..13] == b[8..13] && a[14..16] == b[14..16] && a[18..] == b[18..]
    }

    /// The kernel does not look at checksums of what was merged, so we do.
    fn is_intact(&self) -> bool {
        let tcp = &self.packet[self.tcp..];
        let sum = checksum::add(tcp, checksum::pseudo(self.packet, tcp.len()));
        let v4 = self.tcp == V4_HEAD;
        // Zero has two forms, of which a sender writes one (RFC 1071, 2).
        let is_usual = word(tcp, TCP_CHECKSUM) != 0xffff;
        let header_is = !v4 || checksum::of_v4(&self.packet[..V4_HEAD]) == 0;
        checksum::fold(sum) == 0xffff && is_usual && header_is
    }
}

/// As many of the first packets as the kernel can take in one go: those of one TCP connection that
/// follow each other without a gap and differ in nothing else. `None` when there is no packet.
pub fn merge<'a>(mut packets: impl Iterator<Item = &'a [u8]>) -> Option<Merged> {
    let first = packets.next()?;
    let Some(first) = Data::read(first) else {
        return Some(Merged::plain());
    };
    let size = first.len();
    let mut last = first;
    let mut total = first.packet.len();
    let mut count = 1;
    while count < MAX_MERGED && last.len() == size && last.flags() & PSH == 0 {
        let Some(next) = packets.next().and_then(Data::read) else {
            break;
        };
        let position = u32::try_from(total - first.payload).unwrap_or(u32::MAX);
        let follows = next.len() <= size
            && total + next.len() <= MAX_LEN
            && next.sequence() == first.sequence().wrapping_add(position)
            && next.is_like(&first);
        if !follows || (count == 1 && !first.is_intact()) || !next.is_intact() {
            break;
        }
        total += next.len();
        count += 1;
        last = next;
    }
    if count == 1 {
        return Some(Merged::plain());
    }
    Some(headers(&first, last.flags() & PSH, count, total))
}

/// The headers of the first packet as those of all of them.
fn headers(first: &Data<'_>, push: u8, count: usize, total: usize) -> Merged {
    let Data {
        packet,
        tcp,
        payload,
    } = *first;
    let is_v4 = tcp == V4_HEAD;
    let offload = Offload {
        flags: NEEDS_CSUM,
        gso_type: if is_v4 { GSO_TCPV4 } else { GSO_TCPV6 },
        header_len: length(payload),
        gso_size: length(first.len()),
        csum_start: length(tcp),
        csum_offset: length(TCP_CHECKSUM),
    };
    let mut head = [0; MAX_HEAD];
    let head_len = HEADER + payload;
    head[..HEADER].copy_from_slice(&offload.write());
    let own = &mut head[HEADER..head_len];
    own.copy_from_slice(&packet[..payload]);
    if is_v4 {
        set_word(own, 2, length(total));
        set_word(own, 10, 0);
        let sum = checksum::of_v4(&own[..V4_HEAD]);
        set_word(own, 10, sum);
    } else {
        set_word(own, 4, length(total - V6_HEAD));
    }
    own[tcp + TCP_FLAGS] |= push;
    // The kernel adds the rest to the sum of the pseudo header, should it ever need it.
    let pseudo = checksum::fold(checksum::pseudo(own, total - tcp));
    set_word(own, tcp + TCP_CHECKSUM, pseudo);
    Merged {
        count,
        payload,
        head,
        head_len,
    }
}
