//! Small servers on a worker's loopback, for services that workers publish.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mesh_testkit::{Host, rest};

const POLL: Duration = Duration::from_millis(5);

/// An HTTP server that serves one file at `/file` and says `hello from <name>: <path>`
/// everywhere else. Its socket is on the host where it was made; it ends when dropped.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts it on a host's (or this machine's) loopback at a free port.
    pub fn start(host: Option<&Host>, name: &str, file: Option<&Path>) -> anyhow::Result<Self> {
        Self::at(host, Ipv4Addr::LOCALHOST, name, file)
    }

    /// The same on another address.
    pub fn at(
        host: Option<&Host>,
        addr: Ipv4Addr,
        name: &str,
        file: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let bind = || TcpListener::bind((addr, 0));
        let listener = host.map_or_else(bind, |host| host.enter(bind))?;
        let addr = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&requests));
        let (name, file) = (name.to_owned(), file.map(Path::to_owned));
        listener.set_nonblocking(true)?;
        // The socket belongs to the host; the thread that serves it need not.
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    rest(POLL);
                    continue;
                };
                counted.fetch_add(1, Ordering::Relaxed);
                let (name, file) = (name.clone(), file.clone());
                // A client that goes away ends its own connection only.
                thread::spawn(move || drop(answer(stream, &name, file.as_deref())));
            }
        });
        Ok(Self {
            addr,
            stop,
            requests,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// How many connections it has seen.
    pub fn connections(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn answer(stream: TcpStream, name: &str, file: Option<&Path>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let path = request.split_whitespace().nth(1).unwrap_or("/").to_owned();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
        }
        match file.filter(|_| path.ends_with("/file")) {
            Some(file) => {
                let mut content = std::fs::File::open(file)?;
                let length = content.metadata()?.len();
                write!(
                    writer,
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
                )?;
                std::io::copy(&mut content, &mut writer)?;
            }
            None => {
                let body = format!("hello from {name}: {path}\n");
                let length = body.len();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length:";
                write!(writer, "{head} {length}\r\n\r\n{body}")?;
            }
        }
    }
}

/// Writes a file of `bytes` bytes that no compression or repetition makes easy, the same each time.
pub fn write_noise(path: PathBuf, bytes: usize) -> anyhow::Result<PathBuf> {
    let mut out = std::io::BufWriter::new(std::fs::File::create(&path)?);
    // xorshift64*: enough to make every block differ.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut left = bytes;
    while left > 0 {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let word = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        let take = left.min(word.len());
        out.write_all(&word[..take])?;
        left -= take;
    }
    out.flush()?;
    Ok(path)
}

/// The SHA-256 of what a reader yields, in hex, by the machine's `sha256sum`.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let ran = mesh_testkit::Spec::new("sha256sum")
        .arg(path)
        .run(Duration::from_secs(60))?
        .success()?;
    Ok(ran
        .stdout
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// A UDP socket on a host's address that counts what arrives.
#[derive(Debug)]
pub struct UdpSink {
    socket: UdpSocket,
}

impl UdpSink {
    /// Binds a free port.
    pub fn start(host: Option<&Host>, addr: Ipv4Addr) -> anyhow::Result<Self> {
        let bind = || UdpSocket::bind((addr, 0));
        let socket = host.map_or_else(bind, |host| host.enter(bind))?;
        Ok(Self { socket })
    }

    /// Where it listens.
    ///
    /// # Panics
    /// Never: it is bound.
    pub fn addr(&self) -> SocketAddr {
        self.socket.local_addr().expect("bound")
    }

    /// Whether a datagram arrives within that time.
    pub fn received(&self, within: Duration) -> anyhow::Result<Option<Vec<u8>>> {
        self.socket.set_read_timeout(Some(within))?;
        let mut buffer = [0; 2048];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Ok(Some(buffer[..length].to_vec())),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads a stream to its end and returns how many bytes there were.
pub fn drain(mut from: impl Read) -> std::io::Result<u64> {
    std::io::copy(&mut from, &mut std::io::sink())
}
