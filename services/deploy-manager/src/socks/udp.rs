//! UDP ASSOCIATE (RFC 1928, section 7): datagrams between one client and nodes of the network.
//!
//! The socket takes datagrams only from the address that asked for it, fragments are dropped as
//! the RFC allows, and answers come back only from nodes that the client has written to. It ends
//! with the TCP connection that asked for it.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{new_udp_header, parse_udp_request};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, UdpSocket};

use super::{Access, Datagrams as _, Overlay, SocksServer, owner};

/// The largest UDP datagram.
const DATAGRAM: usize = 65_535;
/// Nodes (address and port) that one association may be talking with.
const MAX_PEERS: usize = 4096;

pub(super) struct Association<'a, O: Overlay> {
    server: &'a SocksServer<O>,
    near: UdpSocket,
    far: O::Datagrams,
    local: SocketAddr,
    /// The address that datagrams are taken from; its port is learnt from the first one when the
    /// client did not say it.
    client: IpAddr,
    port: Option<u16>,
    /// Whether the socket at that port was found to be one of our user's, where that matters.
    is_checked: bool,
    peers: HashSet<SocketAddr>,
    refused: HashSet<String>,
}

impl<'a, O: Overlay> Association<'a, O> {
    /// Binds both sides. `target` is where the client says it will send from (RFC 1928, section 4);
    /// its address is not believed, only its port.
    pub(super) async fn bind(
        server: &'a SocksServer<O>,
        client: SocketAddr,
        target: &TargetAddr,
        local: SocketAddr,
    ) -> io::Result<Self> {
        let near = UdpSocket::bind((local.ip(), 0)).await?;
        let port = match target {
            TargetAddr::Ip(addr) => addr.port(),
            TargetAddr::Domain(_, port) => *port,
        };
        Ok(Self {
            far: server.overlay.bind_udp()?,
            local: near.local_addr()?,
            near,
            server,
            client: client.ip(),
            port: Some(port).filter(|&port| port != 0),
            is_checked: !matches!(server.access, Access::OwnUser),
            peers: HashSet::new(),
            refused: HashSet::new(),
        })
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Carries datagrams until the client closes `stream`.
    pub(super) async fn run(mut self, mut stream: TcpStream) {
        let (mut up, mut down) = (vec![0; DATAGRAM], vec![0; DATAGRAM]);
        let mut byte = [0; 64];
        loop {
            tokio::select! {
                read = stream.read(&mut byte) => match read {
                    Ok(0) | Err(_) => return,
                    // Nothing is to be said here; what comes is thrown away.
                    Ok(_) => {}
                },
                received = self.near.recv_from(&mut up) => match received {
                    Ok((n, from)) => self.upload(&up[..n], from).await,
                    // An earlier datagram was refused by the client's machine; the next may not be.
                    Err(error) => tracing::debug!(%error, "socks datagram lost"),
                },
                received = self.far.recv_from(&mut down) => match received {
                    Ok((n, from)) => self.download(&down[..n], from).await,
                    Err(error) => {
                        tracing::debug!(%error, "overlay datagrams ended");
                        return;
                    }
                },
            }
        }
    }

    async fn upload(&mut self, datagram: &[u8], from: SocketAddr) {
        if from.ip() != self.client || self.port.is_some_and(|port| port != from.port()) {
            tracing::debug!(%from, "socks datagram from elsewhere dropped");
            return;
        }
        if !self.is_checked {
            // The TCP connection's owner says nothing of who sends datagrams from this machine.
            let us = nix::unistd::geteuid().as_raw();
            if !owner::sent_by(from, us).is_ok_and(|is_ours| is_ours) {
                tracing::debug!(%from, "socks datagram dropped: it may be another user's");
                return;
            }
        }
        let Ok((fragment, target, payload)) = parse_udp_request(datagram).await else {
            tracing::debug!("socks datagram not understood");
            return;
        };
        self.port = Some(from.port());
        self.is_checked = true;
        if fragment != 0 {
            return;
        }
        let to = match self.server.decide(&target) {
            Ok(to) => to,
            Err(refusal) => {
                // Logged once for each destination: a client may send thousands of these.
                let key = super::shown(&target);
                if self.refused.len() < MAX_PEERS && self.refused.insert(key) {
                    self.server.log_refusal("UDP ASSOCIATE", &target, refusal);
                }
                return;
            }
        };
        if self.peers.len() >= MAX_PEERS && !self.peers.contains(&to) {
            return;
        }
        self.peers.insert(to);
        if let Err(error) = self.far.send_to(payload, to).await {
            tracing::debug!(%to, %error, "overlay datagram not sent");
        }
    }

    async fn download(&mut self, payload: &[u8], from: SocketAddr) {
        let Some(port) = self.port.filter(|_| self.peers.contains(&from)) else {
            return;
        };
        let Ok(mut datagram) = new_udp_header(from) else {
            return;
        };
        datagram.extend(payload);
        let to = SocketAddr::new(self.client, port);
        if let Err(error) = self.near.send_to(&datagram, to).await {
            tracing::debug!(%error, "socks datagram not delivered");
        }
    }
}
