use std::collections::HashMap;

use mesh_daemon::{Metrics, ShutdownTrigger, Tasks};
use mesh_tunnel::derp::{Client as DerpClient, ClientEvent, encode_send};
use mesh_tunnel::wg_public_key;
use mesh_types::NetworkId;
use tokio::io::DuplexStream;

use super::*;
use crate::metrics::RelayMetrics;
use crate::registry::ClientsUpdate;

/// A relay without sockets.
struct Relay {
    clients: Arc<Clients>,
    metrics: Metrics,
    shutdown: Shutdown,
    connections: Tasks,
    _trigger: ShutdownTrigger,
}

/// What a client of the tests heard.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Ready,
    Packet(WgPublicKey, Vec<u8>),
    Gone(WgPublicKey),
    Restarting,
    Other,
    End,
}

struct TestClient {
    stream: DuplexStream,
    derp: DerpClient,
}

fn secret(n: u8) -> SecretKey {
    SecretKey::from_bytes([n; 32])
}

fn public(n: u8) -> WgPublicKey {
    wg_public_key(&secret(n))
}

fn named(clients: &[(u8, u8)]) -> HashMap<WgPublicKey, NetworkId> {
    let network = |n| NetworkId::from_bytes([n; 16]);
    clients
        .iter()
        .map(|&(key, n)| (public(key), network(n)))
        .collect()
}

impl Relay {
    fn new(clients: &[(u8, u8)]) -> Self {
        let metrics = Metrics::default();
        let (trigger, shutdown) = ShutdownTrigger::new(Duration::from_secs(1));
        let relay = Self {
            clients: Arc::new(Clients::new(RelayMetrics::new(&metrics))),
            metrics,
            shutdown,
            connections: Tasks::new(),
            _trigger: trigger,
        };
        relay.update(true, clients, &[]);
        relay
    }

    fn update(&self, full: bool, clients: &[(u8, u8)], removed: &[u8]) {
        let removed = removed.iter().map(|&key| public(key)).collect();
        self.clients.update(ClientsUpdate {
            full,
            clients: named(clients),
            removed,
        });
    }

    fn connect_with_room(&mut self, key: u8, room: usize) -> TestClient {
        let (ours, theirs) = tokio::io::duplex(room);
        let clients = Arc::clone(&self.clients);
        let shutdown = self.shutdown.clone();
        self.connections.spawn("connection", async move {
            let _end = serve(theirs, &secret(200), [3; 32], &clients, shutdown).await;
        });
        TestClient {
            stream: ours,
            derp: DerpClient::new(&secret(key), [key; 32]),
        }
    }

    async fn connect(&mut self, key: u8) -> TestClient {
        let mut client = self.connect_with_room(key, 256 * 1024);
        assert_eq!(client.hear().await, Heard::Ready);
        client
    }
}

impl TestClient {
    async fn hear(&mut self) -> Heard {
        let mut output = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let heard = match self.derp.poll().expect("the relay speaks DERP") {
                Some(ClientEvent::Ready) => Some(Heard::Ready),
                Some(ClientEvent::Packet { from, payload }) => {
                    Some(Heard::Packet(from, payload.to_vec()))
                }
                Some(ClientEvent::PeerGone { peer }) => Some(Heard::Gone(peer)),
                Some(ClientEvent::Restarting) => Some(Heard::Restarting),
                Some(_) => Some(Heard::Other),
                None => None,
            };
            self.derp.take_output(&mut output);
            if !output.is_empty() {
                self.write(&output).await;
                output.clear();
            }
            if let Some(heard) = heard {
                return heard;
            }
            match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return Heard::End,
                Ok(read) => self.derp.handle_bytes(&buffer[..read]),
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) {
        // A relay that hung up is noticed by the next read.
        drop(self.stream.write_all(bytes).await);
    }

    async fn send(&mut self, to: u8, payload: &[u8]) {
        let mut frame = Vec::new();
        encode_send(&public(to), payload, &mut frame);
        self.write(&frame).await;
    }
}

