//! Binding and accepting, with errors that say what to change.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::socket::{Backlog, listen};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Connections that the kernel holds for a listener until they are accepted; it holds no more than
/// `net.core.somaxconn`, which has been as many since Linux 5.4. Beyond that a client's first packet
/// is lost, and it tries again a second later: all the nodes of a mesh come at once when their
/// coordinator is back.
pub const BACKLOG: i32 = 4096;

/// Why an address cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} for {what}: {}", reason(.source, .addr, .flag))]
pub struct BindError {
    /// The address that was asked for.
    pub addr: SocketAddr,
    /// What would have been served there.
    pub what: String,
    /// The flag or key that changes it.
    pub flag: String,
    source: io::Error,
}

impl BindError {
    pub(crate) fn new(addr: SocketAddr, what: &str, flag: &str, source: io::Error) -> Self {
        Self {
            addr,
            what: what.to_owned(),
            flag: flag.to_owned(),
            source,
        }
    }
}

fn reason(source: &io::Error, addr: &SocketAddr, flag: &str) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program has port {}; stop it, or choose another port with {flag} \
             (0 takes any free one)",
            addr.port()
        ),
        io::ErrorKind::PermissionDenied if addr.port() < 1024 => {
            format!("ports below 1024 need root; choose a higher one with {flag}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "this machine does not have the address {}; choose one with {flag}",
                addr.ip()
            )
        }
        _ => format!("refused by the system; choose another address with {flag}"),
    }
}

/// Binds a TCP listener at once, so that a fault is an early one. Port 0 takes any free port.
///
/// `what` is served there (`"HTTPS and gRPC"`), `flag` is how a person changes the address
/// (`"--listen"` or `"server.listen"`).
///
/// # Errors
/// Says in one line why, and names the flag.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn bind_tcp(addr: SocketAddr, what: &str, flag: &str) -> Result<TcpListener, BindError> {
    let bound = std::net::TcpListener::bind(addr).and_then(|listener| {
        // It listens already, for 128; this changes how many.
        listen(&listener, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN))?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    bound.map_err(|source| BindError::new(addr, what, flag, source))
}

/// Binds a UDP socket at once; like [`bind_tcp`].
///
/// # Errors
/// Says in one line why, and names the flag.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn bind_udp(addr: SocketAddr, what: &str, flag: &str) -> Result<UdpSocket, BindError> {
    let bound = std::net::UdpSocket::bind(addr).and_then(|socket| {
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    });
    bound.map_err(|source| BindError::new(addr, what, flag, source))
}

/// The next connection, with `TCP_NODELAY` set.
///
/// A client that gave up is passed over. When the process is out of file descriptors or memory
/// the listener waits and tries again: ending it would not free any. Cancel-safe.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut wait = Duration::from_millis(10);
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Only a connection that is gone refuses this, which its first read tells.
                drop(stream.set_nodelay(true));
                return (stream, peer);
            }
            Err(error) if of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections for now");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(1));
            }
        }
    }
}

fn of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_names_the_flag() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = bind_tcp(any, "HTTP", "--listen").expect("a free port");
        let taken = first.local_addr().expect("bound");
        let text = bind_tcp(taken, "HTTP", "--listen")
            .expect_err("taken")
            .to_string();
        assert!(text.contains("another program has port"), "{text}");
        assert!(text.contains("--listen"), "{text}");
        let first = bind_udp(any, "WireGuard", "--udp-port").expect("a free port");
        let taken = first.local_addr().expect("bound");
        let text = bind_udp(taken, "WireGuard", "--udp-port")
            .expect_err("taken")
            .to_string();
        assert!(
            text.contains("for WireGuard") && text.contains("--udp-port"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_named() {
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 0));
        let text = bind_tcp(elsewhere, "HTTP", "--listen")
            .expect_err("not ours")
            .to_string();
        assert!(
            text.contains("does not have the address 192.0.2.1"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn more_connections_wait_to_be_accepted_than_the_standard_library_lets() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = bind_tcp(any, "HTTP", "--listen").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        // Nobody accepts. What does not fit loses its first packet, and a second with it.
        let limit = Duration::from_millis(900);
        let connect = |_| std::net::TcpStream::connect_timeout(&addr, limit);
        let waiting: io::Result<Vec<_>> = (0..400).map(connect).collect();
        assert_eq!(waiting.expect("all fit").len(), 400);
    }

    #[tokio::test]
    async fn an_accepted_connection_does_not_wait_for_more_bytes() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = bind_tcp(any, "HTTP", "--listen").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let (client, (server, peer)) = tokio::join!(TcpStream::connect(addr), accept(&listener));
        let client = client.expect("connected");
        assert_eq!(client.local_addr().expect("bound"), peer);
        assert!(server.nodelay().expect("a socket"));
    }
}
