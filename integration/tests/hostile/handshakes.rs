//! A flood of WireGuard handshakes, and who is let in meanwhile.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::hostile::{Others, load, resident};
use integration::raw::Applicant;
use integration::wireguard::{Opened, RawTunnel};
use integration::{Agent, Cli, MeshUp};
use mesh_testkit::{eventually, rest};
use mesh_types::{JoinToken, WgPublicKey};

use super::{MIB, addr, tell};

/// Whose handshakes are flooded: everybody's pages come through it.
const TARGET: &str = "traffic-gateway";
/// Handshakes per second of the flood; cookies are asked for from 1 000 on.
const FLOOD: u32 = 5_000;
/// How long it goes on at least.
const LASTS: Duration = Duration::from_secs(5);
/// What it may take of a core, with those who are served meanwhile, in percent.
const BUSY: u128 = 100;
/// Within this somebody new has a session, and a machine that is started the page it is asked for.
const LET_IN: Duration = Duration::from_secs(10);
/// Answers to an initiation (WireGuard, 5.4.3 and 5.4.7).
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;

/// Somebody whom nobody knows, and who asks for sessions without end.
struct Flood {
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Stranger>,
}

struct Stranger {
    socket: UdpSocket,
    initiations: Vec<Vec<u8>>,
    sent: u32,
}

impl Flood {
    fn begin(to: SocketAddr, key: &WgPublicKey) -> Self {
        let mut stranger = Stranger::new(to, key);
        let (asked, stop) = <(Arc<AtomicUsize>, Arc<AtomicBool>)>::default();
        let thread = {
            let (asked, stop) = (Arc::clone(&asked), Arc::clone(&stop));
            std::thread::spawn(move || {
                let begun = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let due = begun.elapsed().as_millis() * u128::from(FLOOD) / 1000;
                    stranger.send_until(u32::try_from(due).expect("seconds"));
                    asked.fetch_add(stranger.cookies(), Ordering::Relaxed);
                    rest(Duration::from_millis(1));
                }
                stranger
            })
        };
        Self {
            asked,
            stop,
            thread,
        }
    }

    /// How often a cookie was asked for so far.
    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn end(self) -> Stranger {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it heard cookies only")
    }
}

impl Stranger {
    fn new(to: SocketAddr, key: &WgPublicKey) -> Self {
        let keys = Applicant::new("stranger").expect("keys");
        let mut tunnel = RawTunnel::new(&keys, key);
        // The right first code, which any passer-by can make, by somebody whom nobody knows.
        let initiation = |_| tunnel.initiation().expect("an initiation");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.connect(to).expect("connected");
        socket.set_nonblocking(true).expect("set");
        Self {
            socket,
            initiations: (0..100).map(initiation).collect(),
            sent: 0,
        }
    }

    /// Asks until it has asked so often in all.
    fn send_until(&mut self, due: u32) {
        while self.sent < due {
            // A full buffer loses one, as the network would.
            let initiation = &self.initiations[self.sent as usize % self.initiations.len()];
            drop(self.socket.send(initiation));
            self.sent += 1;
        }
    }

    /// Cookie replies that came back since the last time.
    fn cookies(&self) -> usize {
        let mut room = [0; 256];
        let mut count = 0;
        while let Ok(length) = self.socket.recv(&mut room) {
            assert!(
                length == 64 && room[0] == COOKIE,
                "a stranger got {length} bytes of type {}",
                room[0]
            );
            count += 1;
        }
        count
    }
}

