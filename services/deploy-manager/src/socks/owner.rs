//! Which local user holds the other end of a loopback connection (Linux).
//!
//! The check is what keeps other users of the machine out of the network when no password is set.
//! The kernel is asked for the one connection ([`Kernel`]); where it does not answer such questions
//! its table of all connections tells (`/proc/net/tcp{,6}`, [`in_tables`]).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

mod diag;

/// The state of an established connection in the kernel's table.
const ESTABLISHED: &str = "01";

/// Asks the kernel, until it turns out that it answers no such questions: each would make it look
/// for a module that it does not have.
#[derive(Debug, Default)]
pub struct Kernel {
    is_mute: AtomicBool,
}

impl Kernel {
    /// The user that holds the socket at `client`, which is connected to `server`, our own end of
    /// the connection; `None` when no process of this network namespace holds it. Takes no time.
    ///
    /// # Errors
    /// The kernel cannot be asked; [`in_tables`] tells.
    pub fn owner_of(&self, client: SocketAddr, server: SocketAddr) -> io::Result<Option<u32>> {
        self.ask(|| diag::of(client, server))
    }

    fn ask<T>(&self, question: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.is_mute.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let answer = question();
        if answer.as_ref().is_err_and(is_for_good) {
            self.is_mute.store(true, Ordering::Relaxed);
        }
        answer
    }
}

/// Whether it would be the same the next time: the kernel's part for this is missing, or a filter
/// keeps us from asking.
fn is_for_good(error: &io::Error) -> bool {
    use Errno::{EACCES, EAFNOSUPPORT, EPERM, EPROTONOSUPPORT};
    let error = error.raw_os_error().map(Errno::from_raw);
    error.is_some_and(|error| [EPROTONOSUPPORT, EAFNOSUPPORT, EACCES, EPERM].contains(&error))
}

/// The same as [`Kernel::owner_of`]. Reads the table of all connections of the machine, so it takes the longer
/// the more there are: no call for a thread that others wait for.
pub fn in_tables(client: SocketAddr, server: SocketAddr) -> io::Result<Option<u32>> {
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match std::fs::read_to_string(path) {
            Ok(table) => {
                let found = find(&table, client, server);
                if found.is_some() {
                    return Ok(found);
                }
            }
            // A kernel without IPv6 has no second table.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Looks the connection up in one table.
///
/// A socket that its process has closed stays in the table for a while, owned by user 0 and
/// without an inode: taking that for root would let anybody in who closes early enough. So only
/// an established connection with an inode counts.
fn find(table: &str, client: SocketAddr, server: SocketAddr) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = parse(fields.nth(1)?)?;
        let remote = parse(fields.next()?)?;
        let state = fields.next()?;
        let uid = fields.nth(3)?.parse().ok()?;
        let inode: u64 = fields.nth(1)?.parse().ok()?;
        let same = local == canonical(client) && remote == canonical(server);
        (same && state == ESTABLISHED && inode != 0).then_some(uid)
    })
}