#[tokio::test]
async fn packets_travel_within_a_network_and_nowhere_else() {
    let mut relay = Relay::new(&[(1, 1), (2, 1), (3, 2)]);
    let mut one = relay.connect(1).await;
    let mut two = relay.connect(2).await;
    let mut three = relay.connect(3).await;
    one.send(2, b"hello").await;
    assert_eq!(
        two.hear().await,
        Heard::Packet(public(1), b"hello".to_vec())
    );
    two.send(1, b"back").await;
    assert_eq!(one.hear().await, Heard::Packet(public(2), b"back".to_vec()));
    three.send(1, b"from outside").await;
    assert_eq!(three.hear().await, Heard::Gone(public(1)));
    one.send(3, b"to outside").await;
    assert_eq!(one.hear().await, Heard::Gone(public(3)));
    let text = relay.metrics.encode();
    assert!(
        text.contains("mesh_relay_forwarded_packets_total 2"),
        "{text}"
    );
    assert!(
        text.contains("mesh_relay_forwarded_bytes_total 9"),
        "{text}"
    );
    assert!(text.contains("mesh_relay_clients 3"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_coordinator_names_a_moment_later_is_let_in_and_others_are_not() {
    let mut relay = Relay::new(&[(1, 1)]);
    let mut late = relay.connect_with_room(2, 65_536);
    let waited = timeout(Duration::from_secs(2), late.hear()).await;
    assert!(waited.is_err(), "{waited:?}");
    relay.update(false, &[(2, 1)], &[]);
    assert_eq!(late.hear().await, Heard::Ready);
    let mut stranger = relay.connect_with_room(9, 65_536);
    assert_eq!(stranger.hear().await, Heard::End);
    let text = relay.metrics.encode();
    assert!(
        text.contains(r#"refused_connections_total{reason="UnknownKey"} 1"#),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_removed_client_is_cut_at_once() {
    let mut relay = Relay::new(&[(1, 1), (2, 1)]);
    let mut one = relay.connect(1).await;
    let mut two = relay.connect(2).await;
    relay.update(false, &[], &[2]);
    let ended = timeout(Duration::from_millis(100), two.hear()).await;
    assert_eq!(ended, Ok(Heard::End));
    one.send(2, b"hello?").await;
    assert_eq!(one.hear().await, Heard::Gone(public(2)));
}

#[tokio::test]
async fn what_waits_for_a_removed_client_is_not_delivered() {
    let mut relay = Relay::new(&[(1, 1), (2, 1), (3, 1)]);
    let mut one = relay.connect(1).await;
    let mut slow = relay.connect_with_room(2, 4096);
    assert_eq!(slow.hear().await, Heard::Ready);
    let mut three = relay.connect(3).await;
    for _ in 0..500 {
        one.send(2, &[0; 1000]).await;
    }
    one.send(3, b"all sent").await;
    assert_ne!(three.hear().await, Heard::End);
    relay.update(false, &[], &[2]);
    let mut heard = 0;
    while slow.hear().await != Heard::End {
        heard += 1;
    }
    // One chunk may be under way already.
    assert!(heard < 100, "{heard} of 500 were delivered");
}

#[tokio::test]
async fn a_second_connection_takes_over_from_the_first() {
    let mut relay = Relay::new(&[(1, 1), (2, 1)]);
    let mut old = relay.connect(1).await;
    let mut new = relay.connect(1).await;
    let mut two = relay.connect(2).await;
    assert_eq!(old.hear().await, Heard::End);
    two.send(1, b"which?").await;
    assert_eq!(
        new.hear().await,
        Heard::Packet(public(2), b"which?".to_vec())
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_the_oldest_and_delays_nobody() {
    let mut relay = Relay::new(&[(1, 1), (2, 1), (3, 1)]);
    let mut one = relay.connect(1).await;
    let mut slow = relay.connect_with_room(2, 4096);
    assert_eq!(slow.hear().await, Heard::Ready);
    let mut three = relay.connect(3).await;
    for n in 0..3000_u32 {
        one.send(2, &[n.to_be_bytes().as_slice(), &[0; 996]].concat())
            .await;
    }
    one.send(3, b"not delayed").await;
    assert_eq!(
        three.hear().await,
        Heard::Packet(public(1), b"not delayed".to_vec())
    );
    let mut numbers = Vec::new();
    while numbers.last() != Some(&2999) {
        if let Heard::Packet(_, payload) = slow.hear().await {
            let number = payload.first_chunk().expect("it was sent so");
            numbers.push(u32::from_be_bytes(*number));
        }
    }
    assert!(numbers.is_sorted());
    assert!(numbers.len() < 1300, "{} of 3000 were kept", numbers.len());
    let text = relay.metrics.encode();
    assert!(
        text.contains(r#"dropped_packets_total{reason="QueueFull"}"#),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_quiet_client_that_answers_pings_stays_and_a_dead_one_goes() {
    let mut relay = Relay::new(&[(1, 1), (2, 1)]);
    let mut alive = relay.connect(1).await;
    let mut dead = relay.connect(2).await;
    let listening = timeout(Duration::from_secs(300), async {
        loop {
            assert_eq!(alive.hear().await, Heard::Other, "only keepalives");
        }
    });
    assert!(listening.await.is_err());
    alive.send(2, b"hello?").await;
    while alive.hear().await == Heard::Other {}
    assert_eq!(
        dead.stream.read(&mut [0; 1]).await.unwrap_or(0),
        1,
        "what was queued"
    );
    assert!(!relay.clients.registry().is_empty());
    assert_eq!(relay.clients.registry().len(), 1);
}

#[tokio::test]
async fn all_clients_are_told_when_the_relay_restarts() {
    let mut relay = Relay::new(&[(1, 1)]);
    let mut one = relay.connect(1).await;
    let mut frame = Vec::new();
    Frame::Restarting {
        reconnect_in: Duration::ZERO,
        try_for: Duration::from_secs(1),
    }
    .encode(&mut frame);
    relay.clients.close_all(&frame);
    assert_eq!(one.hear().await, Heard::Restarting);
    assert_eq!(one.hear().await, Heard::End);
}

#[tokio::test(start_paused = true)]
async fn a_stranger_that_says_nothing_or_nonsense_is_let_go() {
    let mut relay = Relay::new(&[]);
    let mut silent = relay.connect_with_room(1, 4096);
    let mut hello = vec![0; 45];
    silent
        .stream
        .read_exact(&mut hello)
        .await
        .expect("the relay's key");
    assert_eq!(silent.stream.read(&mut hello).await.expect("an end"), 0);
    let mut loud = relay.connect_with_room(1, 4096);
    loud.stream
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .expect("room");
    loud.stream
        .read_exact(&mut hello)
        .await
        .expect("the relay's key");
    assert_eq!(loud.stream.read(&mut hello).await.expect("an end"), 0);
    let mut talker = relay.connect_with_room(1, 4096);
    // A frame that would be allowed later, of which there is no end.
    talker
        .stream
        .write_all(&[2, 0, 0, 0xff, 0xff])
        .await
        .expect("room");
    while talker.stream.write_all(&[0; 512]).await.is_ok() {}
    let text = relay.metrics.encode();
    assert!(text.contains(r#"{reason="Slow"} 1"#), "{text}");
    assert!(text.contains(r#"{reason="Protocol"} 2"#), "{text}");
}
