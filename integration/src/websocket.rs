//! WebSockets (RFC 6455) by hand, as much as an echo takes: short frames, both ends.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_testkit::Host;

/// The example of RFC 6455, section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Starts a server on a host's (or this machine's) loopback that says back what it hears; answers
/// its port. It ends with the test's process.
pub fn serve_echo(host: Option<&Host>) -> anyhow::Result<u16> {
    let bind = || TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0));
    let listener = host.map_or_else(bind, |host| host.enter(bind))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away ends its own connection only.
            thread::spawn(move || drop(say_back(stream)));
        }
    });
    Ok(port)
}

fn say_back(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while reader.read_line(&mut head)? > 2 {}
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    )?;
    loop {
        let said = read_frame(&mut reader)?;
        write_frame(&mut stream, &said, None)?;
    }
}

/// The client's end of an open WebSocket.
#[derive(Debug)]
pub struct WebSocket(TcpStream);

impl WebSocket {
    /// Opens `path` of `host` at `addr`. No answer may take longer than `limit`.
    ///
    /// # Errors
    /// Nobody answers, or with anything but 101.
    pub fn open(addr: SocketAddr, host: &str, path: &str, limit: Duration) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&addr, limit)?;
        stream.set_read_timeout(Some(limit))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {KEY}\r\n\r\n"
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("read the answer")?;
            head.extend(byte);
        }
        let head = String::from_utf8_lossy(&head);
        ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Ok(Self(stream))
    }

    /// Says something of less than 126 bytes, and hears it said back.
    ///
    /// # Errors
    /// It does not come back.
    pub fn echo(&mut self, text: &str) -> anyhow::Result<()> {
        write_frame(&mut self.0, text.as_bytes(), Some([7, 77, 177, 27]))?;
        let heard = read_frame(&mut self.0)?;
        ensure!(heard == text.as_bytes(), "{heard:?} came back of {text}");
        Ok(())
    }
}

/// One short frame (section 5.2), unmasked.
fn read_frame(from: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut head = [0; 2];
    from.read_exact(&mut head)?;
    let mut mask = [0; 4];
    if head[1] & 0x80 != 0 {
        from.read_exact(&mut mask)?;
    }
    let mut payload = vec![0; usize::from(head[1] & 0x7f)];
    from.read_exact(&mut payload)?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(payload)
}

fn write_frame(to: &mut impl Write, payload: &[u8], mask: Option<[u8; 4]>) -> std::io::Result<()> {
    let length = u8::try_from(payload.len()).expect("a short one");
    let mut frame = vec![0x81, length | if mask.is_some() { 0x80 } else { 0 }];
    frame.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    let payload = payload.iter().zip(mask.iter().cycle());
    frame.extend(payload.map(|(byte, mask)| byte ^ mask));
    to.write_all(&frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_comes_back() {
        let limit = Duration::from_secs(5);
        let port = serve_echo(None).expect("serves");
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let mut socket = WebSocket::open(addr, "x", "/", limit).expect("opens");
        socket.echo("hello").expect("an echo");
        socket.echo("").expect("an echo");
    }
}