/// Whether every UDP socket that may have sent from `from` is held by `us` or by root, and there is
/// one (Linux, `/proc/net/udp{,6}`).
pub fn sent_by(from: SocketAddr, us: u32) -> io::Result<bool> {
    let mut tables = String::new();
    for path in ["/proc/net/udp", "/proc/net/udp6"] {
        match std::fs::read_to_string(path) {
            Ok(table) => tables.push_str(&table),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all_held_by(&tables, from, us))
}

/// A socket bound to every address sends from any, so it counts too, of either family: several
/// users may share a port, and then nobody can say whose the datagram is.
fn all_held_by(tables: &str, from: SocketAddr, us: u32) -> bool {
    let from = canonical(from);
    let mut owners = tables.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = parse(fields.nth(1)?)?;
        let uid: u32 = fields.nth(5)?.parse().ok()?;
        let inode: u64 = fields.nth(1)?.parse().ok()?;
        let same =
            local.port() == from.port() && (local.ip() == from.ip() || local.ip().is_unspecified());
        (same && inode != 0).then_some(uid)
    });
    let is_ours = |uid| uid == us || uid == 0;
    owners.next().is_some_and(is_ours) && owners.all(is_ours)
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// An address as the kernel prints it: each 32-bit word in the machine's byte order.
fn parse(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok();
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?.to_ne_bytes())),
        32 => {
            let mut bytes = [0; 16];
            for (n, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(n * 8)?.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(canonical(SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn line(state: &str, uid: u32, inode: u64) -> String {
        format!(
            "{HEAD}   7: 0100007F:C350 0100007F:0438 {state} 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 1 0\n"
        )
    }

    fn lookup(table: &str) -> Option<u32> {
        let client = "127.0.0.1:50000".parse().unwrap();
        find(table, client, "127.0.0.1:1080".parse().unwrap())
    }

    #[test]
    fn only_a_live_socket_has_an_owner() {
        assert_eq!(lookup(&line("01", 1000, 77)), Some(1000));
        assert_eq!(lookup(&line("01", 0, 77)), Some(0));
        for (state, inode) in [("01", 0), ("04", 0), ("05", 0), ("06", 0), ("08", 77)] {
            assert_eq!(lookup(&line(state, 0, inode)), None, "{state} {inode}");
        }
        assert_eq!(lookup(HEAD), None);
        assert_eq!(lookup("garbage\nmore garbage here\n"), None);
    }

    #[test]
    fn a_kernel_that_cannot_answer_is_asked_once_and_one_that_did_not_again() {
        let asked_twice = |errno: Errno| {
            let kernel = Kernel::default();
            let mut asked = 0;
            for _ in 0..2 {
                let answer: io::Result<()> = kernel.ask(|| {
                    asked += 1;
                    Err(errno.into())
                });
                assert!(answer.is_err());
            }
            asked == 2
        };
        for errno in [Errno::EPROTONOSUPPORT, Errno::EPERM] {
            assert!(!asked_twice(errno), "{errno}");
        }
        for errno in [Errno::EAGAIN, Errno::ENOBUFS, Errno::EMFILE] {
            assert!(asked_twice(errno), "{errno}");
        }
    }

    #[test]
    fn an_ipv4_client_of_an_ipv6_socket_is_found_in_the_other_table() {
        let table = format!(
            "{HEAD}   7: 0000000000000000FFFF00000100007F:C350 0000000000000000FFFF00000100007F:0438 01 \
             00000000:00000000 00:00000000 00000000 1000 0 77 1 0\n"
        );
        assert_eq!(lookup(&table), Some(1000));
    }

    #[test]
    fn the_kernel_says_that_our_own_socket_is_ours() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(bind) else {
                continue;
            };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let ours = nix::unistd::geteuid().as_raw();
            let here = server.local_addr().unwrap();
            assert_eq!(in_tables(peer, here).unwrap(), Some(ours));
            drop(client);
            assert_eq!(in_tables(peer, here).unwrap(), None);
        }
    }

    #[test]
    fn a_datagram_is_ours_only_when_every_socket_that_may_have_sent_it_is() {
        let row = |local: &str, uid: u32, inode: u64| {
            format!(
                " 12: {local} 00000000:0000 07 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 2 0 0\n"
            )
        };
        let held = |rows: &[String]| {
            let table = format!("{HEAD}{}", rows.concat());
            all_held_by(&table, "127.0.0.1:50000".parse().unwrap(), 1000)
        };
        let any6 = "00000000000000000000000000000000:C350";
        for local in ["0100007F:C350", "00000000:C350", any6] {
            assert!(held(&[row(local, 1000, 7)]), "{local}");
            assert!(held(&[row(local, 0, 7)]), "{local}");
            assert!(!held(&[row(local, 1001, 7)]), "{local}");
            assert!(!held(&[row(local, 0, 0)]), "{local}");
            assert!(!held(&[row("0100007F:C350", 1000, 7), row(local, 1001, 8)]));
        }
        assert!(!held(&[]));
        assert!(!held(&[row("0100007F:C351", 1000, 7)]));
        assert!(!held(&[row("0200007F:C350", 1000, 7)]));
        assert!(held(&[
            row("0100007F:C350", 1000, 7),
            row("0200007F:C350", 1001, 8)
        ]));
    }

    #[test]
    fn the_kernel_says_that_our_own_datagrams_are_ours() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = socket.local_addr().unwrap();
        let us = nix::unistd::geteuid().as_raw();
        assert!(sent_by(from, us).unwrap());
        drop(socket);
        assert!(!sent_by(from, us).unwrap());
    }
}
