//! Inbound TCP connections of one overlay port.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::stack::Shared;
use super::stream::OverlayStream;

/// Accepts the TCP connections to one port of both overlay addresses. Dropping it frees the port;
/// connections already accepted live on.
pub struct OverlayListener {
    shared: Arc<Shared>,
    port: u16,
    serial: u64,
    accepted: mpsc::Receiver<(OverlayStream, SocketAddr)>,
}

impl OverlayListener {
    pub(super) fn new(
        shared: Arc<Shared>,
        port: u16,
        serial: u64,
        accepted: mpsc::Receiver<(OverlayStream, SocketAddr)>,
    ) -> Self {
        Self {
            shared,
            port,
            serial,
            accepted,
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What frees the port from outside.
    pub(crate) fn closer(&self) -> ListenerCloser {
        ListenerCloser {
            shared: Arc::clone(&self.shared),
            port: self.port,
            serial: self.serial,
        }
    }

    /// The next connection with the other side's overlay address; `None` when the node has
    /// stopped. Cancel-safe.
    pub async fn accept(&mut self) -> Option<(OverlayStream, SocketAddr)> {
        self.accepted.recv().await
    }
}

/// Frees the port of a listener that somebody else holds; its `accept` then gives `None`.
pub(crate) struct ListenerCloser {
    shared: Arc<Shared>,
    port: u16,
    serial: u64,
}

impl ListenerCloser {
    /// From here on the port refuses, unless another listener took it over.
    pub(crate) fn close(&self) {
        self.shared.lock().remove_listener(self.port, self.serial);
    }
}

impl fmt::Debug for OverlayListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OverlayListener")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Drop for OverlayListener {
    fn drop(&mut self) {
        self.shared.lock().remove_listener(self.port, self.serial);
        // Connections that nobody accepted are reset by their own drop; the driver must send that.
        self.accepted.close();
        self.shared.wake_driver();
    }
}
