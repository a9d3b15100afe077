//! STUN binding requests and responses (RFC 8489): how a node learns its public address.
//!
//! Only what a binding without authentication needs; unknown attributes that a receiver must
//! understand make a message invalid.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Fixed second word of every message (RFC 8489, section 5).
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const HEADER: usize = 20;
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Attributes below this number must be understood (RFC 8489, section 14).
const COMPREHENSION_OPTIONAL: u16 = 0x8000;

/// Longest response that [`encode_response`] makes: header and one IPv6 address, in bytes.
pub const MAX_RESPONSE: usize = HEADER + 24;

/// The 96 bits that tie a response to its request.
pub type TransactionId = [u8; 12];

/// Why bytes are not the STUN message that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStun {
    /// Too short, the wrong magic cookie, or a length that does not fit.
    #[error("not a STUN message")]
    Format,
    /// Well-formed, but neither a binding request nor a binding success response.
    #[error("not a STUN binding message")]
    Method,
    /// A binding success response without a readable XOR-MAPPED-ADDRESS.
    #[error("a STUN response without a mapped address")]
    NoAddress,
    /// An attribute that must be understood is not.
    #[error("a STUN message with unknown required attribute {0:#06x}")]
    UnknownAttribute(u16),
}

/// Whether a datagram on a shared socket is STUN: its first two bits are zero and the cookie fits.
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER && datagram[0] & 0xc0 == 0 && datagram[4..8] == MAGIC_COOKIE
}

/// A binding request without attributes.
pub fn encode_request(transaction: &TransactionId) -> [u8; HEADER] {
    let mut message = [0; HEADER];
    message[..2].copy_from_slice(&BINDING_REQUEST);
    message[4..8].copy_from_slice(&MAGIC_COOKIE);
    message[8..].copy_from_slice(transaction);
    message
}

/// The transaction of a binding request.
pub fn parse_request(datagram: &[u8]) -> Result<TransactionId, InvalidStun> {
    let (transaction, attributes) = split(datagram, BINDING_REQUEST)?;
    for attribute in Attributes(attributes) {
        let (kind, _) = attribute?;
        if kind < COMPREHENSION_OPTIONAL {
            return Err(InvalidStun::UnknownAttribute(kind));
        }
    }
    Ok(transaction)
}

/// Writes the binding success response that tells the client it was seen as `mapped`; returns how
/// much of `into` was used.
pub fn encode_response(
    transaction: &TransactionId,
    mapped: SocketAddr,
    into: &mut [u8; MAX_RESPONSE],
) -> usize {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE);
    mask[4..].copy_from_slice(transaction);
    let mut address = [0; 16];
    let (family, address_len) = match mapped.ip().to_canonical() {
        IpAddr::V4(v4) => {
            address[..4].copy_from_slice(&v4.octets());
            (1, 4)
        }
        IpAddr::V6(v6) => {
            address = v6.octets();
            (2, 16)
        }
    };
    let value_len: u8 = 4 + address_len;
    into[..2].copy_from_slice(&BINDING_SUCCESS);
    into[2..4].copy_from_slice(&u16::from(4 + value_len).to_be_bytes());
    into[4..20].copy_from_slice(&mask);
    into[20..22].copy_from_slice(&XOR_MAPPED_ADDRESS.to_be_bytes());
    into[22..24].copy_from_slice(&u16::from(value_len).to_be_bytes());
    into[24] = 0;
    into[25] = family;
    let [cookie_0, cookie_1, ..] = MAGIC_COOKIE;
    let [port_0, port_1] = mapped.port().to_be_bytes();
    into[26] = port_0 ^ cookie_0;
    into[27] = port_1 ^ cookie_1;
    for i in 0..usize::from(address_len) {
        into[28 + i] = address[i] ^ mask[i];
    }
    28 + usize::from(address_len)
}

/// The transaction and the mapped address of a binding success response.
pub fn parse_response(datagram: &[u8]) -> Result<(TransactionId, SocketAddr), InvalidStun> {
    let (transaction, attributes) = split(datagram, BINDING_SUCCESS)?;
    let mut mapped = None;
    for attribute in Attributes(attributes) {
        let (kind, value) = attribute?;
        match kind {
            XOR_MAPPED_ADDRESS if mapped.is_none() => {
                mapped = Some(unmask(value, &transaction).ok_or(InvalidStun::NoAddress)?);
            }
            // Servers add these two beside it: MAPPED-ADDRESS and a later XOR-MAPPED-ADDRESS.
            0x0001 | XOR_MAPPED_ADDRESS => {}
            kind if kind < COMPREHENSION_OPTIONAL => {
                return Err(InvalidStun::UnknownAttribute(kind));
            }
            _ => {}
        }
    }
    mapped
        .map(|mapped| (transaction, mapped))
        .ok_or(InvalidStun::NoAddress)
}

