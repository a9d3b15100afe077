//! Checked views of IP headers: what the router and the filter need to know of a packet.
//!
//! IPv4 (RFC 791) and IPv6 (RFC 8200) with its extension headers; TCP, UDP, ICMP and ICMPv6 far
//! enough to tell flows apart; errors of ICMP with the packet they are about.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An overlay address of either family as one number: IPv4 as IPv4-mapped (RFC 4291, 2.5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr(u128);

impl Addr {
    /// The number, for hashing.
    pub const fn to_bits(self) -> u128 {
        self.0
    }

    #[inline]
    fn v4(bytes: [u8; 4]) -> Self {
        Self(0xffff_0000_0000 | u128::from(u32::from_be_bytes(bytes)))
    }

    /// `None` for an IPv4-mapped address, which must not be on the wire.
    #[inline]
    fn v6(bytes: [u8; 16]) -> Option<Self> {
        let bits = u128::from_be_bytes(bytes);
        (bits >> 32 != 0xffff).then_some(Self(bits))
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(v4: Ipv4Addr) -> Self {
        Self::v4(v4.octets())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(v6: Ipv6Addr) -> Self {
        Self(u128::from_be_bytes(v6.octets()))
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        Ipv6Addr::from(addr.0).to_canonical()
    }
}

/// Where two ends of a flow are told apart, and how far a TCP connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP (RFC 9293).
    Tcp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
        /// The flags byte: FIN 1, SYN 2, RST 4, ACK 16.
        flags: u8,
    },
    /// UDP (RFC 768).
    Udp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
    },
    /// ICMP or ICMPv6 echo (RFC 792, RFC 4443).
    Echo {
        /// A request, not a reply.
        request: bool,
        /// The identifier that tells pingers apart.
        id: u16,
    },
    /// An ICMP or ICMPv6 error about an earlier packet.
    IcmpError(Quoted),
    /// Any other ICMP or ICMPv6 message of this type.
    OtherIcmp(u8),
    /// A fragment that is not the first: no ports are known.
    LaterFragment,
    /// Another protocol.
    Other(u8),
}

/// The packet that an ICMP error quotes, as far as it identifies a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quoted {
    /// Its source: who is being told about the error.
    pub src: Addr,
    /// Its destination.
    pub dst: Addr,
    /// Protocol number: 1, 6, 17 or 58.
    pub protocol: u8,
    /// Source port, or the identifier of an echo request.
    pub src_port: u16,
    /// Destination port; 0 for echo.
    pub dst_port: u16,
}

/// What all fragments of one packet share (RFC 791, section 3.2; RFC 8200, section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FragmentId {
    /// The identification field.
    pub id: u32,
    /// Protocol number (IPv4 only; 0 for IPv6).
    pub protocol: u8,
}

/// A packet's headers, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// What is inside.
    pub transport: Transport,
    /// Set for every fragment, the first included.
    pub fragment: Option<FragmentId>,
}

/// Why bytes are not a packet that may travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPacket {
    /// A header is cut off, or lengths contradict each other.
    #[error("a malformed IP packet")]
    Malformed,
    /// A first fragment too short for its transport header (RFC 1858).
    #[error("a first fragment without its whole transport header")]
    TinyFragment,
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Reads the headers of an IP packet; the bytes must be exactly one packet.
#[inline]
pub fn parse(packet: &[u8]) -> Result<Header, InvalidPacket> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => parse_v4(packet),
        Some(6) => parse_v6(packet),
        _ => Err(InvalidPacket::Malformed),
    }
}

