//! Asks the kernel whose one connection is (Linux, sock_diag(7)): it looks that one up and no
//! other, so it takes as long on a machine with ten connections as on one with a million.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    socket,
};

/// `SOCK_DIAG_BY_FAMILY` (linux/sock_diag.h), in a request and in its answer.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST` and `NLMSG_ERROR` (linux/netlink.h).
const REQUEST: u16 = 1;
const ERROR: u16 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;
/// A socket's state.
const ESTABLISHED: u8 = 1;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of header and `struct inet_diag_req_v2` (linux/inet_diag.h).
const QUESTION: u32 = 16 + 56;
/// How long connecting to ourselves may take, which takes no time unless a firewall forbids it.
const TO_OURSELVES: Duration = Duration::from_millis(100);
/// Room for header and `struct inet_diag_msg`, and for attributes that nobody asked for.
const ANSWER: usize = 1024;

/// The user that holds the socket at `client`, which is connected to `server`; `None` when there is
/// none. `server` is our own end of the connection.
///
/// # Errors
/// The kernel does not tell: its part for this is missing, or a filter keeps us from asking.
pub(super) fn of(client: SocketAddr, server: SocketAddr) -> io::Result<Option<u32>> {
    let kernel = open()?;
    ask(client, server, |at, to| look_up(&kernel, at, to))
}