fn split(datagram: &[u8], method: [u8; 2]) -> Result<(TransactionId, &[u8]), InvalidStun> {
    if !is_stun(datagram) {
        return Err(InvalidStun::Format);
    }
    let (header, attributes) = datagram.split_at(HEADER);
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if length != attributes.len() || !length.is_multiple_of(4) {
        return Err(InvalidStun::Format);
    }
    if header[..2] != method {
        return Err(InvalidStun::Method);
    }
    let mut transaction = [0; 12];
    transaction.copy_from_slice(&header[8..]);
    Ok((transaction, attributes))
}

fn unmask(value: &[u8], transaction: &TransactionId) -> Option<SocketAddr> {
    let (head, masked) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([head[2] ^ MAGIC_COOKIE[0], head[3] ^ MAGIC_COOKIE[1]]);
    let mask = MAGIC_COOKIE.iter().chain(transaction);
    let mut address = [0; 16];
    for ((to, from), mask) in address.iter_mut().zip(masked).zip(mask) {
        *to = from ^ mask;
    }
    let ip = match (head[1], masked.len()) {
        (1, 4) => IpAddr::V4(Ipv4Addr::new(
            address[0], address[1], address[2], address[3],
        )),
        (2, 16) => IpAddr::V6(Ipv6Addr::from(address)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Type and value of each attribute, padding skipped (RFC 8489, section 14).
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), InvalidStun>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((head, rest)) = self.0.split_first_chunk::<4>() else {
            self.0 = &[];
            return Some(Err(InvalidStun::Format));
        };
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let padded = length.next_multiple_of(4);
        if padded > rest.len() {
            self.0 = &[];
            return Some(Err(InvalidStun::Format));
        }
        self.0 = &rest[padded..];
        Some(Ok((kind, &rest[..length])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The IPv4 response of RFC 5769, section 2.2, without SOFTWARE, MESSAGE-INTEGRITY and
    /// FINGERPRINT (which would need a key): the address attribute's bytes are the RFC's.
    #[test]
    fn the_sample_address_of_rfc_5769_is_read() {
        let mut message = vec![0x01, 0x01, 0x00, 0x0c];
        message.extend(MAGIC_COOKIE);
        message.extend([
            0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae,
        ]);
        message.extend([0x00, 0x20, 0x00, 0x08]);
        message.extend([0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
        let (_, mapped) = parse_response(&message).expect("the RFC's bytes");
        assert_eq!(mapped, "192.0.2.1:32853".parse().expect("an address"));
    }

    #[test]
    fn a_response_carries_both_families_back() {
        for text in ["203.0.113.7:51820", "[2001:db8::42]:65535"] {
            let mapped: SocketAddr = text.parse().expect("an address");
            let mut buffer = [0; MAX_RESPONSE];
            let len = encode_response(&[7; 12], mapped, &mut buffer);
            assert_eq!(parse_response(&buffer[..len]), Ok(([7; 12], mapped)));
        }
    }

    #[test]
    fn a_mapped_ipv4_source_is_answered_as_ipv4() {
        let mut buffer = [0; MAX_RESPONSE];
        let mapped = "[::ffff:203.0.113.7]:9".parse().expect("an address");
        let len = encode_response(&[1; 12], mapped, &mut buffer);
        let (_, seen) = parse_response(&buffer[..len]).expect("own response");
        assert_eq!(seen, "203.0.113.7:9".parse().expect("an address"));
    }

    #[test]
    fn a_request_survives_and_requests_are_not_responses() {
        let request = encode_request(&[9; 12]);
        assert_eq!(parse_request(&request), Ok([9; 12]));
        assert_eq!(parse_response(&request), Err(InvalidStun::Method));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let mut buffer = [0; MAX_RESPONSE];
        let mapped = "192.0.2.1:1".parse().expect("an address");
        let len = encode_response(&[1; 12], mapped, &mut buffer);
        for cut in 0..len {
            assert!(parse_response(&buffer[..cut]).is_err());
        }
        buffer[23] = 200;
        assert_eq!(parse_response(&buffer[..len]), Err(InvalidStun::Format));
    }

    #[test]
    fn unknown_required_attributes_are_refused() {
        let mut request = encode_request(&[9; 12]).to_vec();
        request[3] = 4;
        request.extend([0x00, 0x03, 0x00, 0x00]);
        assert_eq!(
            parse_request(&request),
            Err(InvalidStun::UnknownAttribute(3))
        );
    }
}
