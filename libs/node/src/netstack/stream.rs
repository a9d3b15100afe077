//! One TCP connection over the overlay.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stack::Shared;

/// A TCP connection over the overlay.
///
/// `shutdown` ends the sending half (FIN after all data) and leaves the receiving half open.
/// Dropping it sends what is left and then FIN, unless received data was left unread: then the
/// other side gets a reset, as from a kernel. A reset that arrives is `ConnectionReset`.
pub struct OverlayStream {
    shared: Arc<Shared>,
    handle: SocketHandle,
    local: SocketAddr,
    peer: SocketAddr,
}

impl OverlayStream {
    /// INVARIANT: `handle` is a TCP socket of `shared` that no other stream holds; the stack keeps
    /// it until this stream gives it back on drop.
    pub(super) fn new(
        shared: Arc<Shared>,
        handle: SocketHandle,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> Self {
        Self {
            shared,
            handle,
            local,
            peer,
        }
    }

    /// The other side's overlay address and port.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// This side's overlay address and port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// From now on the connection outlasts a peer's silence, as one that was not dialled with
    /// [`Node::dial_watched`](crate::Node::dial_watched) does.
    pub fn outlast_silence(&self) {
        let flow = (self.local, self.peer);
        self.shared.lock().unwatch(self.handle, flow);
    }

    /// Ends the connection at once: the other side gets a reset, unsent data is lost.
    pub fn reset(self) {
        self.shared.lock().abort_tcp(self.handle);
    }

    pub(super) fn handle(&self) -> SocketHandle {
        self.handle
    }
}

impl fmt::Debug for OverlayStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OverlayStream")
            .field("local", &self.local)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for OverlayStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut guard = self.shared.lock();
        let socket = guard.tcp(self.handle);
        if socket.can_recv() {
            // Only a window that had become small is news to the other side.
            let opened = socket.recv_queue() * 2 >= socket.recv_capacity();
            // Twice when the ring wraps around; straight into memory that nobody has to clear.
            while buf.remaining() > 0 {
                let taken = socket.recv(|data| {
                    let len = data.len().min(buf.remaining());
                    buf.put_slice(&data[..len]);
                    (len, len)
                });
                if !matches!(taken, Ok(1..)) {
                    break;
                }
            }
            drop(guard);
            if opened {
                self.shared.wake_driver();
            }
            return Poll::Ready(Ok(()));
        }
        if socket.may_recv() && socket.state() != tcp::State::Closed {
            socket.register_recv_waker(cx.waker());
            return Poll::Pending;
        }
        match socket.recv_slice(&mut []) {
            Err(tcp::RecvError::Finished) => Poll::Ready(Ok(())),
            _ => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncWrite for OverlayStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut guard = self.shared.lock();
        let socket = guard.tcp(self.handle);
        if !socket.may_send() {
            let kind = match socket.state() {
                tcp::State::Closed => io::ErrorKind::ConnectionReset,
                _ => io::ErrorKind::BrokenPipe,
            };
            return Poll::Ready(Err(kind.into()));
        }
        match socket.send_slice(buf) {
            Ok(0) => {
                socket.register_send_waker(cx.waker());
                Poll::Pending
            }
            Ok(written) => {
                drop(guard);
                self.shared.wake_driver();
                Poll::Ready(Ok(written))
            }
            Err(tcp::SendError::InvalidState) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.lock().tcp(self.handle).close();
        self.shared.wake_driver();
        Poll::Ready(Ok(()))
    }
}

impl Drop for OverlayStream {
    fn drop(&mut self) {
        self.shared
            .lock()
            .release_tcp(self.handle, (self.local, self.peer));
        self.shared.wake_driver();
    }
}
