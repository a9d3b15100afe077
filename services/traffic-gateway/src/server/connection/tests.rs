use std::collections::HashMap;
use std::io;

use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::SendRequest;
use hyper_reverse_proxy::{Client, ConnectError, Limits, ReverseProxy};
use hyper_util::rt::TokioExecutor;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::sync::CancellationToken;

use super::super::http2::NO_ROOM;
use super::*;
use crate::admission::{Admitted, Door};
use crate::fleet::{Fleet, Snapshot};
use crate::metrics::GatewayMetrics;
use crate::origin::Hosts;
use crate::proxy::Shared;
use crate::watch::Table;

const PATIENCE: Duration = Duration::from_secs(10);
/// The limit of tests that wait for it.
const SHORT: Duration = Duration::from_millis(100);

struct Nobody;

impl Connector for Nobody {
    type Target = Target;
    type Stream = DuplexStream;

    async fn connect(&self, _: &Target) -> Result<DuplexStream, ConnectError> {
        Err(io::Error::from(io::ErrorKind::ConnectionRefused).into())
    }
}

/// A core that listens for a proxy in 10.0.0.0/8.
fn behind_a_proxy(head_limit: Duration) -> Core<Nobody> {
    let table = Table::default();
    let fleet = Snapshot::new(Fleet::new(&table.current(), &HashMap::new()));
    // A sender that is gone would end event streams.
    let (fleet, shown) = tokio::sync::watch::channel(Arc::new(fleet));
    std::mem::forget(fleet);
    let shared = Shared {
        table: table.subscribe(),
        fleet: shown,
        hosts: Arc::new(Hosts::new(&[], &[], [127, 0, 0, 1].into())),
        metrics: GatewayMetrics::new(&mesh_daemon::Metrics::default()),
        stop: CancellationToken::new(),
    };
    let client = Client::with_limits(Nobody, Limits::default());
    let server = ServerConfig {
        trusted_proxies: vec!["10.0.0.0/8".parse().expect("a net")],
        ..ServerConfig::default()
    };
    Core {
        gateway: Gateway::new(shared, ReverseProxy::new(client)),
        server: Arc::new(server),
        tls: None,
        stop: Stop::default(),
        head_limit,
    }
}

/// All that `peer` gets for asking for `path` and then for `/`, on one connection.
async fn ask(core: &Core<Nobody>, peer: IpAddr, scheme: Scheme, path: &str) -> String {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let text = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n\
         GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    client.write_all(text.as_bytes()).await.expect("written");
    let visitor = core.visitor(peer, None, scheme);
    core.http1(server, visitor, Turn::default()).await;
    let mut all = String::new();
    client.read_to_string(&mut all).await.expect("read");
    all
}

#[tokio::test]
async fn plain_http_past_the_proxy_is_refused_before_anything_is_looked_up() {
    let core = behind_a_proxy(PATIENCE);
    let statuses = |answers: &str| -> Vec<String> {
        let heads = answers.split("HTTP/1.1 ").skip(1);
        heads.map(|head| head[..3].to_owned()).collect()
    };
    let stranger = IpAddr::from([192, 0, 2, 7]);
    for path in ["/", "/nobody/", "/_mesh/events"] {
        let answers = ask(&core, stranger, Scheme::Http, path).await;
        assert_eq!(statuses(&answers), ["403"], "{path}: {answers}");
        assert!(answers.contains("connection: close\r\n"), "{answers}");
    }
    let answers = ask(&core, stranger, Scheme::Http, "/health").await;
    assert_eq!(statuses(&answers), ["200", "403"], "{answers}");
    for (peer, scheme) in [
        (stranger, Scheme::Https),
        ([10, 1, 2, 3].into(), Scheme::Http),
        ([127, 0, 0, 1].into(), Scheme::Http),
    ] {
        let answers = ask(&core, peer, scheme, "/nobody/").await;
        assert_eq!(statuses(&answers), ["404", "200"], "{peer}: {answers}");
    }
}

/// An HTTP/2 connection, served until it ends.
fn http2(head_limit: Duration) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let core = Arc::new(behind_a_proxy(head_limit));
    let visitor = core.visitor([127, 0, 0, 1].into(), None, Scheme::Https);
    let served = tokio::spawn(async move { core.http2(server, visitor, Turn::default()).await });
    (client, served)
}

/// The frames in `bytes`: type and payload (RFC 9113, 4.1).
fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut all = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (payload, rest) = rest.split_at(len);
        all.push((head[3], payload));
        bytes = rest;
    }
    all
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn an_http2_client_that_says_nothing_is_let_go() {
    // Not even a preface.
    let (client, served) = http2(SHORT);
    tokio::time::timeout(PATIENCE, served)
        .await
        .expect("it has a limit")
        .expect("no panic");
    drop(client);

    // A preface, and never a request.
    let (mut client, served) = http2(SHORT);
    client.write_all(PREFACE).await.expect("written");
    let mut all = Vec::new();
    tokio::time::timeout(PATIENCE, client.read_to_end(&mut all))
        .await
        .expect("it has a limit")
        .expect("read");
    served.await.expect("no panic");
    let goaway = 7;
    assert!(frames(&all).iter().any(|&(kind, _)| kind == goaway));
}

