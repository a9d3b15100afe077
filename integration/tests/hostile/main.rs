//! Clients that mean harm: thousands that say nothing or take their time, heads and frames without
//! end, floods of handshakes and of guesses, streams that nobody reads. Memory and processor stay
//! within what docs/limits.md states, and everybody else is served meanwhile.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use integration::hostile::{Others, resident, used};
use integration::{Cli, MeshUp};

use inside::Insider;

mod guesses;
mod handshakes;
mod http2;
mod idle;
mod inside;
mod mute;
mod slow;

const MIB: u64 = 1 << 20;
fn addr(text: &str) -> SocketAddr {
    let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    let port = port.and_then(Result::ok).expect("host:port");
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn tell(what: &str, others: Others) {
    let served = others
        .tell()
        .unwrap_or_else(|error| panic!("{what}: {error:#}"));
    for one in served {
        println!(
            "{what}: {} was served {} times, the longest wait {:?}",
            one.what, one.times, one.worst
        );
    }
}

/// What somebody would send who is not cut off, in bytes, and how often.
const MOST: usize = 64 << 20;
/// What fits into the buffers of two sockets is on its way before anybody can say no.
const TAKEN: usize = 16 << 20;
const ROUNDS: u32 = 30;
/// Processor time that it takes to have enough of one of them, those who are served meanwhile
/// counted in.
const EACH: Duration = Duration::from_millis(100);

/// How the other side took it.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It closed the connection.
    Closed,
    /// It neither read on nor said anything, and kept the connection.
    Kept,
}

impl End {
    fn of(error: &io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, WouldBlock};
        match error.kind() {
            BrokenPipe | ConnectionReset => Self::Closed,
            TimedOut | WouldBlock => Self::Kept,
            _ => panic!("{error}"),
        }
    }
}

/// Sends without end until the other side has had enough; how much that was, and how it ended.
fn pour(to: SocketAddr, begin: &[u8], piece: &[u8], most: usize) -> (usize, End) {
    let mut stream = TcpStream::connect(to).expect("connected");
    // Longer than anybody waits for a head.
    let limit = Some(Duration::from_secs(30));
    stream.set_write_timeout(limit).expect("a limit");
    stream.set_read_timeout(limit).expect("a limit");
    let mut sent = 0;
    if let Err(error) = stream.write_all(begin) {
        return (sent, End::of(&error));
    }
    while sent < most {
        match stream.write(piece) {
            Ok(length) => sent += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if End::of(&error) == End::Closed => return (sent, End::Closed),
            Err(_) => break,
        }
    }
    // What it says of it, if anything, then the end.
    let mut answer = Vec::new();
    let end = match stream.take(1 << 20).read_to_end(&mut answer) {
        Ok(length) if length < 1 << 20 => End::Closed,
        Ok(_) => End::Kept,
        Err(error) => End::of(&error),
    };
    (sent, end)
}

#[test]
fn heads_and_frames_without_end_are_cut_off() {
    let cli = Cli::new().expect("folders");
    let mut up = MeshUp::demo(&cli);
    let insider = Insider::join(&cli).expect("it joins");
    let pid = up.child().pid();
    let before = resident(pid).expect("memory");
    let worked = used(pid).expect("time");
    let others = Others::of(&up).expect("people");
    let gateway = SocketAddr::from(([127, 0, 0, 1], up.gateway_port()));
    let name = [b'a'; 4096];
    let line = [b"X-", &name[..100], b": b\r\n"].concat();
    // A preface of HTTP/2, SETTINGS, and the head of a HEADERS frame of 16 MiB.
    let frame =
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\xff\xff\xff\x01\x04\0\0\0\x01";
    // A TLS record of a type that there is not, and one that goes on for longer than any may.
    let record = b"\x16\x03\x01\xff\xff\x01\xff\xff\xff";
    let attacks = [
        (
            "one endless name",
            gateway,
            &b"GET / HTTP/1.1\r\nX-"[..],
            &name[..],
        ),
        ("endless lines", gateway, b"GET / HTTP/1.1\r\n", &line),
        ("an endless target", gateway, b"GET /", &name),
        ("an endless method", gateway, b"", &name),
        (
            "an endless chunk size",
            gateway,
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            &[b'0'; 4096],
        ),
        ("HTTP/2 at the gateway", gateway, frame, &name),
        (
            "records at the coordinator",
            addr(&up.ready().coordinator.addr),
            record,
            &name,
        ),
        (
            "records at the relay",
            addr(&up.ready().relay.derp),
            record,
            &name,
        ),
        (
            "greetings at SOCKS5",
            up.socks("default"),
            b"\x05\xff",
            &name,
        ),
    ];
    for round in 0..ROUNDS {
        for (what, to, begin, piece) in attacks {
            let begun = Instant::now();
            let (sent, end) = pour(to, begin, piece, MOST);
            if round == 0 {
                let took = begun.elapsed();
                println!("{what}: cut off after {} KiB and {took:?}", sent >> 10);
            }
            assert_eq!(end, End::Closed, "{what}: after {:?}", begun.elapsed());
            assert!(sent < TAKEN, "{what}: {} MiB were taken", sent >> 20);
        }
        let begun = Instant::now();
        for (what, sent) in insider.attack().expect("cut off") {
            if round == 0 {
                println!("{what}: cut off after {} KiB", sent >> 10);
            }
            assert!(sent < TAKEN, "{what}: {} MiB were taken", sent >> 20);
        }
        if round == 0 {
            println!("inside TLS: {:?} for {}", begun.elapsed(), inside::ATTACKS);
        }
    }
    let held = resident(pid).expect("memory").saturating_sub(before);
    tell("endless heads", others);
    let times = ROUNDS * (u32::try_from(attacks.len()).expect("a few") + inside::ATTACKS);
    let each = (used(pid).expect("time") - worked) / times;
    println!("endless heads: {} MiB, {each:?} of a core each", held / MIB);
    assert!(held < 64 * MIB, "{} MiB", held / MIB);
    assert!(each < EACH, "{each:?} of a core each");
    up.child().assert_log_clean(&[]);
    up.stop().expect("stopped");
}