/// A first session of a node that was let in: asks until it is asked for a cookie, and from then on
/// with it. How often it asked.
fn session_by_cookie(node: &Applicant, to: SocketAddr, key: &WgPublicKey) -> anyhow::Result<u32> {
    let mut tunnel = RawTunnel::new(node, key);
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let begun = Instant::now();
    let (mut has_cookie, mut tries) = (false, 0);
    let mut room = [0; 256];
    while begun.elapsed() < LET_IN {
        socket.send(&tunnel.initiation()?)?;
        tries += 1;
        // One that was lost, or came while few did, says nothing.
        let Ok(length) = socket.recv(&mut room) else {
            continue;
        };
        match (room[0], tunnel.open(&room[..length])) {
            (COOKIE, Opened::Nothing) => {
                ensure!(!has_cookie, "its cookie counts for nothing");
                has_cookie = true;
            }
            (RESPONSE, Opened::Answer(keepalive)) if has_cookie => {
                socket.send(&keepalive)?;
                return Ok(tries);
            }
            // Without a cookie, or to an earlier one, whose answer took its time.
            (RESPONSE, Opened::Answer(_)) | (COOKIE | RESPONSE, Opened::Foreign) => {}
            (kind, other) => anyhow::bail!("type {kind} came back: {other:?}"),
        }
    }
    anyhow::bail!("no session after {tries} initiations; a cookie: {has_cookie}")
}

#[test]
fn a_flood_of_handshakes_is_asked_for_cookies_and_stops_nobody() {
    let cli = Cli::new().expect("folders");
    let mut up = MeshUp::demo(&cli);
    let target = addr(&format!("target:{}", up.nodes_port(TARGET)));
    let key = wg_key(&up, TARGET);
    // Both join before, and nobody has spoken to them.
    let mut late = Agent::new(&cli, "late");
    late.join(&cli.token(&[])).expect_code(0);
    let token: JoinToken = cli.token(&[]).parse().expect("a join token");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let honest = Applicant::new("honest").expect("keys");
    let honest = runtime.block_on(honest.join(&token)).expect("it joins");

    let pid = up.child().pid();
    let before = resident(pid).expect("memory");
    let others = Others::of(&up).expect("people");
    let begun = Instant::now();
    let flood = Flood::begin(target, &key);
    eventually("cookies are asked for", LET_IN, || {
        ensure!(flood.asked() > 0, "none was");
        Ok(())
    });
    let asked = Instant::now();
    let tries = session_by_cookie(&honest.applicant, target, &key).expect("a session");
    let by_cookie = asked.elapsed();
    let started = Instant::now();
    late.start();
    eventually("the page of who came late", LET_IN, || {
        let reply = up.get("/late/")?;
        ensure!(reply.status == 200, "status {}", reply.status);
        Ok(())
    });
    let paged = started.elapsed();
    // The least of three: what else goes on in the program, as starts and joins, comes and goes.
    let busy = (0..3).map(|_| load(pid, Duration::from_secs(1)).expect("time"));
    let busy = busy.min().expect("three");
    rest(LASTS.saturating_sub(begun.elapsed()));
    let took = begun.elapsed();
    let asked = flood.asked();
    let mut stranger = flood.end();
    tell("handshakes", others);
    let held = resident(pid).expect("memory").saturating_sub(before);
    println!(
        "handshakes: {} sent in {took:?}, {asked} answered by a cookie, {} MiB, {busy} % of a core; \
         a first session by {tries} initiations within {by_cookie:?}, the page of a machine {paged:?} \
         after its start",
        stranger.sent,
        held / MIB
    );
    assert!(paged < LET_IN, "{paged:?}");
    assert!(busy < BUSY, "{busy} % of a core");
    assert!(held < 32 * MIB, "{} MiB", held / MIB);

    // Cookie mode goes as it came: who is not known hears nothing again.
    eventually("silence", Duration::from_secs(10), || {
        stranger.cookies();
        stranger.send_until(stranger.sent + 1);
        rest(Duration::from_millis(300));
        let asked = stranger.cookies();
        ensure!(asked == 0, "still asked for a cookie");
        Ok(())
    });
    late.stop();
    up.child().assert_log_clean(&[]);
    up.stop().expect("stopped");
}

/// A node's WireGuard key, as the coordinator tells its operator.
fn wg_key(up: &MeshUp, name: &str) -> WgPublicKey {
    let shown = up.cli().node_shown(&[name]);
    let key = shown["wg_key"].as_str().expect("a key");
    key.parse().expect("a WireGuard key")
}
