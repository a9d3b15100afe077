//! UDP sockets with segmentation offload both ways, where the kernel has it.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Reads per system call, each of up to 64 KiB of coalesced datagrams.
const SLOTS: usize = 8;
const SLOT_BYTES: usize = 65_536;
/// Asked of the kernel for each direction; what it grants is its own limit.
const SOCKET_BYTES: usize = 4 << 20;

/// One bound UDP socket.
pub(crate) struct UdpPort {
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

/// Buffers for reads, shared by all sockets of a driver.
pub(super) struct ReadBuffers {
    bytes: Vec<u8>,
    metas: [RecvMeta; SLOTS],
}

impl ReadBuffers {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; SLOTS * SLOT_BYTES],
            metas: [RecvMeta::default(); SLOTS],
        }
    }

    /// What the last read brought: source, datagrams side by side, length of each.
    pub(super) fn filled(&self, count: usize) -> impl Iterator<Item = (SocketAddr, &[u8], usize)> {
        self.metas[..count]
            .iter()
            .zip(self.bytes.chunks(SLOT_BYTES))
            .map(|(meta, slot)| (canonical(meta.addr), &slot[..meta.len], meta.stride.max(1)))
    }
}

/// An IPv4 address that arrived on an IPv6 socket is an IPv4 address.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl UdpPort {
    /// Binds one address. IPv6 sockets take IPv6 only, so that both families can share a port.
    pub(crate) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Larger buffers are a help, never a need.
        let _granted = socket.set_recv_buffer_size(SOCKET_BYTES);
        let _granted = socket.set_send_buffer_size(SOCKET_BYTES);
        // Beyond the machine's limit too, for who has the right to it.
        let _granted = setsockopt(&socket, RcvBufForce, &SOCKET_BYTES);
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let socket = UdpSocket::from_std(socket.into())?;
        let local = socket.local_addr()?;
        Ok(Self {
            socket,
            state,
            local,
        })
    }

    /// Where it is bound.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether datagrams to `to` leave through this socket.
    pub(super) fn serves(&self, to: SocketAddr) -> bool {
        if self.local.is_ipv4() != to.is_ipv4() {
            return false;
        }
        // A socket on loopback reaches nothing else (and the kernel would say EINVAL).
        !self.local.ip().is_loopback() || is_loopback(to.ip())
    }

    /// Ready when there may be something to read.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        // An error is found by the read that follows.
        self.socket.poll_recv_ready(cx).map(|_| ())
    }

    /// Reads what is there; `WouldBlock` when nothing is.
    pub(super) fn try_read(&self, buffers: &mut ReadBuffers) -> io::Result<usize> {
        let ReadBuffers { bytes, metas } = buffers;
        let mut slots = bytes.chunks_mut(SLOT_BYTES);
        let mut slices: [IoSliceMut<'_>; SLOTS] =
            std::array::from_fn(|_| IoSliceMut::new(slots.next().unwrap_or_default()));
        self.socket.try_io(Interest::READABLE, || {
            self.state
                .recv(UdpSockRef::from(&self.socket), &mut slices, metas)
        })
    }

    /// Sends datagrams of `stride` bytes side by side. An error means that some did not leave.
    pub(super) fn try_send(&self, to: SocketAddr, bytes: &[u8], stride: usize) -> io::Result<()> {
        let most = self.state.max_gso_segments().max(1) * stride.max(1);
        for part in bytes.chunks(most) {
            let transmit = quinn_udp::Transmit {
                destination: to,
                ecn: None,
                contents: part,
                segment_size: (part.len() > stride).then_some(stride),
                src_ip: None,
            };
            // Not through tokio: a socket that is not writable drops, it does not wait.
            self.state
                .try_send(UdpSockRef::from(&self.socket), &transmit)?;
        }
        Ok(())
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(port: &UdpPort, wanted: usize) -> Vec<Vec<u8>> {
        let mut buffers = ReadBuffers::new();
        let mut got = Vec::new();
        while got.len() < wanted {
            std::future::poll_fn(|cx| port.poll_readable(cx)).await;
            let Ok(count) = port.try_read(&mut buffers) else {
                continue;
            };
            for (_, bytes, stride) in buffers.filled(count) {
                got.extend(bytes.chunks(stride).map(<[u8]>::to_vec));
            }
        }
        got
    }

    #[tokio::test]
    async fn a_run_of_datagrams_arrives_one_by_one() {
        let here = "127.0.0.1:0".parse().expect("an address");
        let (a, b) = (
            UdpPort::bind(here).expect("binds"),
            UdpPort::bind(here).expect("binds"),
        );
        // Three whole ones and a shorter last.
        let run: Vec<u8> = (0..3400_u32)
            .map(|n| u8::try_from(n / 1000).unwrap_or(0))
            .collect();
        a.try_send(b.local(), &run, 1000).expect("sends");
        let got = tokio::time::timeout(std::time::Duration::from_secs(5), read_all(&b, 4))
            .await
            .expect("arrives");
        let lengths: Vec<usize> = got.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1000, 1000, 1000, 400]);
        assert_eq!(got.concat(), run);
    }

    #[tokio::test]
    async fn a_loopback_socket_serves_loopback_only() {
        let port = UdpPort::bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
        assert!(port.serves("127.0.0.1:1".parse().expect("an address")));
        assert!(!port.serves("192.0.2.1:1".parse().expect("an address")));
        assert!(!port.serves("[::1]:1".parse().expect("an address")));
    }
}
