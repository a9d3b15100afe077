//! The public port, once for each core.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_daemon::BindError;

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// The public port, once for each core.
#[derive(Debug)]
pub struct Listeners {
    pub(super) sockets: Vec<std::net::TcpListener>,
    addr: SocketAddr,
}

impl Listeners {
    /// Binds `addr` for `threads` cores; 0 is one for each core of the machine.
    pub fn bind(addr: SocketAddr, threads: usize) -> Result<Self, ListenError> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            some => some,
        };
        // Sockets that share a port would quietly share it with another gateway as well, so the
        // port is first asked for without sharing.
        let probe = mesh_daemon::bind_tcp(addr, "HTTP", "--listen")?;
        let addr = probe.local_addr().map_err(ListenError::Share)?;
        drop(probe);
        let sockets = (0..threads)
            .map(|_| shared(addr))
            .collect::<io::Result<_>>()
            .map_err(ListenError::Share)?;
        Ok(Self { sockets, addr })
    }

    /// The address, with the port that was taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Why the public port cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// It is taken or may not be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Several sockets cannot share it.
    #[error("the port cannot be shared between cores")]
    Share(#[source] io::Error),
}

fn shared(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let domain = socket2::Domain::for_address(addr);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit it. A client that went away without a word must not keep its place.
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