#[inline]
fn parse_v4(packet: &[u8]) -> Result<Header, InvalidPacket> {
    let head = packet.first_chunk::<20>().ok_or(InvalidPacket::Malformed)?;
    let header_len = usize::from(head[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if header_len < 20 || total < header_len || total != packet.len() {
        return Err(InvalidPacket::Malformed);
    }
    let src = Addr::v4([head[12], head[13], head[14], head[15]]);
    let dst = Addr::v4([head[16], head[17], head[18], head[19]]);
    let protocol = head[9];
    let body = &packet[header_len..];
    let fragmentation = u16::from_be_bytes([head[6], head[7]]);
    // More-fragments flag and offset; the don't-fragment flag is no fragmentation.
    if fragmentation & 0x3fff == 0 {
        return Ok(Header {
            src,
            dst,
            transport: transport(protocol, body, ICMP)?,
            fragment: None,
        });
    }
    let fragment = Some(FragmentId {
        id: u32::from(u16::from_be_bytes([head[4], head[5]])),
        protocol,
    });
    let offset = fragmentation & 0x1fff;
    Ok(Header {
        src,
        dst,
        transport: fragment_transport(offset, protocol, body, ICMP)?,
        fragment,
    })
}

#[inline]
fn parse_v6(packet: &[u8]) -> Result<Header, InvalidPacket> {
    let (head, rest) = packet
        .split_first_chunk::<40>()
        .ok_or(InvalidPacket::Malformed)?;
    let payload = usize::from(u16::from_be_bytes([head[4], head[5]]));
    if payload != rest.len() {
        return Err(InvalidPacket::Malformed);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&head[8..24]);
    let src = Addr::v6(bytes).ok_or(InvalidPacket::Malformed)?;
    bytes.copy_from_slice(&head[24..40]);
    let dst = Addr::v6(bytes).ok_or(InvalidPacket::Malformed)?;
    let (protocol, fragment, body) = skip_extensions(head[6], rest)?;
    let Some((id, offset)) = fragment else {
        return Ok(Header {
            src,
            dst,
            transport: transport(protocol, body, ICMPV6)?,
            fragment: None,
        });
    };
    Ok(Header {
        src,
        dst,
        transport: fragment_transport(offset, protocol, body, ICMPV6)?,
        fragment: Some(FragmentId { id, protocol: 0 }),
    })
}

/// Identification and offset (in units of 8 bytes) of an IPv6 fragment.
type V6Fragment = (u32, u16);

/// Walks hop-by-hop, destination, routing and fragment headers (RFC 8200, section 4), at most
/// eight of them. Behind a fragment header that is not the first there is no header to walk.
fn skip_extensions(
    mut next: u8,
    mut rest: &[u8],
) -> Result<(u8, Option<V6Fragment>, &[u8]), InvalidPacket> {
    let mut fragment = None;
    for _ in 0..8 {
        match next {
            0 | 43 | 60 => {
                let length = rest.get(1).ok_or(InvalidPacket::Malformed)?;
                let skip = (usize::from(*length) + 1) * 8;
                next = rest[0];
                rest = rest.get(skip..).ok_or(InvalidPacket::Malformed)?;
            }
            44 => {
                let (head, behind) = rest
                    .split_first_chunk::<8>()
                    .ok_or(InvalidPacket::Malformed)?;
                if fragment.is_some() {
                    return Err(InvalidPacket::Malformed);
                }
                let offset = u16::from_be_bytes([head[2], head[3]]);
                let id = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
                // An atomic fragment (offset 0, no more) is a whole packet (RFC 6946).
                if offset & 0xfff9 != 0 {
                    fragment = Some((id, offset >> 3));
                }
                next = head[0];
                rest = behind;
                if offset >> 3 != 0 {
                    break;
                }
            }
            _ => return Ok((next, fragment, rest)),
        }
    }
    match fragment {
        Some((_, offset)) if offset != 0 => Ok((next, fragment, rest)),
        _ => Err(InvalidPacket::Malformed),
    }
}

fn fragment_transport(
    offset: u16,
    protocol: u8,
    body: &[u8],
    icmp: u8,
) -> Result<Transport, InvalidPacket> {
    if offset == 0 {
        return transport(protocol, body, icmp).map_err(|_| InvalidPacket::TinyFragment);
    }
    // Offset 1 (8 bytes in) could rewrite the flags of a TCP header (RFC 3128).
    if offset < 3 {
        return Err(InvalidPacket::TinyFragment);
    }
    Ok(Transport::LaterFragment)
}

/// `icmp` is the number of the family's own ICMP; the other family's means nothing.
#[inline]
fn transport(protocol: u8, body: &[u8], icmp: u8) -> Result<Transport, InvalidPacket> {
    match protocol {
        TCP => {
            let head = body.first_chunk::<20>().ok_or(InvalidPacket::Malformed)?;
            let header_len = usize::from(head[12] >> 4) * 4;
            if header_len < 20 || header_len > body.len() {
                return Err(InvalidPacket::Malformed);
            }
            Ok(Transport::Tcp {
                src: u16::from_be_bytes([head[0], head[1]]),
                dst: u16::from_be_bytes([head[2], head[3]]),
                flags: head[13],
            })
        }
        UDP => {
            let head = body.first_chunk::<8>().ok_or(InvalidPacket::Malformed)?;
            Ok(Transport::Udp {
                src: u16::from_be_bytes([head[0], head[1]]),
                dst: u16::from_be_bytes([head[2], head[3]]),
            })
        }
        protocol if protocol == icmp => {
            let (head, rest) = body
                .split_first_chunk::<8>()
                .ok_or(InvalidPacket::Malformed)?;
            let id = u16::from_be_bytes([head[4], head[5]]);
            Ok(match (icmp, head[0]) {
                (ICMP, 8) | (ICMPV6, 128) => Transport::Echo { request: true, id },
                (ICMP, 0) | (ICMPV6, 129) => Transport::Echo { request: false, id },
                (ICMP, 3 | 11 | 12) | (ICMPV6, 1..=4) => {
                    Transport::IcmpError(quoted(rest).ok_or(InvalidPacket::Malformed)?)
                }
                (_, kind) => Transport::OtherIcmp(kind),
            })
        }
        other => Ok(Transport::Other(other)),
    }
}

/// The quoted packet of an ICMP error; only its first bytes are there, so lengths mean nothing.
fn quoted(packet: &[u8]) -> Option<Quoted> {
    let (src, dst, protocol, body) = match packet.first()? >> 4 {
        4 => {
            let head = packet.first_chunk::<20>()?;
            let body = packet.get(usize::from(head[0] & 0x0f) * 4..)?;
            // A later fragment quotes no ports.
            if u16::from_be_bytes([head[6], head[7]]) & 0x1fff != 0 {
                return None;
            }
            (
                Addr::v4([head[12], head[13], head[14], head[15]]),
                Addr::v4([head[16], head[17], head[18], head[19]]),
                head[9],
                body,
            )
        }
        6 => {
            let (head, rest) = packet.split_first_chunk::<40>()?;
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&head[8..24]);
            let src = Addr::v6(bytes)?;
            bytes.copy_from_slice(&head[24..40]);
            let dst = Addr::v6(bytes)?;
            let (protocol, _, body) = skip_extensions(head[6], rest).ok()?;
            (src, dst, protocol, body)
        }
        _ => return None,
    };
    let head = body.first_chunk::<8>()?;
    let (src_port, dst_port) = match (protocol, head[0]) {
        (TCP | UDP, _) => (
            u16::from_be_bytes([head[0], head[1]]),
            u16::from_be_bytes([head[2], head[3]]),
        ),
        (ICMP, 8) | (ICMPV6, 128) => (u16::from_be_bytes([head[4], head[5]]), 0),
        _ => return None,
    };
    Some(Quoted {
        src,
        dst,
        protocol,
        src_port,
        dst_port,
    })
}

#[cfg(test)]
mod tests;