#[tokio::test]
async fn an_http2_client_is_told_how_much_it_may_ask_for() {
    let (mut client, served) = http2(SHORT);
    client.write_all(PREFACE).await.expect("written");
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.expect("read");
    served.await.expect("no panic");
    let settings = 4;
    let frames = frames(&all);
    let (_, told) = frames
        .iter()
        .find(|&&(kind, _)| kind == settings)
        .expect("settings come first");
    let told: HashMap<u16, u32> = told
        .chunks_exact(6)
        .map(|pair| {
            let value = [pair[2], pair[3], pair[4], pair[5]];
            (
                u16::from_be_bytes([pair[0], pair[1]]),
                u32::from_be_bytes(value),
            )
        })
        .collect();
    let (max_concurrent_streams, max_header_list_size) = (3, 6);
    assert_eq!(told.get(&max_concurrent_streams), Some(&100));
    assert_eq!(told.get(&max_header_list_size), Some(&(64 * 1024)));
}

async fn get(
    sender: &mut SendRequest<Empty<bytes::Bytes>>,
    path: &str,
    header: &str,
) -> http::Response<hyper::body::Incoming> {
    let request = http::Request::get(format!("https://localhost{path}"))
        .header("x-long", header)
        .body(Empty::new())
        .expect("a request");
    tokio::time::timeout(PATIENCE, sender.send_request(request))
        .await
        .expect("in time")
        .expect("an answer")
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_with_a_request_under_way_stays() {
    let (client, served) = http2(SHORT);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client))
            .await
            .expect("a handshake");
    let connection = tokio::spawn(connection);
    let too_long = "x".repeat(70 * 1024);
    let refused = get(&mut sender, "/health", &too_long).await;
    assert_eq!(refused.status(), 431);
    let mut events = get(&mut sender, "/_mesh/events", "").await;
    events.frame().await.expect("a frame").expect("no error");
    // Several limits later it is still there, and takes more requests.
    tokio::time::timeout(SHORT * 5, async {
        while let Some(frame) = events.frame().await {
            frame.expect("no error");
        }
    })
    .await
    .expect_err("the stream goes on");
    assert_eq!(get(&mut sender, "/health", "").await.status(), 200);
    drop(events);
    // Nothing under way: it ends.
    tokio::time::timeout(PATIENCE, served)
        .await
        .expect("it has a limit")
        .expect("no panic");
    drop(connection.await.expect("no panic"));
}