/// Without its part for TCP the kernel says that there is no such connection, too. So it is asked
/// for one that there is: our own end, and when the client has reset that, one that we make.
fn ask<F>(client: SocketAddr, server: SocketAddr, look_up: F) -> io::Result<Option<u32>>
where
    F: Fn(SocketAddr, SocketAddr) -> io::Result<Option<Found>>,
{
    if let Some(found) = look_up(client, server)? {
        return Ok(found.holder());
    }
    if look_up(server, client)?.is_some() {
        return Ok(None);
    }
    let listener = TcpListener::bind((server.ip().to_canonical(), 0))?;
    let ours = TcpStream::connect_timeout(&listener.local_addr()?, TO_OURSELVES)?;
    match look_up(ours.local_addr()?, ours.peer_addr()?)? {
        Some(_) => Ok(None),
        None => Err(Errno::EPROTONOSUPPORT.into()),
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    // Then nobody but the kernel can answer.
    connect(kernel.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(kernel)
}

/// A socket, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    state: u8,
    uid: u32,
    inode: u32,
}

impl Found {
    /// A socket that its process has closed is there for a while, owned by user 0 and without an
    /// inode: taking that for root would let anybody in who closes early enough.
    fn holder(&self) -> Option<u32> {
        (self.state == ESTABLISHED && self.inode != 0).then_some(self.uid)
    }
}

/// The socket at `at` that is connected to `to`. The kernel does its work within the first call, so
/// nothing here waits.
fn look_up(kernel: &OwnedFd, at: SocketAddr, to: SocketAddr) -> io::Result<Option<Found>> {
    let fd = kernel.as_raw_fd();
    send(fd, &question(at, to), MsgFlags::empty())?;
    let mut room = [0; ANSWER];
    let length = recv(fd, &mut room, MsgFlags::MSG_DONTWAIT)?;
    parse(&room[..length], at, to)
}

fn question(at: SocketAddr, to: SocketAddr) -> [u8; QUESTION as usize] {
    let (at, to) = (canonical(at), canonical(to));
    let mut text = [0; QUESTION as usize];
    let mut put = |offset: usize, bytes: &[u8]| {
        text[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &QUESTION.to_ne_bytes());
    put(4, &BY_FAMILY.to_ne_bytes());
    put(6, &REQUEST.to_ne_bytes());
    let family = if at.is_ipv4() { AF_INET } else { AF_INET6 };
    put(HEADER, &[family, TCP]);
    // In whatever state it is.
    put(HEADER + 4, &u32::MAX.to_ne_bytes());
    put(HEADER + 8, &at.port().to_be_bytes());
    put(HEADER + 10, &to.port().to_be_bytes());
    for (offset, ip) in [(HEADER + 12, at.ip()), (HEADER + 28, to.ip())] {
        match ip {
            IpAddr::V4(v4) => put(offset, &v4.octets()),
            IpAddr::V6(v6) => put(offset, &v6.octets()),
        }
    }
    // On any interface, with any cookie.
    put(HEADER + 48, &u64::MAX.to_ne_bytes());
    text
}

/// Reads an answer to the question for the socket at `at` that is connected to `to`.
fn parse(text: &[u8], at: SocketAddr, to: SocketAddr) -> io::Result<Option<Found>> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let kind = u16::from_ne_bytes(bytes(text, 4).ok_or_else(malformed)?);
    if kind == ERROR {
        let code = i32::from_ne_bytes(bytes(text, HEADER).ok_or_else(malformed)?);
        return match code.checked_neg() {
            Some(libc::ENOENT) => Ok(None),
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None => Err(malformed()),
        };
    }
    let found = || {
        let [family, state] = bytes(text, HEADER)?;
        let ip = |offset| {
            let v6: [u8; 16] = bytes(text, HEADER + offset)?;
            Some(match family {
                AF_INET => Ipv4Addr::from(bytes::<4>(&v6, 0)?).into(),
                _ => Ipv6Addr::from(v6).into(),
            })
        };
        let port = |offset| Some(u16::from_be_bytes(bytes(text, HEADER + offset)?));
        let whose = Found {
            state,
            uid: u32::from_ne_bytes(bytes(text, HEADER + 64)?),
            inode: u32::from_ne_bytes(bytes(text, HEADER + 68)?),
        };
        // Where no connection fits the kernel speaks of a listener that would.
        let its = SocketAddr::new(ip(8)?, port(4)?);
        let others = SocketAddr::new(ip(24)?, port(6)?);
        let same = canonical(its) == canonical(at) && canonical(others) == canonical(to);
        Some(same.then_some(whose))
    };
    match kind {
        BY_FAMILY => found().ok_or_else(malformed),
        _ => Err(malformed()),
    }
}

fn bytes<const N: usize>(text: &[u8], offset: usize) -> Option<[u8; N]> {
    text.get(offset..offset + N)?.try_into().ok()
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us() -> Option<u32> {
        Some(nix::unistd::geteuid().as_raw())
    }

    #[test]
    fn the_kernel_says_that_our_own_socket_is_ours_until_it_is_closed() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(bind) else {
                continue;
            };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let here = server.local_addr().unwrap();
            assert_eq!(of(peer, here).unwrap(), us());
            drop(client);
            assert_eq!(of(peer, here).unwrap(), None);
        }
    }

    #[test]
    fn an_ipv4_client_of_an_ipv6_socket_is_found() {
        let Ok(listener) = TcpListener::bind("[::]:0") else {
            return;
        };
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (server, peer) = listener.accept().unwrap();
        assert!(matches!(peer.ip(), IpAddr::V6(_)), "{peer}");
        assert_eq!(of(peer, server.local_addr().unwrap()).unwrap(), us());
        drop(client);
    }

    #[test]
    fn a_listener_is_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let nobody = "127.0.0.1:1".parse().unwrap();
        let kernel = open().unwrap();
        assert_eq!(look_up(&kernel, here, nobody).unwrap(), None);
    }

    #[test]
    fn a_kernel_that_knows_no_connection_at_all_is_told_from_one_that_is_gone() {
        let (one, other) = (
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.1:2".parse().unwrap(),
        );
        assert_eq!(of(one, other).unwrap(), None, "neither end is there");
        let error = ask(one, other, |_, _| Ok(None)).expect_err("it knows none");
        assert_eq!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT));
    }

    #[test]
    fn only_a_whole_answer_about_an_open_socket_names_its_user() {
        let found = |state, inode| Found {
            state,
            uid: 1000,
            inode,
        };
        assert_eq!(found(ESTABLISHED, 7).holder(), Some(1000));
        for (state, inode) in [(ESTABLISHED, 0), (4, 0), (5, 7), (6, 0), (8, 7), (10, 7)] {
            assert_eq!(found(state, inode).holder(), None, "{state} {inode}");
        }

        let (at, to) = (
            "127.0.0.1:50000".parse().unwrap(),
            "127.0.0.1:1080".parse().unwrap(),
        );
        let mut answer = vec![0; HEADER + 72];
        answer[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        answer[HEADER] = AF_INET;
        answer[HEADER + 1] = ESTABLISHED;
        // The connection is named as in the question, four bytes earlier.
        let asked = question(at, to);
        answer[HEADER + 4..HEADER + 40].copy_from_slice(&asked[HEADER + 8..HEADER + 44]);
        answer[HEADER + 64..HEADER + 68].copy_from_slice(&1000_u32.to_ne_bytes());
        answer[HEADER + 68..].copy_from_slice(&7_u32.to_ne_bytes());
        let whole = parse(&answer, at, to).unwrap();
        assert_eq!(whole, Some(found(ESTABLISHED, 7)));
        assert_eq!(parse(&answer, to, at).unwrap(), None, "another connection");
        for length in 0..answer.len() {
            assert!(parse(&answer[..length], at, to).is_err(), "{length}");
        }
        for (code, expected) in [(-libc::ENOENT, Ok(None)), (-libc::EPERM, Err(()))] {
            let mut refusal = vec![0; HEADER + 20];
            refusal[4..6].copy_from_slice(&ERROR.to_ne_bytes());
            refusal[HEADER..HEADER + 4].copy_from_slice(&i32::to_ne_bytes(code));
            assert_eq!(parse(&refusal, at, to).map_err(drop), expected);
        }
    }
}
