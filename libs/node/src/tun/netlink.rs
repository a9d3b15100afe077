//! Just enough rtnetlink to set up one interface: link, addresses, routes (rtnetlink(7)).
//!
//! A request is written to the kernel and its acknowledgement read, both at once: the kernel does
//! the work within the write.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// Kinds of requests (linux/rtnetlink.h).
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
/// Flags of requests (linux/netlink.h).
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// The kind of an acknowledgement.
const NLMSG_ERROR: u16 = 2;
/// Attributes.
const IFLA_MTU: u16 = 4;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// No duplicate address detection, and no route of the address's own.
const IFA_F_NODAD: u32 = 0x2;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// What an acknowledgement may bring along: the request that it is about.
const ANSWER: usize = 1024;

/// A connection to the kernel's routing.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A request as it is put together.
#[derive(Debug)]
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(128);
        // The length is written last.
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        // Sequence, and port 0: the kernel knows who we are.
        bytes.extend([0; 8]);
        Self(bytes)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn attribute(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, |message| message.bytes(value))
    }

    fn ip(self, kind: u16, ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => self.attribute(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attribute(kind, &v6.octets()),
        }
    }

    fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend(0_u16.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        let mut message = fill(self);
        let len = u16::try_from(message.0.len() - start).expect("attributes of ours are small");
        message.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        // Attributes begin at multiples of four; the length says where the value ends.
        message.0.resize(message.0.len().next_multiple_of(4), 0);
        message
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).expect("requests of ours are small");
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

fn family(ip: IpAddr) -> u8 {
    let family = if ip.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    u8::try_from(family).expect("address families are small numbers")
}

const fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn link(index: u32, flags: u32, changed: u32) -> Message {
    // struct ifinfomsg: family, padding, type, index, flags, which of the flags are meant
    Message::new(RTM_NEWLINK, 0)
        .bytes(&[0; 4])
        .bytes(&index.to_ne_bytes())
        .bytes(&flags.to_ne_bytes())
        .bytes(&changed.to_ne_bytes())
}

fn address(kind: u16, flags: u16, index: u32, ip: IpAddr) -> Message {
    // struct ifaddrmsg: family, prefix length, flags, scope, index
    Message::new(kind, flags)
        .bytes(&[family(ip), bits(ip), 0, RT_SCOPE_UNIVERSE])
        .bytes(&index.to_ne_bytes())
        .ip(IFA_LOCAL, ip)
        .ip(IFA_ADDRESS, ip)
        .attribute(
            IFA_FLAGS,
            &(IFA_F_NODAD | IFA_F_NOPREFIXROUTE).to_ne_bytes(),
        )
}

fn route(kind: u16, flags: u16, index: u32, to: IpAddr, from: IpAddr) -> Message {
    let scope = if to.is_ipv4() {
        RT_SCOPE_LINK
    } else {
        RT_SCOPE_UNIVERSE
    };
    // struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type,
    // flags
    Message::new(kind, flags)
        .bytes(&[family(to), bits(to), 0, 0, RT_TABLE_MAIN])
        .bytes(&[RTPROT_STATIC, scope, RTN_UNICAST])
        .bytes(&[0; 4])
        .ip(RTA_DST, to)
        .attribute(RTA_OIF, &index.to_ne_bytes())
        .ip(RTA_PREFSRC, from)
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // The answer is there when the request was taken; this is for a kernel that has none.
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(1))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sets the MTU.
    pub(super) fn set_mtu(&mut self, index: u32, mtu: u16) -> io::Result<()> {
        self.ask(link(index, 0, 0).attribute(IFLA_MTU, &u32::from(mtu).to_ne_bytes()))
    }

    /// Sets the MTU, and keeps the kernel from giving the link an address of its own.
    pub(super) fn prepare(&mut self, index: u32, mtu: u16) -> io::Result<()> {
        self.set_mtu(index, mtu)?;
        let quiet = link(index, 0, 0).nested(IFLA_AF_SPEC, |spec| {
            let family = u16::try_from(libc::AF_INET6).expect("address families are small");
            spec.nested(family, |inet6| {
                inet6.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE])
            })
        });
        match self.ask(quiet) {
            // A kernel without IPv6 gives none.
            Err(error) if is(&error, &[Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP]) => Ok(()),
            result => result,
        }
    }

    /// Brings the link up.
    pub(super) fn up(&mut self, index: u32) -> io::Result<()> {
        let up = u32::try_from(libc::IFF_UP).expect("a flag");
        self.ask(link(index, up, up))
    }

    /// Gives the link an address, the link's only one of its prefix.
    pub(super) fn add_address(&mut self, index: u32, ip: IpAddr) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let added = self.ask(address(RTM_NEWADDR, flags, index, ip));
        unless(added, &[Errno::EEXIST])
    }

    /// Takes an address away; one that is gone is no error.
    pub(super) fn remove_address(&mut self, index: u32, ip: IpAddr) -> io::Result<()> {
        let removed = self.ask(address(RTM_DELADDR, 0, index, ip));
        unless(removed, &[Errno::EADDRNOTAVAIL])
    }

    /// Sends what is for `to` through the link, with `from` as its source. A route to `to` that
    /// somebody else made is an error.
    pub(super) fn add_route(&mut self, index: u32, to: IpAddr, from: IpAddr) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.ask(route(RTM_NEWROUTE, flags, index, to, from))
    }

    /// Takes such a route away; one that is gone is no error.
    pub(super) fn remove_route(&mut self, index: u32, to: IpAddr, from: IpAddr) -> io::Result<()> {
        let removed = self.ask(route(RTM_DELROUTE, 0, index, to, from));
        unless(removed, &[Errno::ESRCH])
    }

    fn ask(&mut self, message: Message) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = message.finish(self.sequence);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(
            self.socket.as_raw_fd(),
            &request,
            &kernel,
            MsgFlags::empty(),
        )?;
        let mut answer = [0; ANSWER];
        loop {
            let len = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            // One that came too late for the request before is passed over.
            if let Some(result) = acknowledgement(&answer[..len], self.sequence) {
                return result;
            }
        }
    }
}

