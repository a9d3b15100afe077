//! Two stacks on a wire that loses, delays and reorders; no tunnel in between.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_tunnel::Batch;
use mesh_types::OverlayAddrs;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;

mod beside;
mod silence;

const LIMIT: Duration = Duration::from_secs(30);

fn addrs(n: u8) -> OverlayAddrs {
    OverlayAddrs {
        v4: std::net::Ipv4Addr::new(100, 64, 0, n),
        v6: format!("fd7a:115c:a1e0::{n}").parse().expect("an address"),
    }
}

fn v4(n: u8, port: u16) -> SocketAddr {
    SocketAddr::new(addrs(n).v4.into(), port)
}

fn v6(n: u8, port: u16) -> SocketAddr {
    SocketAddr::new(addrs(n).v6.into(), port)
}

#[derive(Clone, Copy, Default)]
struct Faults {
    /// Probability that a packet is lost.
    loss: f64,
    /// Probability that a packet is overtaken by the next one.
    swap: f64,
}

/// Two stacks and the task that carries packets between them.
struct Lab {
    a: Netstack,
    b: Netstack,
    wire: JoinHandle<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.wire.abort();
    }
}

fn lab(faults: Faults, config: StackConfig) -> Lab {
    let now = Instant::now();
    let wake = Arc::new(Notify::new());
    let a = Netstack::new(config.clone(), Arc::clone(&wake), now);
    let b = Netstack::new(StackConfig { seed: 77, ..config }, Arc::clone(&wake), now);
    a.set_addrs(addrs(1));
    b.set_addrs(addrs(2));
    let wire = tokio::spawn(carry([a.clone(), b.clone()], wake, faults));
    Lab { a, b, wire }
}

fn plain() -> Lab {
    lab(Faults::default(), StackConfig::default())
}

async fn carry(stacks: [Netstack; 2], wake: Arc<Notify>, faults: Faults) {
    let mut random = StdRng::seed_from_u64(4711);
    let mut queues: [VecDeque<Vec<u8>>; 2] = Default::default();
    let mut batch = Batch::new();
    loop {
        let mut next: Option<Instant> = None;
        for side in 0..2 {
            let inbound: Vec<Vec<u8>> = queues[side].drain(..).collect();
            let mut packets = inbound.iter().map(Vec::as_slice);
            let deadline = stacks[side].exchange(&mut packets, &mut batch, Instant::now());
            next = [next, deadline].into_iter().flatten().min();
            let out = &mut queues[1 - side];
            for packet in batch.iter() {
                if random.random_bool(faults.loss) {
                    continue;
                }
                out.push_back(packet.to_vec());
                let len = out.len();
                if len > 1 && random.random_bool(faults.swap) {
                    out.swap(len - 1, len - 2);
                }
            }
            batch.clear();
        }
        if queues.iter().any(|queue| !queue.is_empty()) {
            tokio::task::yield_now().await;
            continue;
        }
        let until = next.unwrap_or_else(|| Instant::now() + LIMIT);
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep_until(until.into()) => {}
        }
    }
}

/// Bytes that differ everywhere, so that a lost or moved piece shows.
fn pattern(len: usize) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(9);
    (0..len).map(|_| random.random()).collect()
}

async fn transfer(lab: &Lab, to: SocketAddr, len: usize) {
    let data = pattern(len);
    let mut listener = lab.b.listen(to.port()).expect("the port is free");
    let reader = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.expect("the whole of it");
        stream
            .write_all(b"thanks")
            .await
            .expect("half close leaves this way open");
        stream.shutdown().await.expect("ends");
        got
    };
    let writer = async {
        let mut stream = lab.a.dial(to, LIMIT).await.expect("connects");
        stream.write_all(&data).await.expect("is taken");
        stream.shutdown().await.expect("ends");
        let mut thanks = Vec::new();
        stream.read_to_end(&mut thanks).await.expect("an answer");
        thanks
    };
    let both = tokio::time::timeout(LIMIT, async { tokio::join!(reader, writer) });
    let (got, thanks) = both.await.expect("in time");
    assert!(got == data, "{} of {len} bytes, or others", got.len());
    assert_eq!(thanks, b"thanks");
}

