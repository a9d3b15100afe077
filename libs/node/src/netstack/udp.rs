//! UDP over the overlay.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp;
use smoltcp::wire::IpEndpoint;

use super::stack::Shared;

/// A UDP socket on both overlay addresses of the node.
///
/// Datagrams are not fragmented: one that does not fit the overlay's MTU is `InvalidInput`.
pub struct OverlayUdp {
    shared: Arc<Shared>,
    handle: SocketHandle,
    port: u16,
    largest: usize,
}

/// IPv6 and UDP headers, the larger of the two families (RFC 8200, RFC 768).
const HEADERS: usize = 40 + 8;

impl OverlayUdp {
    pub(super) fn new(shared: Arc<Shared>, handle: SocketHandle, port: u16, mtu: usize) -> Self {
        Self {
            shared,
            handle,
            port,
            largest: mtu - HEADERS,
        }
    }

    /// The local port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The largest payload, in bytes.
    pub fn max_payload(&self) -> usize {
        self.largest
    }

    /// Sends one datagram; waits while the send buffer is full.
    pub async fn send_to(&self, payload: &[u8], to: SocketAddr) -> io::Result<usize> {
        if payload.len() > self.largest {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a datagram on the overlay holds at most {} bytes",
                    self.largest
                ),
            ));
        }
        let to = IpEndpoint::from(to);
        poll_fn(|cx| {
            let mut guard = self.shared.lock();
            if guard.is_closed() {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
            let socket = guard.udp(self.handle);
            match socket.send_slice(payload, to) {
                Ok(()) => {
                    drop(guard);
                    self.shared.wake_driver();
                    Poll::Ready(Ok(payload.len()))
                }
                Err(udp::SendError::BufferFull) => {
                    socket.register_send_waker(cx.waker());
                    Poll::Pending
                }
                Err(udp::SendError::Unaddressable) => {
                    Poll::Ready(Err(io::ErrorKind::AddrNotAvailable.into()))
                }
            }
        })
        .await
    }

    /// The next datagram and where it came from; what does not fit `buf` is cut off. Cancel-safe.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        poll_fn(|cx| {
            let mut guard = self.shared.lock();
            if guard.is_closed() {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
            let socket = guard.udp(self.handle);
            match socket.recv() {
                Ok((payload, meta)) => {
                    let len = payload.len().min(buf.len());
                    buf[..len].copy_from_slice(&payload[..len]);
                    Poll::Ready(Ok((len, meta.endpoint.into())))
                }
                Err(_) => {
                    socket.register_recv_waker(cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl fmt::Debug for OverlayUdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OverlayUdp")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Drop for OverlayUdp {
    fn drop(&mut self) {
        self.shared.lock().release_udp(self.handle, self.port);
    }
}
