//! Ports of the stack: which are free, who listens, who has bound one for UDP.

use std::net::SocketAddr;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp;
use tokio::sync::mpsc;

use super::super::ListenError;
use super::super::stream::OverlayStream;
use super::{EPHEMERAL, Inner, Listener, UDP_BYTES, UDP_SLOTS};

impl Inner {
    pub(super) fn free_port(
        &mut self,
        free: impl Fn(&Self, u16) -> bool,
    ) -> Result<u16, ListenError> {
        for _ in EPHEMERAL..=u16::MAX {
            let port = self.next_port;
            self.next_port = if port == u16::MAX {
                EPHEMERAL
            } else {
                port + 1
            };
            if free(self, port) && !self.listeners.contains_key(&port) {
                return Ok(port);
            }
        }
        Err(ListenError::NoPort)
    }

    pub(super) fn bind_udp(&mut self, port: u16) -> Result<(SocketHandle, u16), ListenError> {
        if self.closed {
            return Err(ListenError::Closed);
        }
        let port = if port == 0 {
            self.free_port(|inner, port| !inner.udp_ports.contains_key(&port))?
        } else if self.udp_ports.contains_key(&port) {
            return Err(ListenError::PortTaken(port));
        } else {
            port
        };
        if self.memory + 2 * UDP_BYTES > self.config.socket_memory {
            return Err(ListenError::Busy);
        }
        let buffer = || {
            udp::PacketBuffer::new(
                vec![udp::PacketMetadata::EMPTY; UDP_SLOTS],
                vec![0; UDP_BYTES],
            )
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        if socket.bind(port).is_err() {
            return Err(ListenError::NoPort);
        }
        self.memory += 2 * UDP_BYTES;
        let handle = self.sockets.add(socket);
        self.udp_ports.insert(port, handle);
        Ok((handle, port))
    }

    pub(in super::super) fn release_udp(&mut self, handle: SocketHandle, port: u16) {
        self.udp_ports.remove(&port);
        drop(self.sockets.remove(handle));
        self.memory -= 2 * UDP_BYTES;
    }

    pub(super) fn new_listener(
        &mut self,
        accepted: mpsc::Sender<(OverlayStream, SocketAddr)>,
    ) -> Listener {
        self.next_serial += 1;
        Listener {
            accepted,
            half_open: 0,
            serial: self.next_serial,
        }
    }

    pub(in super::super) fn remove_listener(&mut self, port: u16, serial: u64) {
        if self
            .listeners
            .get(&port)
            .is_some_and(|listener| listener.serial == serial)
        {
            self.listeners.remove(&port);
        }
    }
}