/// Asks for `path` on a connection whose client gives each answer room for so many bytes until it
/// reads.
async fn ask_with_room(
    room: u32,
    path: &str,
) -> (
    SendRequest<Empty<bytes::Bytes>>,
    http::Response<hyper::body::Incoming>,
    [tokio::task::JoinHandle<()>; 2],
) {
    let (client, served) = http2(PATIENCE);
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(room)
        .handshake(TokioIo::new(client))
        .await
        .expect("a handshake");
    let connection = tokio::spawn(async move { drop(connection.await) });
    let answer = get(&mut sender, path, "").await;
    assert_eq!(answer.status(), 200);
    (sender, answer, [served, connection])
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_may_take_its_time_with_an_answer_but_not_for_ever() {
    // One whose body is done at once, and one whose worker has more to say at any time.
    for path in ["/health", "/_mesh/events"] {
        let (_sender, answer, [mut served, _connection]) = ask_with_room(1, path).await;
        // Far beyond the limit for connections without a request.
        let early = tokio::time::timeout(NO_ROOM - PATIENCE, &mut served).await;
        assert!(early.is_err(), "{path} was not taken yet");
        let late = tokio::time::timeout(NO_ROOM, &mut served).await;
        late.expect("nobody waits for ever").expect("no panic");
        drop(answer);
    }
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_that_asks_on_and_takes_nothing_is_cut_off_all_the_same() {
    let (mut sender, first, [mut served, _connection]) = ask_with_room(0, "/_mesh/events").await;
    let mut answers = vec![first];
    let begun = Instant::now();
    while tokio::time::timeout(NO_ROOM / 5, &mut served)
        .await
        .is_err()
    {
        answers.push(get(&mut sender, "/health", "").await);
        assert!(begun.elapsed() < NO_ROOM * 2, "asking on is enough");
    }
    assert!(begun.elapsed() >= NO_ROOM);
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_that_takes_one_answer_loses_another_of_which_it_takes_nothing() {
    let (mut sender, neglected, [served, _connection]) = ask_with_room(1, "/_mesh/events").await;
    let slow = get(&mut sender, "/_mesh/events", "").await;
    let taken = get(&mut sender, "/_mesh/events", "").await;
    let (mut neglected, mut slow) = (neglected.into_body(), slow.into_body());
    let mut taken = taken.into_body();
    let begun = Instant::now();
    for round in 1..=3 {
        let takes = async {
            while let Some(frame) = taken.frame().await {
                frame.expect("this one goes on");
            }
        };
        let until = begun + round * (NO_ROOM - PATIENCE);
        let end = tokio::time::timeout_at(until, takes).await;
        end.expect_err("events have no end");
        // A byte now and then is enough for the one, and nothing would do for the other.
        let frame = slow.frame().await.expect("more").expect("not reset");
        assert_eq!(frame.into_data().expect("data").len(), 1);
    }
    assert!(
        !served.is_finished(),
        "the connection has nothing to do with it"
    );
    assert_eq!(get(&mut sender, "/health", "").await.status(), 200);
    let first = neglected
        .frame()
        .await
        .expect("a byte")
        .expect("it had come");
    assert_eq!(first.into_data().expect("data").len(), 1);
    let end = neglected
        .frame()
        .await
        .expect("it was not served to its end");
    let error = format!("{:?}", end.expect_err("reset"));
    assert!(error.contains("CANCEL"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_that_takes_a_little_now_and_then_is_served_to_the_end() {
    let (_sender, answer, [mut served, _connection]) = ask_with_room(1, "/").await;
    let mut body = answer.into_body();
    for taken in 0..3 {
        let early = tokio::time::timeout(NO_ROOM - PATIENCE, &mut served).await;
        assert!(early.is_err(), "after {taken} bytes");
        let frame = body.frame().await.expect("more").expect("no error");
        assert_eq!(frame.into_data().expect("data").len(), 1);
    }
    let rest = body.collect().await.expect("no error").to_bytes();
    assert!(rest.ends_with(b"by itself.\n"), "{rest:?}");
    // With nothing under way any more it ends as others do.
    let ended = tokio::time::timeout(PATIENCE * 4, served).await;
    ended.expect("it has a limit").expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_keeps_its_place_until_what_it_had_sent_was_read() {
    for sent in [&b"a"[..], b""] {
        let places = mesh_daemon::Places::new(1, Duration::ZERO, Counter::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let at = listener.local_addr().expect("bound");
        let mut client = std::net::TcpStream::connect(at).expect("connected");
        io::Write::write_all(&mut client, sent).expect("written");
        // As handed over by another core: the runtime does not know yet that there is something.
        let (stream, _) = listener.accept().expect("accepted");
        stream.set_nonblocking(true).expect("set");
        let mut stream = TcpStream::from_std(stream).expect("registered");
        let place = places.take().expect("a place");
        let turn = place.turn().clone();
        let (coming, asks) = (turn.request(), turn.clone());
        let connection = Box::pin(async move {
            let _place = place;
            stream.read_u8().await.expect("a byte");
            let _under_way = begin(&asks).await;
            std::future::pending::<()>().await;
        });
        let mut connections = JoinSet::new();
        turn.served_by(connections.spawn(keep_until_read(connection, coming)));
        let mut makes_room = false;
        for _ in 0..10 {
            tokio::task::yield_now().await;
            makes_room |= places.take().is_some();
            tokio::time::advance(SHORT).await;
        }
        assert_eq!(makes_room, sent.is_empty());
    }
}

/// TLS for `localhost`, which no client here gets to the end of.
fn tls() -> Arc<TlsConfig> {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let slot = mesh_daemon::tls::CertificateSlot::from_pem(
        &key.cert.pem(),
        &key.signing_key.serialize_pem(),
    );
    let none = mesh_daemon::tls::ClientAuth::None;
    mesh_daemon::tls::server_config(slot.expect("one"), none, &[], None).expect("TLS")
}

#[tokio::test(start_paused = true)]
async fn a_handshake_keeps_its_place_for_a_moment_and_no_longer() {
    let mut core = behind_a_proxy(PATIENCE);
    core.tls = Some(tls());
    let core = Arc::new(core);
    let metrics = GatewayMetrics::new(&mesh_daemon::Metrics::default());
    let door = Door::open(1, 1, &metrics).pop().expect("one");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let at = listener.local_addr().expect("bound");
    // Without an await, at which the clock could go on.
    let come = || {
        let client = std::net::TcpStream::connect(at).expect("connected");
        let (stream, peer) = listener.accept().expect("accepted");
        stream.set_nonblocking(true).expect("set");
        let stream = TcpStream::from_std(stream).expect("registered");
        (client, door.admit(stream, peer).expect("no fault"), peer)
    };
    let mut connections = JoinSet::new();
    let (_client, Admitted::Here(stream, place), peer) = come() else {
        panic!("there is room");
    };
    core.begin(&mut connections, stream, peer, place);
    let step = HANDSHAKE_TURN / 10;
    for _ in 0..9 {
        tokio::time::advance(step).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let (_next, admitted, _) = come();
        assert!(
            matches!(admitted, Admitted::Full(_)),
            "cut off: {admitted:?}"
        );
    }
    for _ in 0..4 {
        tokio::time::advance(step).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }
    let (_next, admitted, _) = come();
    assert!(matches!(admitted, Admitted::Here(..)), "it is for ever");
    let end = connections.join_next().await.expect("it was served");
    assert!(end.expect_err("aborted").is_cancelled());
}
