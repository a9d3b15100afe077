//! SOCKS5 (RFC 1928) by hand, for what curl cannot ask: exact replies and UDP ASSOCIATE.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Context as _;

/// What is asked for.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// An address as such.
    Addr(SocketAddr),
    /// A name, resolved by the proxy.
    Name(String, u16),
}

/// Replies of RFC 1928, section 6, by number; 0 is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply(pub u8);

impl Reply {
    /// Succeeded.
    pub const GRANTED: Self = Self(0);
    /// Connection not allowed by ruleset.
    pub const NOT_ALLOWED: Self = Self(2);
    /// Host unreachable.
    pub const HOST_UNREACHABLE: Self = Self(4);
    /// Connection refused.
    pub const REFUSED: Self = Self(5);
    /// TTL expired: no answer in time.
    pub const TIMED_OUT: Self = Self(6);

    /// Whether the proxy granted it.
    pub fn granted(self) -> bool {
        self.0 == 0
    }
}

const LIMIT: Duration = Duration::from_secs(20);
const CONNECT: u8 = 1;
const ASSOCIATE: u8 = 3;

fn encode(wanted: &Wanted) -> Vec<u8> {
    let mut bytes = Vec::new();
    match wanted {
        Wanted::Addr(addr) => {
            match addr.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(1);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(4);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(addr.port().to_be_bytes());
        }
        Wanted::Name(name, port) => {
            bytes.push(3);
            bytes.push(u8::try_from(name.len()).expect("a host name"));
            bytes.extend(name.bytes());
            bytes.extend(port.to_be_bytes());
        }
    }
    bytes
}

fn ask(proxy: SocketAddr, command: u8, wanted: &Wanted) -> anyhow::Result<Asked> {
    let mut stream = TcpStream::connect_timeout(&proxy, LIMIT).context("reach the proxy")?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method).context("read the method")?;
    anyhow::ensure!(method == [5, 0], "the proxy chose the method {method:?}");
    let mut request = vec![5, command, 0];
    request.extend(encode(wanted));
    stream.write_all(&request)?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).context("read the reply")?;
    let bound = match head[3] {
        1 => {
            let mut ip = [0; 4];
            stream.read_exact(&mut ip)?;
            IpAddr::from(ip)
        }
        4 => {
            let mut ip = [0; 16];
            stream.read_exact(&mut ip)?;
            IpAddr::from(ip)
        }
        other => anyhow::bail!("the reply's address is of type {other}"),
    };
    let mut port = [0; 2];
    stream.read_exact(&mut port)?;
    let bound = SocketAddr::new(bound, u16::from_be_bytes(port));
    Ok(Asked {
        stream,
        reply: Reply(head[1]),
        bound,
    })
}

struct Asked {
    stream: TcpStream,
    reply: Reply,
    bound: SocketAddr,
}

/// Asks for a connection; the stream is open when the reply is granted.
pub fn connect(proxy: SocketAddr, wanted: &Wanted) -> anyhow::Result<(Reply, TcpStream)> {
    let asked = ask(proxy, CONNECT, wanted)?;
    Ok((asked.reply, asked.stream))
}

/// A UDP association, which lives as long as this.
#[derive(Debug)]
pub struct Association {
    _control: TcpStream,
    socket: UdpSocket,
}

/// Asks for a UDP association.
pub fn associate(proxy: SocketAddr) -> anyhow::Result<(Reply, Option<Association>)> {
    let any = Wanted::Addr(SocketAddr::from(([0, 0, 0, 0], 0)));
    let asked = ask(proxy, ASSOCIATE, &any)?;
    if !asked.reply.granted() {
        return Ok((asked.reply, None));
    }
    let mut relay = asked.bound;
    if relay.ip().is_unspecified() {
        relay.set_ip(proxy.ip());
    }
    let socket = UdpSocket::bind((asked.stream.local_addr()?.ip(), 0))?;
    socket.connect(relay)?;
    Ok((
        asked.reply,
        Some(Association {
            _control: asked.stream,
            socket,
        }),
    ))
}

impl Association {
    /// Where the proxy takes datagrams.
    pub fn relay(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.socket.peer_addr()?)
    }

    /// Sends one datagram through the proxy (RFC 1928, section 7).
    pub fn send(&self, to: &Wanted, payload: &[u8]) -> anyhow::Result<()> {
        let mut datagram = vec![0, 0, 0];
        datagram.extend(encode(to));
        datagram.extend(payload);
        self.socket.send(&datagram)?;
        Ok(())
    }

    /// The next datagram that the proxy brings from the overlay, with its sender; `None` when none
    /// comes within that time.
    pub fn receive(&self, within: Duration) -> anyhow::Result<Option<(SocketAddr, Vec<u8>)>> {
        self.socket.set_read_timeout(Some(within))?;
        let mut room = [0; 2048];
        let length = match self.socket.recv(&mut room) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let datagram = &room[..length];
        let (head, rest) = datagram.split_at_checked(4).context("a header")?;
        anyhow::ensure!(head == [0, 0, 0, 1], "not from an IPv4 address: {head:?}");
        let (addr, rest) = rest.split_first_chunk::<4>().context("an address")?;
        let (port, payload) = rest.split_first_chunk::<2>().context("a port")?;
        let from = SocketAddr::from((*addr, u16::from_be_bytes(*port)));
        Ok(Some((from, payload.to_vec())))
    }
}
