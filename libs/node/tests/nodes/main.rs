//! Nodes over real loopback UDP, with a coordinator and a relay small enough to live in here.

mod authority;
mod coordinator;
mod joining;
mod load;
mod relay;
mod two_relays;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use coordinator::Coordinator;
use mesh_node::{
    ControlState, DialError, EnrolErrorKind, EnrolOptions, ListenError, Node, NodeConfig, PeerPath,
    Published, RelayMode, StateDir, Target, enrol,
};
use mesh_types::{NodeId, Service, ServiceKind};
use relay::FakeRelay;
use ring::digest::{Context, SHA256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(30);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limited = tokio::time::timeout(LIMIT, future).await;
    limited.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}"))
}

/// Waits until it is so.
async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    within(what, async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn joined(coordinator: &Coordinator, dir: &Path, n: u8) -> StateDir {
    let state = StateDir::open(dir.join(format!("node-{n}"))).expect("opens");
    let options = EnrolOptions::new(format!("node-{n}"));
    enrol(&coordinator.token(n), options, &state)
        .await
        .expect("joins");
    state
}

fn config(relay: RelayMode) -> NodeConfig {
    NodeConfig {
        udp: vec!["127.0.0.1:0".parse().expect("an address")],
        relay,
        ..NodeConfig::default()
    }
}

/// A coordinator and two nodes that know each other.
struct Lab {
    coordinator: Coordinator,
    a: Node,
    b: Node,
    dir: tempfile::TempDir,
    relay: Option<FakeRelay>,
}

async fn lab(mode: RelayMode, with_relay: bool) -> Lab {
    let dir = tempfile::tempdir().expect("a directory");
    let coordinator = Coordinator::start();
    let relay = if with_relay {
        Some(FakeRelay::start(&coordinator.ca).await)
    } else {
        None
    };
    coordinator.change(|facts| facts.relays = relay.iter().map(|r| r.relay.clone()).collect());
    let a = joined(&coordinator, dir.path(), 1).await;
    let b = joined(&coordinator, dir.path(), 2).await;
    let a = Node::start(config(mode), a).expect("starts");
    let b = Node::start(config(mode), b).expect("starts");
    for node in [&a, &b] {
        node.wait_ready(LIMIT).await.expect("a netmap");
        let peers = node.netmap();
        let seen = || {
            let netmap = peers.borrow().clone();
            netmap.is_some_and(|netmap| {
                netmap
                    .peers
                    .values()
                    .any(|peer| !peer.endpoints.is_empty() || peer.home_relay.is_some())
            })
        };
        eventually("the peers know how to reach each other", seen).await;
    }
    Lab {
        coordinator,
        a,
        b,
        dir,
        relay,
    }
}

fn v4(node: &Node, port: u16) -> SocketAddr {
    SocketAddr::new(node.addrs().expect("ready").v4.into(), port)
}

fn v6(node: &Node, port: u16) -> SocketAddr {
    SocketAddr::new(node.addrs().expect("ready").v6.into(), port)
}

/// Sends `len` bytes from one node to the other; says how long it took.
async fn transfer(from: &Node, to: &Node, addr: SocketAddr, len: usize) -> Duration {
    let mut listener = to.listen(addr.port()).expect("free");
    let start = Instant::now();
    let write = async {
        let mut stream = from.dial(addr).await.expect("connects");
        let mut hash = Context::new(&SHA256);
        let mut chunk = vec![0_u8; 64 * 1024];
        let mut left = len;
        let mut n = 0_u8;
        while left > 0 {
            n = n.wrapping_add(1);
            chunk.fill(n);
            let part = &chunk[..left.min(chunk.len())];
            hash.update(part);
            stream.write_all(part).await.expect("is taken");
            left -= part.len();
        }
        stream.shutdown().await.expect("ends");
        assert_eq!(stream.read(&mut [0; 1]).await.expect("clean end"), 0);
        hash.finish()
    };
    let read = async {
        let (mut stream, peer) = listener.accept().await.expect("a connection");
        assert_eq!(from.owner_of(peer.ip()), Some(from.enrolled().node));
        let mut hash = Context::new(&SHA256);
        let mut buf = vec![0; 64 * 1024];
        let mut total = 0;
        loop {
            let n = stream.read(&mut buf).await.expect("whole");
            if n == 0 {
                break;
            }
            hash.update(&buf[..n]);
            total += n;
        }
        assert_eq!(total, len);
        hash.finish()
    };
    let (sent, got) = within("the transfer", async { tokio::join!(write, read) }).await;
    assert_eq!(sent.as_ref(), got.as_ref());
    start.elapsed()
}

fn path_to(from: &Node, to: &Node) -> PeerPath {
    let id = to.enrolled().node;
    from.status()
        .peers
        .iter()
        .find(|peer| peer.id == id)
        .map_or(PeerPath::None, |peer| peer.path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_cross_directly() {
    let lab = lab(RelayMode::Off, false).await;
    let took = transfer(&lab.a, &lab.b, v4(&lab.b, 7000), 64 << 20).await;
    eprintln!(
        "64 MiB in {took:?}: {:.0} Mbit/s",
        512.0 * 1.048_576 / took.as_secs_f64()
    );
    eventually("the figures follow", || {
        matches!(path_to(&lab.a, &lab.b), PeerPath::Direct { .. })
    })
    .await;
    transfer(&lab.b, &lab.a, v6(&lab.a, 7001), 1 << 20).await;
    eventually("the figures follow", || {
        let status = lab.a.status();
        let peer = &status.peers[0];
        peer.tx_bytes > 64 << 20 && peer.rx_bytes > 1 << 20 && peer.last_handshake.is_some()
    })
    .await;
    let json = serde_json::to_string(&lab.a.status()).expect("JSON");
    let again: mesh_node::NodeStatus = serde_json::from_str(&json).expect("and back");
    assert_eq!(again.name, lab.a.status().name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transfer_and_ten_other_streams_share_the_way() {
    let lab = lab(RelayMode::Off, false).await;
    let others = (0..10).map(|n| {
        let (a, b) = (lab.a.clone(), lab.b.clone());
        let addr = v4(&lab.b, 7100 + n);
        tokio::spawn(async move { transfer(&a, &b, addr, 4 << 20).await })
    });
    let others: Vec<_> = others.collect();
    let took = transfer(&lab.a, &lab.b, v4(&lab.b, 7000), 64 << 20).await;
    for other in others {
        other.await.expect("whole");
    }
    eprintln!("64 MiB beside 10 x 4 MiB in {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_carries_what_cannot_go_directly() {
    let lab = lab(RelayMode::Only, true).await;
    let took = transfer(&lab.a, &lab.b, v4(&lab.b, 7000), 4 << 20).await;
    eprintln!("4 MiB by relay in {took:?}");
    eventually("the figures follow", || {
        matches!(path_to(&lab.a, &lab.b), PeerPath::Relay { .. })
    })
    .await;
    let status = lab.a.status();
    assert_eq!(status.counters["udp_tx_bytes"], 0, "nothing went directly");
    assert!(status.counters["relay_tx_bytes"] > 4 << 20);
    let relay = &status.relays[0];
    assert!(relay.connected && relay.local_addr.is_some_and(|addr| addr.ip().is_loopback()));
    assert_eq!(status.home_relay, Some(relay.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_begins_at_the_relay_and_turns_direct() {
    let lab = lab(RelayMode::Auto, true).await;
    transfer(&lab.a, &lab.b, v4(&lab.b, 7000), 2 << 20).await;
    eventually("the path turns direct", || {
        matches!(path_to(&lab.a, &lab.b), PeerPath::Direct { .. })
    })
    .await;
    transfer(&lab.a, &lab.b, v4(&lab.b, 7000), 2 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_comes_back_is_used_again() {
    let mut lab = lab(RelayMode::Only, true).await;
    let mut listener = lab.b.listen(7000).expect("free");
    let (dialled, accepted) = tokio::join!(lab.a.dial(v4(&lab.b, 7000)), listener.accept());
    let (mut near, (mut far, _)) = (dialled.expect("connects"), accepted.expect("arrives"));
    let addr = lab.relay.take().expect("a relay").relay.derp[0].clone();
    eventually("the loss", || {
        lab.a.status().relays.iter().all(|relay| !relay.connected)
    })
    .await;
    near.write_all(b"said while the relay was down")
        .await
        .expect("is kept");
    lab.relay = Some(FakeRelay::start_at(&lab.coordinator.ca, &addr).await);
    let mut got = [0; 29];
    within("what was said", far.read_exact(&mut got))
        .await
        .expect("arrives");
    assert_eq!(&got, b"said while the relay was down");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_peers_are_dialled() {
    let lab = lab(RelayMode::Off, false).await;
    for outside in [
        "127.0.0.1:22",
        "169.254.169.254:80",
        "100.64.9.9:80",
        "[::1]:22",
    ] {
        let outside = outside.parse().expect("an address");
        let error = lab.a.dial(outside).await.expect_err("outside the mesh");
        assert_eq!(error, DialError::NotAPeer(outside));
    }
    let own = v4(&lab.a, 80);
    assert_eq!(
        lab.a.dial(own).await.expect_err("itself"),
        DialError::OwnAddress(own)
    );
    let refused = lab.a.dial(v4(&lab.b, 81)).await.expect_err("nothing there");
    assert!(refused.is_refused(), "{refused}");
    assert_eq!(
        lab.a.resolve("node-2").map(|found| found.addrs),
        lab.b.addrs()
    );
    assert_eq!(lab.a.resolve("localhost"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_port_is_reached_and_told_to_the_coordinator() {
    let lab = lab(RelayMode::Off, false).await;
    let local = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let target = local.local_addr().expect("bound");
    let service = Service {
        name: "web".parse().expect("a name"),
        kind: ServiceKind::Http,
        port: 80,
    };
    let published = Published {
        service: service.clone(),
        target: Target::Loopback(target),
    };
    lab.b.publish(published).expect("publishes");
    let outside = Target::Loopback("192.0.2.1:80".parse().expect("an address"));
    assert!(
        lab.b
            .publish(Published {
                service: service.clone(),
                target: outside
            })
            .is_err()
    );
    let echo = tokio::spawn(async move {
        let (mut stream, from) = local.accept().await.expect("a connection");
        assert!(from.ip().is_loopback());
        let mut all = Vec::new();
        stream
            .read_to_end(&mut all)
            .await
            .expect("half close arrives");
        stream
            .write_all(&all)
            .await
            .expect("and leaves the other way open");
    });
    let mut stream = within("the dial", lab.a.dial(v6(&lab.b, 80)))
        .await
        .expect("connects");
    stream.write_all(b"hello").await.expect("taken");
    stream.shutdown().await.expect("ends");
    let mut got = Vec::new();
    within("the echo", stream.read_to_end(&mut got))
        .await
        .expect("clean");
    assert_eq!(got, b"hello");
    echo.await.expect("fine");
    // Nobody listens there any more: a reset, not a clean end. It may overtake the dial's own end.
    match within("the dial", lab.a.dial(v4(&lab.b, 80))).await {
        Ok(mut stream) => {
            let error = within("the reset", stream.read(&mut [0; 1]))
                .await
                .expect_err("reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        Err(error) => assert!(error.is_refused(), "{error}"),
    }
    let id = lab.b.enrolled().node;
    eventually("the report", || {
        lab.coordinator.report_of(id).services == [service.clone()]
    })
    .await;
    eventually("the peers see it", || {
        lab.a.status().peers[0].services == [service.clone()]
    })
    .await;
    assert!(lab.b.unpublish(&service.name));
    let refused = lab.a.dial(v4(&lab.b, 80)).await.expect_err("taken back");
    assert!(refused.is_refused(), "{refused}");
    eventually("the report", || {
        lab.coordinator.report_of(id).services.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_cross_the_overlay() {
    let lab = lab(RelayMode::Off, false).await;
    let (near, far) = (
        lab.a.bind_udp(0).expect("free"),
        lab.b.bind_udp(53).expect("free"),
    );
    near.send_to(b"question", v4(&lab.b, 53))
        .await
        .expect("sends");
    let mut buf = [0; 100];
    let (len, from) = within("the question", far.recv_from(&mut buf))
        .await
        .expect("arrives");
    assert_eq!(
        (&buf[..len], from),
        (b"question".as_slice(), v4(&lab.a, near.port()))
    );
    far.send_to(b"answer", from).await.expect("sends");
    let (len, _) = within("the answer", near.recv_from(&mut buf))
        .await
        .expect("arrives");
    assert_eq!(&buf[..len], b"answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_overlay_packets_make_dials_time_out() {
    let lab = lab(RelayMode::Off, false).await;
    transfer(&lab.a, &lab.b, v4(&lab.b, 7000), 1000).await;
    let _listener = lab.b.listen(7001).expect("free");
    lab.b.set_overlay_drop(true);
    let dial = lab
        .a
        .dial_timeout(v4(&lab.b, 7001), Duration::from_millis(300));
    assert!(dial.await.expect_err("dropped").is_timeout());
    lab.b.set_overlay_drop(false);
    within("the dial", lab.a.dial(v4(&lab.b, 7001)))
        .await
        .expect("connects again");
    assert!(lab.b.status().counters["deliberately_dropped"] > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_outlive_the_coordinator_and_so_does_a_restarted_node() {
    let mut lab = lab(RelayMode::Off, false).await;
    transfer(&lab.a, &lab.b, v4(&lab.b, 7000), 100_000).await;
    lab.coordinator.stop();
    let mut control = lab.a.control();
    within(
        "the loss",
        control.wait_for(|status| status.state == ControlState::Waiting),
    )
    .await
    .expect("runs on");
    transfer(&lab.a, &lab.b, v4(&lab.b, 7000), 100_000).await;
    // The restart takes the port along, as a configured one would.
    let port = lab.a.udp_addrs()[0];
    lab.a.shutdown().await;
    let path = lab.a.state_dir().path().to_owned();
    let Lab {
        a,
        b,
        dir: _dir,
        mut coordinator,
        ..
    } = lab;
    drop(a);
    let state = StateDir::open(&path).expect("the lock is free");
    let settings = NodeConfig {
        udp: vec![port],
        ..config(RelayMode::Off)
    };
    let a = Node::start(settings, state).expect("starts without a coordinator");
    a.wait_ready(LIMIT).await.expect("from the stored netmap");
    assert!(a.status().stale_since.is_some());
    // Its new sessions replace the old ones on the other side, in either direction.
    transfer(&a, &b, v4(&b, 7000), 100_000).await;
    transfer(&b, &a, v4(&a, 7000), 100_000).await;
    coordinator.restart().await;
    within(
        "the reconnect",
        a.control().wait_for(|status| status.is_connected()),
    )
    .await
    .expect("runs on");
    assert_eq!(a.status().stale_since, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_stops_and_its_peers_forget_it() {
    let lab = lab(RelayMode::Off, false).await;
    let mut listener = lab.a.listen(7000).expect("free");
    let addr = v4(&lab.a, 7000);
    let (dialled, accepted) = tokio::join!(lab.b.dial(addr), listener.accept());
    let (_far, (mut near, _)) = (dialled.expect("connects"), accepted.expect("arrives"));
    let gone = lab.b.enrolled().node;
    let stored = lab.b.state_dir().path().join("netmap");
    eventually("a stored netmap", || stored.exists()).await;
    let start = Instant::now();
    lab.coordinator.remove(gone);
    within("the reset", near.read(&mut [0; 1]))
        .await
        .expect_err("reset");
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    within(
        "the news",
        lab.b.control().wait_for(|status| status.is_removed()),
    )
    .await
    .expect("is told");
    eventually("the stop", || lab.b.listen(9).is_err()).await;
    assert_eq!(lab.b.listen(9).err(), Some(ListenError::Removed));
    assert_eq!(lab.b.bind_udp(9).err(), Some(ListenError::Removed));
    let service = Service {
        name: "web".parse().expect("a name"),
        kind: ServiceKind::Http,
        port: 80,
    };
    let published = lab.b.publish(Published {
        service,
        target: Target::Loopback("127.0.0.1:80".parse().expect("an address")),
    });
    assert!(published.is_err_and(|error| error.is_removed()));
    let dialled = within("the dial", lab.b.dial(addr)).await;
    assert_eq!(dialled.err(), Some(DialError::Removed));
    eventually("no stored netmap", || !stored.exists()).await;
    eventually("it is forgotten", || lab.a.status().peers.is_empty()).await;
    // A new start hears it from the refusal of its stream.
    let path = lab.b.state_dir().path().to_owned();
    lab.b.shutdown().await;
    let Lab {
        b,
        a: _a,
        coordinator: _coordinator,
        dir: _dir,
        relay: _relay,
    } = lab;
    drop(b);
    let again = Node::start(config(RelayMode::Off), StateDir::open(path).expect("free"));
    let again = again.expect("starts");
    within(
        "the refusal",
        again.control().wait_for(|status| status.is_removed()),
    )
    .await
    .expect("is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_are_accepted_and_certificates_renewed() {
    let dir = tempfile::tempdir().expect("a directory");
    let coordinator = Coordinator::start();
    coordinator.change(|facts| facts.certificate_life = Duration::from_secs(5));
    let state = joined(&coordinator, dir.path(), 1).await;
    let node = Node::start(config(RelayMode::Off), state).expect("starts");
    let first = node.control().borrow().certificate_until;
    eventually("a heartbeat", || {
        coordinator.read(|facts| facts.heartbeats) > 0
    })
    .await;
    coordinator.change(|facts| facts.certificate_life = Duration::from_secs(3600));
    eventually("a renewal", || {
        node.control().borrow().certificate_until > first
    })
    .await;
    assert_eq!(
        coordinator.read(|facts| facts.refused.clone()),
        Vec::<String>::new()
    );
    assert_eq!(coordinator.read(|facts| facts.renewals), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_wipes_the_state_directory() {
    let lab = lab(RelayMode::Off, false).await;
    lab.b.leave().await.expect("leaves");
    assert!(!lab.b.state_dir().is_enrolled());
    eventually("it is forgotten", || lab.a.status().peers.is_empty()).await;
}