#[tokio::test]
async fn bytes_cross_in_both_families_and_half_close_holds() {
    let lab = plain();
    transfer(&lab, v4(2, 80), 3 << 20).await;
    transfer(&lab, v6(2, 81), 3 << 20).await;
}

#[tokio::test]
async fn reordering_changes_nothing() {
    let lab = lab(
        Faults {
            swap: 0.2,
            loss: 0.0,
        },
        StackConfig::default(),
    );
    transfer(&lab, v4(2, 80), 1 << 20).await;
}

#[tokio::test]
async fn loss_is_repaired() {
    let lab = lab(
        Faults {
            loss: 0.01,
            swap: 0.02,
        },
        StackConfig::default(),
    );
    transfer(&lab, v6(2, 80), 256 << 10).await;
}

#[tokio::test]
async fn a_port_nobody_listens_on_refuses() {
    let lab = plain();
    let error = lab.a.dial(v4(2, 9), LIMIT).await.expect_err("refused");
    assert_eq!(error, DialError::Refused(v4(2, 9)));
}

#[tokio::test]
async fn silence_is_a_timeout() {
    let lab = plain();
    let error = lab
        .a
        .dial(v4(3, 9), Duration::from_millis(50))
        .await
        .expect_err("nobody");
    assert!(error.is_timeout(), "{error}");
}

#[tokio::test]
async fn a_stack_without_addresses_dials_nothing() {
    let stack = Netstack::new(
        StackConfig::default(),
        Arc::new(Notify::new()),
        Instant::now(),
    );
    assert_eq!(
        stack.dial(v4(2, 9), LIMIT).await.expect_err("too early"),
        DialError::NotReady
    );
}

#[tokio::test]
async fn its_own_address_is_refused() {
    let lab = plain();
    let error = lab.a.dial(v4(1, 9), LIMIT).await.expect_err("itself");
    assert_eq!(error, DialError::OwnAddress(v4(1, 9)));
}

