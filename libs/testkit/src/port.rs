//! Ports that nobody uses right now.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// A TCP port that was free on loopback a moment ago. Prefer port 0 where the program reports what
/// it bound; this is for programs that do not.
///
/// # Panics
/// When the machine has no free port.
pub fn free_tcp_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free TCP port");
    listener.local_addr().expect("bound").port()
}

/// A UDP port that was free on loopback a moment ago.
///
/// # Panics
/// When the machine has no free port.
pub fn free_udp_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free UDP port");
    socket.local_addr().expect("bound").port()
}
