//! The public port, once for each core.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_daemon::BindError;

/// Who takes nothing of an answer for so long is cut off, as is who does not even acknowledge what
/// asks whether it is still there.
pub(super) const STALLED: Duration = Duration::from_secs(120);

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
            .map(|_| shared(addr, STALLED))
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

fn shared(addr: SocketAddr, stalled: Duration) -> io::Result<std::net::TcpListener> {
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
    socket.set_tcp_user_timeout(Some(stalled))?;
    socket.bind(&addr.into())?;
    socket.listen(mesh_daemon::BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;

    /// What the kernel says when nothing was taken for too long.
    fn stall(server: &mut TcpStream) -> io::ErrorKind {
        let piece = [0; 64 * 1024];
        loop {
            if let Err(error) = server.write(&piece) {
                return error.kind();
            }
        }
    }

    #[test]
    fn who_takes_nothing_of_an_answer_is_cut_off_and_who_reads_on_is_not() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = shared(any, Duration::from_secs(1)).expect("a free port");
        listener.set_nonblocking(false).expect("set");
        let addr = listener.local_addr().expect("bound");
        let connect = || {
            let client = TcpStream::connect(addr).expect("connected");
            let (server, _) = listener.accept().expect("accepted");
            let limit = Some(Duration::from_secs(20));
            server.set_write_timeout(limit).expect("set");
            client.set_read_timeout(limit).expect("set");
            (client, server)
        };
        let (stalled, mut server) = connect();
        assert_eq!(stall(&mut server), io::ErrorKind::TimedOut);
        drop(stalled);

        // One that says nothing, and to which nothing is to be said, may be idle for longer.
        let (mut client, mut server) = connect();
        std::thread::park_timeout(Duration::from_secs(3));
        server.write_all(b"still here").expect("written");
        let mut said = [0; 10];
        client.read_exact(&mut said).expect("read");
        assert_eq!(&said, b"still here");
    }
}