#[tokio::test]
async fn a_reset_arrives_as_an_error() {
    let lab = plain();
    let mut listener = lab.b.listen(80).expect("free");
    let (dialled, accepted) = tokio::join!(lab.a.dial(v4(2, 80), LIMIT), listener.accept());
    let (mut near, (far, _)) = (dialled.expect("connects"), accepted.expect("arrives"));
    far.reset();
    let read = tokio::time::timeout(LIMIT, near.read(&mut [0; 8]))
        .await
        .expect("in time");
    assert_eq!(
        read.expect_err("reset").kind(),
        std::io::ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn dropping_a_stream_ends_it_after_its_data() {
    let lab = plain();
    let mut listener = lab.b.listen(80).expect("free");
    let (dialled, accepted) = tokio::join!(lab.a.dial(v4(2, 80), LIMIT), listener.accept());
    let (mut near, (mut far, _)) = (dialled.expect("connects"), accepted.expect("arrives"));
    near.write_all(b"last words").await.expect("taken");
    drop(near);
    let mut got = Vec::new();
    tokio::time::timeout(LIMIT, far.read_to_end(&mut got))
        .await
        .expect("in time")
        .expect("clean");
    assert_eq!(got, b"last words");
}

#[tokio::test]
async fn a_port_has_one_listener_until_it_is_dropped() {
    let lab = plain();
    let first = lab.b.listen(80).expect("free");
    assert_eq!(
        lab.b.listen(80).expect_err("taken"),
        ListenError::PortTaken(80)
    );
    drop(first);
    assert!(lab.b.listen(80).is_ok());
}

#[tokio::test]
async fn the_memory_cap_holds_and_closing_gives_back() {
    let config = StackConfig {
        socket_buffer: 8192,
        socket_memory: 4 * 16384,
        ..Default::default()
    };
    let lab = lab(Faults::default(), config);
    let mut listener = lab.b.listen(80).expect("free");
    let mut open = Vec::new();
    for _ in 0..4 {
        let (dialled, accepted) = tokio::join!(lab.a.dial(v4(2, 80), LIMIT), listener.accept());
        open.push((dialled.expect("connects"), accepted.expect("arrives")));
    }
    assert_eq!(
        lab.a.dial(v4(2, 80), LIMIT).await.expect_err("full"),
        DialError::Busy
    );
    for (near, (far, _)) in open.drain(..) {
        near.reset();
        far.reset();
    }
    let room = async {
        while lab.a.connections() + lab.b.connections() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, room)
        .await
        .expect("everything ends");
    let (dialled, accepted) = tokio::join!(lab.a.dial(v4(2, 80), LIMIT), listener.accept());
    assert!(dialled.is_ok() && accepted.is_some());
}

#[tokio::test]
async fn connections_wait_up_to_the_backlog_and_no_further() {
    let config = StackConfig {
        backlog: 2,
        socket_buffer: 8192,
        ..Default::default()
    };
    let lab = lab(Faults::default(), config);
    let mut listener = lab.b.listen(80).expect("free");
    let _one = lab.a.dial(v4(2, 80), LIMIT).await.expect("connects");
    let _two = lab.a.dial(v4(2, 80), LIMIT).await.expect("connects");
    let third = lab.a.dial(v4(2, 80), Duration::from_millis(100)).await;
    assert!(third.expect_err("no room").is_timeout());
    assert!(listener.accept().await.is_some());
    assert!(lab.a.dial(v4(2, 80), LIMIT).await.is_ok());
}

#[tokio::test]
async fn peers_that_leave_lose_their_connections() {
    let lab = plain();
    let mut listener = lab.b.listen(80).expect("free");
    let (dialled, accepted) = tokio::join!(lab.a.dial(v4(2, 80), LIMIT), listener.accept());
    let (mut near, _far) = (dialled.expect("connects"), accepted.expect("arrives"));
    lab.a.retain_peers(|_| true);
    near.write_all(b"still").await.expect("kept");
    lab.a.retain_peers(|_| false);
    let read = tokio::time::timeout(LIMIT, near.read(&mut [0; 8]))
        .await
        .expect("in time");
    assert!(read.is_err());
}

#[tokio::test]
async fn closing_the_stack_ends_everything() {
    let lab = plain();
    let mut listener = lab.b.listen(80).expect("free");
    let (dialled, accepted) = tokio::join!(lab.a.dial(v4(2, 80), LIMIT), listener.accept());
    let (mut near, _far) = (dialled.expect("connects"), accepted.expect("arrives"));
    let udp = lab.b.bind_udp(53).expect("free");
    lab.b.close();
    assert!(listener.accept().await.is_none());
    assert!(udp.recv_from(&mut [0; 8]).await.is_err());
    assert_eq!(lab.b.listen(81).expect_err("closed"), ListenError::Closed);
    let read = tokio::time::timeout(LIMIT, near.read(&mut [0; 8]))
        .await
        .expect("in time");
    assert_eq!(
        read.expect_err("reset").kind(),
        std::io::ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn datagrams_cross_and_name_their_sender() {
    let lab = plain();
    let (near, far) = (
        lab.a.bind_udp(0).expect("free"),
        lab.b.bind_udp(53).expect("free"),
    );
    let mut buf = [0; 2048];
    for to in [v4(2, 53), v6(2, 53)] {
        near.send_to(b"question", to).await.expect("sends");
        let (len, from) = far.recv_from(&mut buf).await.expect("arrives");
        assert_eq!(
            (&buf[..len], from.port()),
            (b"question".as_slice(), near.port())
        );
        far.send_to(b"answer", from).await.expect("sends");
        let (len, from) = near.recv_from(&mut buf).await.expect("arrives");
        assert_eq!((&buf[..len], from), (b"answer".as_slice(), to));
    }
    let long = vec![0; near.max_payload() + 1];
    let error = near.send_to(&long, v4(2, 53)).await.expect_err("too long");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn anything_may_arrive_without_harm() {
    let lab = plain();
    let _listener = lab.b.listen(80).expect("free");
    let mut random = StdRng::seed_from_u64(3);
    let mut batch = Batch::new();
    for _ in 0..5000 {
        let len = random.random_range(0..120);
        let mut packet: Vec<u8> = (0..len).map(|_| random.random()).collect();
        if let Some(first) = packet.first_mut() {
            *first = if random.random() { 0x45 } else { 0x60 };
        }
        lab.b.exchange(
            &mut std::iter::once(packet.as_slice()),
            &mut batch,
            Instant::now(),
        );
        batch.clear();
    }
    transfer(&lab, v4(2, 81), 1000).await;
}
