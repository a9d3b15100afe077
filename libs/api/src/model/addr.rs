//! Addresses and prefixes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use mesh_types::OverlayAddrs;

use crate::error::ProtocolError;
use crate::pb;

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, ProtocolError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        Ok(Ipv4Addr::from(v4).into())
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        Ok(Ipv6Addr::from(v6).into())
    } else {
        Err(ProtocolError::invalid(
            field,
            "an IP address has 4 or 16 bytes",
        ))
    }
}

pub(crate) fn port(field: &'static str, number: u32) -> Result<u16, ProtocolError> {
    u16::try_from(number).map_err(|_| ProtocolError::invalid(field, "a port is at most 65535"))
}

impl From<OverlayAddrs> for pb::OverlayAddrs {
    fn from(OverlayAddrs { v4, v6 }: OverlayAddrs) -> Self {
        Self {
            v4: v4.octets().to_vec(),
            v6: v6.octets().to_vec(),
        }
    }
}

impl TryFrom<pb::OverlayAddrs> for OverlayAddrs {
    type Error = ProtocolError;

    fn try_from(pb::OverlayAddrs { v4, v6 }: pb::OverlayAddrs) -> Result<Self, ProtocolError> {
        match (ip("addrs.v4", &v4)?, ip("addrs.v6", &v6)?) {
            (IpAddr::V4(v4), IpAddr::V6(v6)) => Ok(Self { v4, v6 }),
            _ => Err(ProtocolError::invalid(
                "addrs",
                "one IPv4 and one IPv6 address are needed",
            )),
        }
    }
}

impl From<IpNet> for pb::Prefix {
    fn from(net: IpNet) -> Self {
        Self {
            addr: octets(net.addr()),
            len: net.prefix_len().into(),
        }
    }
}

impl TryFrom<pb::Prefix> for IpNet {
    type Error = ProtocolError;

    fn try_from(pb::Prefix { addr, len }: pb::Prefix) -> Result<Self, ProtocolError> {
        let len = u8::try_from(len)
            .map_err(|_| ProtocolError::invalid("prefix.len", "at most 128 bits"))?;
        Self::new(ip("prefix.addr", &addr)?, len)
            .map_err(|error| ProtocolError::invalid("prefix.len", error))
    }
}

impl From<SocketAddr> for pb::Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self {
            addr: octets(addr.ip()),
            port: addr.port().into(),
        }
    }
}

impl TryFrom<pb::Endpoint> for SocketAddr {
    type Error = ProtocolError;

    fn try_from(pb::Endpoint { addr, port: number }: pb::Endpoint) -> Result<Self, ProtocolError> {
        Ok(Self::new(
            ip("endpoint.addr", &addr)?,
            port("endpoint.port", number)?,
        ))
    }
}
