//! Settings of a node, and why they may not work.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::SessionError;
use crate::driver::UdpPort;
use crate::netstack::StackConfig;

/// Which ways packets to peers may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RelayMode {
    /// Directly when an address answers, by relay meanwhile and otherwise.
    #[default]
    Auto,
    /// By relay only: no datagram to a peer leaves this machine directly.
    Only,
    /// Directly only.
    Off,
}

/// Settings of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Where WireGuard and disco are bound. Port 0 takes any free one. An address family that the
    /// machine does not have is left out when another one works.
    pub udp: Vec<SocketAddr>,
    /// Where the coordinator is, `host:port` each; empty: as stored at enrolment.
    pub coordinators: Vec<String>,
    /// Further underlay addresses at which peers may try this node (a forwarded port).
    pub extra_endpoints: Vec<SocketAddr>,
    /// Receive buffer and send buffer of each overlay TCP connection, in bytes each.
    pub socket_buffer: usize,
    /// Cap on the sum of all overlay socket buffers, in bytes.
    pub socket_memory: usize,
    /// How long [`crate::Node::dial`] waits for an answer, in milliseconds.
    pub dial_timeout_ms: u64,
    /// Which ways packets may take.
    pub relay: RelayMode,
    /// A TUN device of this name puts the whole machine on the overlay (root or CAP_NET_ADMIN);
    /// absent: this node alone is, in userspace.
    pub tun: Option<String>,
    /// Of the program, for people.
    pub version: String,
}

impl Default for NodeConfig {
    fn default() -> Self {
        let stack = StackConfig::default();
        Self {
            udp: vec![
                SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
                SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
            ],
            coordinators: Vec::new(),
            extra_endpoints: Vec::new(),
            socket_buffer: stack.socket_buffer,
            socket_memory: stack.socket_memory,
            dial_timeout_ms: 10_000,
            relay: RelayMode::Auto,
            tun: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// A node cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its identity, or what is stored of it, is not usable.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// No UDP socket could be bound.
    #[error(
        "cannot bind UDP {addr} for WireGuard: choose another port with wireguard.listen (0 takes \
         any free one)"
    )]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The TUN device cannot be had.
    #[error(transparent)]
    Tun(#[from] crate::tun::TunError),
    /// Relays have no data plane.
    #[error("a relay's identity cannot be used by a node: join with a token of another role")]
    IsRelay,
    /// The system gave no randomness.
    #[error("the system gave no randomness")]
    Random,
    /// The settings make no sense.
    #[error("socket_buffer must be between 4096 and 67108864 bytes and fit socket_memory twice")]
    Buffers,
}

/// A node has no netmap yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no netmap within {} s: {}",
    .after.as_secs_f32().ceil(),
    .reason.as_deref().unwrap_or("the coordinator has not answered yet")
)]
pub struct NotReady {
    pub(super) after: Duration,
    pub(super) reason: Option<String>,
}

/// Binds what works; a family that the machine lacks is no error while another one works.
pub(super) fn bind_all(wanted: &[SocketAddr]) -> Result<Vec<UdpPort>, StartError> {
    let mut ports: Vec<UdpPort> = Vec::new();
    let mut missing = None;
    for addr in wanted {
        let mut addr = *addr;
        if addr.port() == 0
            && let Some(first) = ports.first()
            && let Ok(port) = UdpPort::bind(SocketAddr::new(addr.ip(), first.local().port()))
        {
            // Both families on one port are easier on people.
            ports.push(port);
            continue;
        }
        if addr.ip().is_unspecified() && addr.is_ipv6() {
            addr = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), addr.port());
        }
        match UdpPort::bind(addr) {
            Ok(port) => ports.push(port),
            Err(source) => {
                let lacking = matches!(
                    source.raw_os_error().map(nix::errno::Errno::from_raw),
                    Some(nix::errno::Errno::EAFNOSUPPORT | nix::errno::Errno::EADDRNOTAVAIL)
                ) && addr.ip().is_unspecified();
                if !lacking {
                    return Err(StartError::Bind { addr, source });
                }
                missing = Some(StartError::Bind { addr, source });
            }
        }
    }
    match missing {
        Some(error) if ports.is_empty() => Err(error),
        _ => Ok(ports),
    }
}
