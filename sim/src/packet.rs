//! The IP packets that nodes send each other: bare TCP segments (RFC 9293) over IPv4 and IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const SYN: u8 = 0x02;
pub(crate) const SYN_ACK: u8 = 0x12;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const FIN_ACK: u8 = 0x11;

/// What of a packet matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) flags: u8,
}

impl Segment {
    /// The packet; its checksums are nobody's concern on the way.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut packet = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut head = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
                head.extend(src.octets());
                head.extend(dst.octets());
                head
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut head = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
                head.extend(src.octets());
                head.extend(dst.octets());
                head
            }
            _ => unreachable!("both ends of a flow are of one family"),
        };
        packet.extend(self.src_port.to_be_bytes());
        packet.extend(self.dst_port.to_be_bytes());
        packet.extend([0; 8]);
        packet.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        packet
    }

    /// Reads what [`Segment::encode`] wrote; `None` for anything else.
    pub(crate) fn decode(packet: &[u8]) -> Option<Self> {
        let (src, dst, tcp): (IpAddr, IpAddr, _) = match packet.first()? >> 4 {
            4 => {
                let src: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
                let dst: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
                let (src, dst) = (Ipv4Addr::from(src), Ipv4Addr::from(dst));
                (src.into(), dst.into(), packet.get(20..40)?)
            }
            6 => {
                let src: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
                let dst: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
                let (src, dst) = (Ipv6Addr::from(src), Ipv6Addr::from(dst));
                (src.into(), dst.into(), packet.get(40..60)?)
            }
            _ => return None,
        };
        Some(Self {
            src,
            dst,
            src_port: u16::from_be_bytes([tcp[0], tcp[1]]),
            dst_port: u16::from_be_bytes([tcp[2], tcp[3]]),
            flags: tcp[13],
        })
    }

    /// What goes back to where it came from.
    pub(crate) fn answer(&self, flags: u8) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            flags,
        }
    }
}
