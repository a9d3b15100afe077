//! A worker that hangs without a word: connections to it stay open, and nothing comes through them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::findings::finding;
use integration::socks::{self, Wanted};
use integration::websocket::{WebSocket, serve_echo};
use integration::{Agent, Cli, MeshUp, metrics};
use mesh_testkit::{HttpReply, eventually, http_get};

use super::{SOON, wait_for_console, wait_for_event, wait_for_state, without_workers};

const NODE: &str = "attic";
/// A heartbeat counts for 45 s.
const MISSED: Duration = Duration::from_secs(60);
/// A request that is answered by nobody fails after this, or a third more with data on the way; both
/// are looked at every 2 s, and the machine may be slow.
const FAILS: Duration = Duration::from_secs(20 + 4);

fn gateway(up: &MeshUp) -> (SocketAddr, String) {
    let port = up.gateway_port();
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    (addr, format!("localhost:{port}"))
}

/// With more patience than the gateway has.
fn page(up: &MeshUp, below: &str) -> anyhow::Result<HttpReply> {
    let (addr, host) = gateway(up);
    http_get(addr, &host, &format!("/{NODE}/{below}"), 2 * FAILS)
}

fn socket(up: &MeshUp) -> anyhow::Result<WebSocket> {
    let (addr, host) = gateway(up);
    let path = format!("/{NODE}/s/socket/");
    WebSocket::open(addr, &host, &path, SOON)
}

/// A stream through SOCKS5 to what answers at `port`, past its first answer.
fn stream(up: &MeshUp, port: u16) -> anyhow::Result<TcpStream> {
    let wanted = Wanted::Name(NODE.to_owned(), port);
    let (reply, mut stream) = socks::connect(up.socks("default"), &wanted)?;
    ensure!(reply.granted(), "{reply:?}");
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("read the answer")?;
        head.extend(byte);
    }
    Ok(stream)
}

#[test]
fn requests_to_a_worker_that_hangs_fail_and_terminals_go_on_when_it_does() {
    let cli = Cli::new().expect("folders");
    let up = without_workers(&cli);
    let agent = Agent::new(&cli, NODE).joined(&cli, "default");
    let port = serve_echo(None).expect("serves");
    // Takes a request and leaves it without an answer.
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    let mute_port = mute.local_addr().expect("bound").port();
    for (name, port) in [("socket", port), ("mute", mute_port)] {
        let publish = ["publish", name, &port.to_string()];
        agent.run(&publish).expect_code(0);
    }
    wait_for_console(&up, NODE, SOON);
    let (mut socket, mut stream) = eventually("a WebSocket and a SOCKS5 stream", SOON, || {
        Ok((socket(&up)?, stream(&up, port)?))
    });
    socket.echo("hello").expect("an echo");
    let failures = || {
        let text = up.metrics().expect("metrics");
        metrics::count(&text, &["mesh_gateway_upstream_failures_total"])
    };
    let failed = failures();

    thread::scope(|scope| {
        let asked = scope.spawn(|| page(&up, "s/mute/"));
        let (held, _) = mute.accept().expect("the request arrives");
        agent.child().freeze().expect("frozen");
        let frozen = Instant::now();
        // It has half a minute to answer, while everything else here is waited for.
        let own = agent.verb(&["status", "--json"]);
        let own = scope.spawn(|| own.run(2 * SOON));
        let status = asked.join().expect("no panic").expect("an answer").status;
        let after = frozen.elapsed();
        drop(held);
        println!("a request that was under way failed with {status} after {after:?}");
        assert!([502, 504].contains(&status), "{status}");
        assert!(after < FAILS, "{after:?}");
        let asked = Instant::now();
        let status = page(&up, "").expect("an answer").status;
        println!("a new one failed with {status} after {:?}", asked.elapsed());
        assert!([502, 503, 504].contains(&status), "{status}");
        assert!(asked.elapsed() < FAILS, "{:?}", asked.elapsed());
        let own = own.join().expect("no panic").expect("runs");
        assert_eq!(own.code, Some(1), "{}", own.all());
        let told = finding(&own, "not-answering").expect("told");
        let next = told["next"].to_string();
        assert!(next.contains("journalctl -u mesh-worker-agent"), "{told}");
    });
    assert!(failures() > failed, "the gateway counts it");
    wait_for_state(&cli, &[NODE], "stale", MISSED);
    wait_for_event(&cli, "node-stale", &format!("{NODE}  was online"));

    agent.child().thaw().expect("thawed");
    let thawed = Instant::now();
    // What somebody works on outlasts a worker that sleeps for a while.
    socket.echo("hello again").expect("an echo");
    stream.write_all(&[0x81, 0]).expect("written");
    let mut back = [0; 2];
    stream.read_exact(&mut back).expect("said back");
    assert_eq!(back, [0x81, 0]);
    let outlasted = thawed.elapsed();
    wait_for_console(&up, NODE, SOON);
    let used = thawed.elapsed();
    wait_for_state(&cli, &[NODE], "online", SOON);
    let online = thawed.elapsed();
    println!("open streams after {outlasted:?}, console after {used:?}, online after {online:?}");
    agent.child().assert_log_clean(&[]);
    up.child().assert_log_clean(&[]);
}
