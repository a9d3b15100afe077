//! Packets of and for the node whose filter is tested.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_tunnel::packet::{Header, parse};

pub(crate) const OWN_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
pub(crate) const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1);

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Proto {
    Tcp(u8),
    Udp,
    EchoRequest,
    EchoReply,
}

/// A packet from `src` to `dst`; for echo `src_port` is the identifier.
pub(crate) fn packet(
    src: IpAddr,
    dst: IpAddr,
    proto: Proto,
    src_port: u16,
    dst_port: u16,
) -> Vec<u8> {
    let mut body = Vec::new();
    let v6 = src.is_ipv6();
    let number = match proto {
        Proto::Tcp(flags) => {
            body.extend(src_port.to_be_bytes());
            body.extend(dst_port.to_be_bytes());
            body.extend([0; 8]);
            body.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
            6
        }
        Proto::Udp => {
            body.extend(src_port.to_be_bytes());
            body.extend(dst_port.to_be_bytes());
            body.extend([0, 8, 0, 0]);
            17
        }
        Proto::EchoRequest | Proto::EchoReply => {
            let kind = match (proto, v6) {
                (Proto::EchoRequest, false) => 8,
                (Proto::EchoRequest, true) => 128,
                (_, false) => 0,
                (_, true) => 129,
            };
            body.extend([kind, 0, 0, 0]);
            body.extend(src_port.to_be_bytes());
            body.extend([0, 1]);
            if v6 { 58 } else { 1 }
        }
    };
    ip(src, dst, number, 0, &body)
}

pub(crate) fn ip(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    fragmentation: u16,
    body: &[u8],
) -> Vec<u8> {
    let len = u16::try_from(body.len()).expect("short");
    let mut packet = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            packet.extend([0x45, 0]);
            packet.extend((len + 20).to_be_bytes());
            packet.extend([0, 7]);
            packet.extend(fragmentation.to_be_bytes());
            packet.extend([64, protocol, 0, 0]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(len.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
        }
        _ => panic!("mixed families"),
    }
    packet.extend(body);
    packet
}

pub(crate) fn header(bytes: &[u8]) -> Header {
    parse(bytes).expect("a well-formed packet")
}

pub(crate) fn own(remote: IpAddr) -> IpAddr {
    if remote.is_ipv4() {
        OWN_V4.into()
    } else {
        OWN_V6.into()
    }
}
