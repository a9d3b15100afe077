//! Clients that take their time: they ask on and read nothing, or a byte now and then, or send what
//! they promised a byte at a time.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::hostile::{Others, closed, load, resident};
use integration::{Cli, MeshUp};
use mesh_testkit::{eventually, rest};
use nix::sys::socket::{setsockopt, sockopt};

use super::{MIB, tell};

const READERS: usize = 100;
const WRITERS: usize = 100;
/// What each reader asks for before anything was answered.
const ASKED: usize = 200;
/// How long it goes on.
const LASTS: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(100);
/// Memory of each. What is sent to a worker goes through a connection on the overlay, whose ends are
/// both in this process.
const EACH_READER: u64 = 128 << 10;
const EACH_WRITER: u64 = 768 << 10;
/// What each reader hears first, though not each of them listens.
const SERVED: &[u8] = b"HTTP/1.1 200 ";
/// What they all may take of a core once no more is taken from anybody, in percent.
const BUSY: u128 = 50;

/// Asks for a page again and again until nothing more is taken.
fn ask_on(to: SocketAddr, host: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).expect("connected");
    setsockopt(&stream, sockopt::RcvBuf, &4096).expect("set");
    stream.set_nonblocking(true).expect("set");
    let request = format!("GET /worker-node-1/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let requests = request.repeat(ASKED);
    let mut rest = requests.as_bytes();
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(length) => rest = &rest[length..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    stream
}

/// Begins to send a large form.
fn send_slowly(to: SocketAddr, host: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).expect("connected");
    let head = format!(
        "POST /worker-node-1/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("written");
    stream.set_nonblocking(true).expect("set");
    stream
}

/// Whether a page is on its way to a reader that has read nothing yet.
fn is_served(reader: &TcpStream) -> bool {
    let mut begin = [0; SERVED.len()];
    reader
        .peek(&mut begin)
        .is_ok_and(|length| &begin[..length] == SERVED)
}

#[test]
fn slow_readers_and_writers_hold_little_and_stop_nobody() {
    let cli = Cli::new().expect("folders");
    let mut up = MeshUp::demo(&cli);
    let pid = up.child().pid();
    let port = up.gateway_port();
    let (to, host) = (
        SocketAddr::from(([127, 0, 0, 1], port)),
        format!("localhost:{port}"),
    );
    let before = resident(pid).expect("memory");
    let others = Others::of(&up).expect("people");
    let mut readers: Vec<TcpStream> = (0..READERS).map(|_| ask_on(to, &host)).collect();
    let mut writers: Vec<TcpStream> = (0..WRITERS).map(|_| send_slowly(to, &host)).collect();
    let begun = Instant::now();
    let mut held = 0;
    while begun.elapsed() < LASTS {
        // Every other one reads nothing at all.
        for reader in readers.iter_mut().step_by(2) {
            drop(reader.read(&mut [0]));
        }
        for writer in &mut writers {
            drop(writer.write(b"a"));
        }
        held = held.max(resident(pid).expect("memory").saturating_sub(before));
        rest(PAUSE);
    }
    // Who says something now and then is not cut off, and workers were asked.
    assert_eq!(closed(&writers), 0, "of those that hardly write");
    eventually("pages are on their way", Duration::from_secs(30), || {
        let mute = readers.iter().skip(1).step_by(2);
        let served = mute.filter(|reader| is_served(reader)).count();
        ensure!(served > 0, "none");
        Ok(())
    });
    tell("slow clients", others);
    // What fits into the buffers of their sockets is answered first.
    let mut busy = 0;
    eventually("they wait", Duration::from_secs(30), || {
        busy = load(pid, Duration::from_secs(1))?;
        ensure!(busy < BUSY, "{busy} % of a core");
        Ok(())
    });
    println!(
        "slow clients: {READERS} that do not read and {WRITERS} that hardly write took {} MiB, \
         and {busy} % of a core",
        held / MIB
    );
    let most = READERS as u64 * EACH_READER + WRITERS as u64 * EACH_WRITER + 16 * MIB;
    assert!(held < most, "{} MiB", held / MIB);
    drop((readers, writers));
    up.child().assert_log_clean(&[]);
    up.stop().expect("stopped");
}