/// What an answer says of the request of this sequence; `None` when it is about another one.
fn acknowledgement(answer: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let field = |at: usize| {
        let bytes = answer.get(at..at + 4)?;
        Some(<[u8; 4]>::try_from(bytes).expect("four bytes"))
    };
    let kind = answer.get(4..6)?;
    if kind != NLMSG_ERROR.to_ne_bytes() || u32::from_ne_bytes(field(8)?) != sequence {
        return None;
    }
    match i32::from_ne_bytes(field(HEADER)?) {
        0 => Some(Ok(())),
        error => Some(Err(io::Error::from_raw_os_error(error.saturating_neg()))),
    }
}

/// Whether an address was refused because the machine has no IPv6, or has it turned off for the
/// link (`disable_ipv6`).
pub(super) fn is_v6_off(error: &io::Error) -> bool {
    is(
        error,
        &[Errno::EACCES, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP],
    )
}

fn is(error: &io::Error, errnos: &[Errno]) -> bool {
    error
        .raw_os_error()
        .is_some_and(|raw| errnos.contains(&Errno::from_raw(raw)))
}

/// These errors are none.
fn unless(result: io::Result<()>, errnos: &[Errno]) -> io::Result<()> {
    match result {
        Err(error) if is(&error, errnos) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request taken apart: kind, flags, sequence, fixed part, attributes.
    fn attributes(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut list = Vec::new();
        while let [l0, l1, k0, k1, ..] = *bytes {
            let len = usize::from(u16::from_ne_bytes([l0, l1]));
            list.push((u16::from_ne_bytes([k0, k1]), bytes[4..len].to_vec()));
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        list
    }

    #[test]
    fn a_route_says_where_to_through_what_and_from_where() {
        let (to, from) = ("100.64.0.7", "100.64.0.1");
        let (to, from) = (
            to.parse().expect("an address"),
            from.parse().expect("an address"),
        );
        let bytes = route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, 9, to, from).finish(3);
        assert_eq!(bytes.len(), 52);
        assert_eq!(bytes[..4], 52_u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 24_u16.to_ne_bytes());
        assert_eq!(bytes[6..8], 0x605_u16.to_ne_bytes());
        assert_eq!(bytes[8..12], 3_u32.to_ne_bytes());
        assert_eq!(bytes[16..24], [2, 32, 0, 0, 254, 4, 253, 1]);
        let expected = [
            (1, vec![100, 64, 0, 7]),
            (4, 9_u32.to_ne_bytes().to_vec()),
            (7, vec![100, 64, 0, 1]),
        ];
        assert_eq!(attributes(&bytes[28..]), expected);
    }

    #[test]
    fn attributes_within_attributes_count_into_their_length_and_begin_at_fours() {
        let spec =
            link(5, 0, 0).nested(26, |spec| spec.nested(10, |inet6| inet6.attribute(8, &[1])));
        let bytes = spec.finish(1);
        let outer = attributes(&bytes[32..]);
        assert_eq!(outer.len(), 1);
        let (kind, inner) = &outer[0];
        assert_eq!((*kind, inner.len()), (26, 12));
        let (kind, innermost) = &attributes(inner)[0];
        assert_eq!(*kind, 10);
        assert_eq!(attributes(innermost), [(8, vec![1])]);
    }

    #[test]
    fn an_answer_counts_for_its_own_request_only() {
        let answer = |sequence: u32, error: i32| {
            let mut bytes = vec![0; 36];
            bytes[4..6].copy_from_slice(&2_u16.to_ne_bytes());
            bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
            bytes[16..20].copy_from_slice(&error.to_ne_bytes());
            bytes
        };
        assert!(acknowledgement(&answer(6, 0), 7).is_none());
        assert!(acknowledgement(&answer(7, 0), 7).expect("ours").is_ok());
        let error = acknowledgement(&answer(7, -17), 7).expect("ours");
        assert!(is(&error.expect_err("refused"), &[Errno::EEXIST]));
        for len in 0..20 {
            assert!(acknowledgement(&answer(7, 0)[..len], 7).is_none(), "{len}");
        }
    }

    #[test]
    fn the_kernel_answers_and_refuses_an_interface_that_is_not_there() {
        let mut netlink = Netlink::open().expect("every Linux has it");
        let error = netlink.up(u32::MAX >> 1).expect_err("no such interface");
        // Who has no right to it is told so before.
        assert!(is(&error, &[Errno::ENODEV, Errno::EPERM]), "{error}");
    }
}
