//! SOCKS5 over real loopback sockets, with an overlay that is made of channels.

use std::collections::HashMap;
use std::sync::Mutex;

use mesh_daemon::Metrics;
use mesh_types::NodeState;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::fixture::netmap;
use crate::metrics::ServiceMetrics;

type Sent = (Vec<u8>, SocketAddr);

/// The second worker is offline. Dials give echoes; datagrams come back from whom they were sent to, upper-cased.
struct FakeOverlay {
    faults: HashMap<SocketAddr, DialFaultKind>,
    dialled: Arc<Mutex<Vec<SocketAddr>>>,
    stray: Option<SocketAddr>,
}

struct FakeDatagrams {
    echo: mpsc::Sender<Sent>,
    back: tokio::sync::Mutex<mpsc::Receiver<Sent>>,
    dialled: Arc<Mutex<Vec<SocketAddr>>>,
    stray: Option<SocketAddr>,
}

impl Overlay for FakeOverlay {
    type Stream = DuplexStream;
    type Datagrams = FakeDatagrams;

    fn netmap(&self) -> Option<Arc<Netmap>> {
        let mut netmap = netmap();
        for peer in netmap.peers.values_mut() {
            if peer.name.as_str() == "worker-node-2" {
                peer.state = NodeState::Offline;
            }
        }
        Some(Arc::new(netmap))
    }

    async fn dial(&self, to: SocketAddr) -> Result<DuplexStream, DialFault> {
        self.dialled.lock().unwrap().push(to);
        if let Some(&kind) = self.faults.get(&to) {
            return Err(DialFault {
                kind,
                reason: "as asked".into(),
            });
        }
        let (near, far) = duplex(1024);
        tokio::task::spawn(async move {
            let (mut from, mut to) = tokio::io::split(far);
            tokio::io::copy(&mut from, &mut to).await.ok();
            to.shutdown().await.ok();
        });
        Ok(near)
    }

    fn bind_udp(&self) -> io::Result<FakeDatagrams> {
        let (echo, back) = mpsc::channel(16);
        Ok(FakeDatagrams {
            echo,
            back: tokio::sync::Mutex::new(back),
            dialled: Arc::clone(&self.dialled),
            stray: self.stray,
        })
    }
}

impl Datagrams for FakeDatagrams {
    async fn send_to(&self, data: &[u8], to: SocketAddr) -> io::Result<()> {
        self.dialled.lock().unwrap().push(to);
        if let Some(stray) = self.stray {
            self.echo.send((b"unasked".to_vec(), stray)).await.unwrap();
        }
        self.echo
            .send((data.to_ascii_uppercase(), to))
            .await
            .unwrap();
        Ok(())
    }

    async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut back = self.back.lock().await;
        let (data, from) = back.recv().await.unwrap();
        buf[..data.len()].copy_from_slice(&data);
        Ok((data.len(), from))
    }
}

struct Served {
    addr: SocketAddr,
    dialled: Arc<Mutex<Vec<SocketAddr>>>,
    metrics: Metrics,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(access: Access, faults: &[(&str, DialFaultKind)], stray: Option<&str>) -> Served {
    let dialled = Arc::new(Mutex::new(Vec::new()));
    let overlay = FakeOverlay {
        faults: faults
            .iter()
            .map(|(to, kind)| (to.parse().unwrap(), *kind))
            .collect(),
        dialled: Arc::clone(&dialled),
        stray: stray.map(|addr| addr.parse().unwrap()),
    };
    let network = NetworkName::default_network();
    let metrics = Metrics::default();
    let counted = ServiceMetrics::register(&metrics).socks;
    let server = SocksServer::new(network, overlay, access, counted);
    let server = Arc::new(server);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::task::spawn(async move {
        let mut clients = tokio::task::JoinSet::new();
        while let Ok((stream, client)) = listener.accept().await {
            let server = Arc::clone(&server);
            clients.spawn(async move { server.serve(stream, client, &Turn::default()).await });
        }
    });
    Served {
        addr,
        dialled,
        metrics,
        task,
    }
}

impl Served {
    /// Asks with this command; the reply's code, the bound address, and the stream.
    async fn ask(&self, command: u8, host: &str, port: u16) -> (u8, SocketAddr, TcpStream) {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(&[5, 1, 0]).await.unwrap();
        let mut chosen = [0; 2];
        stream.read_exact(&mut chosen).await.unwrap();
        assert_eq!(chosen, [5, 0]);
        let mut request = vec![5, command, 0];
        request.extend(encode(host, port));
        stream.write_all(&request).await.unwrap();
        let mut reply = [0; 10];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[3], 1, "an IPv4 address is bound");
        let ip: [u8; 4] = reply[4..8].try_into().unwrap();
        let port = u16::from_be_bytes([reply[8], reply[9]]);
        (reply[1], (ip, port).into(), stream)
    }
}

fn encode(host: &str, port: u16) -> Vec<u8> {
    let mut out = match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(v4)) => [&[1], v4.octets().as_slice()].concat(),
        Ok(std::net::IpAddr::V6(v6)) => [&[4], v6.octets().as_slice()].concat(),
        Err(_) => [&[3, u8::try_from(host.len()).unwrap()], host.as_bytes()].concat(),
    };
    out.extend(port.to_be_bytes());
    out
}

const CONNECT: u8 = 1;
const BIND: u8 = 2;
const UDP_ASSOCIATE: u8 = 3;

#[tokio::test]
async fn a_client_of_our_own_user_reaches_a_node_and_half_close_is_kept() {
    let served = serve(Access::OwnUser, &[], None).await;
    let (code, _, mut stream) = served.ask(CONNECT, "worker-node-1", 8000).await;
    assert_eq!(code, 0);
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "hello");
    assert_eq!(
        *served.dialled.lock().unwrap(),
        ["100.64.0.2:8000".parse().unwrap()]
    );
}

#[tokio::test]
async fn refused_destinations_get_the_right_reply_and_are_never_dialled() {
    let served = serve(Access::OwnUser, &[], None).await;
    for (host, code) in [
        ("127.0.0.1", 2),
        ("::1", 2),
        ("localhost", 2),
        ("169.254.169.254", 2),
        ("192.168.1.10", 2),
        ("100.64.7.7", 2),
        ("100.64.0.1", 2),
        ("deploy-manager", 2),
        ("example.org", 4),
        ("worker-node-1.home", 4),
    ] {
        assert_eq!(served.ask(CONNECT, host, 80).await.0, code, "{host}");
    }
    assert_eq!(served.ask(BIND, "worker-node-1", 80).await.0, 7);
    assert!(served.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn failed_dials_keep_their_reasons_apart() {
    let faults = [
        ("100.64.0.2:1", DialFaultKind::Refused),
        ("100.64.0.2:2", DialFaultKind::TimedOut),
        ("100.64.0.2:3", DialFaultKind::Unreachable),
        ("100.64.0.2:4", DialFaultKind::NotAllowed),
        ("100.64.0.2:5", DialFaultKind::Failed),
    ];
    let served = serve(Access::OwnUser, &faults, None).await;
    for (port, code) in [(1, 5), (2, 6), (3, 4), (4, 2), (5, 1)] {
        assert_eq!(served.ask(CONNECT, "worker-node-1", port).await.0, code);
    }
}

#[tokio::test]
async fn dials_to_a_node_that_is_known_to_be_offline_are_counted_apart() {
    let faults = [
        ("100.64.0.2:2", DialFaultKind::TimedOut),
        ("100.64.0.3:1", DialFaultKind::Refused),
        ("100.64.0.3:2", DialFaultKind::TimedOut),
        ("100.64.0.3:3", DialFaultKind::Unreachable),
    ];
    let served = serve(Access::OwnUser, &faults, None).await;
    let counted = |offline: bool| {
        let name = "mesh_deploy_manager_socks_dials_failed_total";
        let line = format!("{name}{{worker_offline=\"{offline}\"}} ");
        let text = served.metrics.encode();
        let count = text.lines().find_map(|it| it.strip_prefix(&line));
        count
            .map(str::to_owned)
            .unwrap_or_else(|| panic!("no {line} in {text}"))
    };
    assert_eq!((counted(false), counted(true)), ("0".into(), "0".into()));
    for (node, port) in [(1, 2), (2, 1), (2, 2), (2, 3)] {
        let node = format!("worker-node-{node}");
        assert_ne!(served.ask(CONNECT, &node, port).await.0, 0);
    }
    assert_eq!((counted(false), counted(true)), ("3".into(), "1".into()));
}

async fn login(addr: SocketAddr, methods: &[u8], user: &str, password: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(methods).await.unwrap();
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await.unwrap();
    if chosen[1] != 2 {
        return chosen.to_vec();
    }
    let mut request = vec![1, u8::try_from(user.len()).unwrap()];
    request.extend(user.as_bytes());
    request.push(u8::try_from(password.len()).unwrap());
    request.extend(password.as_bytes());
    stream.write_all(&request).await.unwrap();
    let mut verdict = [0; 2];
    stream.read_exact(&mut verdict).await.unwrap();
    verdict.to_vec()
}

#[tokio::test]
async fn a_listener_with_a_password_takes_no_one_without_it() {
    let access = Access::Password {
        user: "me".into(),
        password: mesh_daemon::Secret::new("right"),
    };
    let served = serve(access, &[], None).await;
    assert_eq!(login(served.addr, &[5, 1, 0], "", "").await, [5, 0xff]);
    assert_eq!(login(served.addr, &[5, 1, 2], "me", "right").await, [1, 0]);
    for (user, password) in [("me", "wrong"), ("you", "right"), ("me", "righ")] {
        assert_ne!(
            login(served.addr, &[5, 2, 0, 2], user, password).await[1],
            0
        );
    }
}

async fn exchange(socket: &UdpSocket, relay: SocketAddr, host: &str, data: &[u8]) {
    let datagram = [&[0, 0, 0], encode(host, 53).as_slice(), data].concat();
    socket.send_to(&datagram, relay).await.unwrap();
}

#[tokio::test]
async fn datagrams_go_to_a_node_and_its_answer_comes_back() {
    let served = serve(Access::OwnUser, &[], Some("100.64.0.3:53")).await;
    let (code, relay, control) = served.ask(UDP_ASSOCIATE, "0.0.0.0", 0).await;
    assert_eq!(code, 0);
    assert!(relay.ip().is_loopback() && relay.port() != 0);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // Refused destinations and fragments vanish; what follows them still arrives.
    for host in [
        "127.0.0.1",
        "169.254.169.254",
        "192.168.1.10",
        "100.64.7.7",
        "example.org",
    ] {
        exchange(&socket, relay, host, b"no").await;
    }
    let fragment = [&[0, 0, 1], encode("worker-node-1", 53).as_slice(), b"no"].concat();
    socket.send_to(&fragment, relay).await.unwrap();
    exchange(&socket, relay, "worker-node-1", b"question").await;
    let mut buf = [0; 256];
    let (n, from) = socket.recv_from(&mut buf).await.unwrap();
    assert_eq!(from, relay);
    // The unasked datagram of another node was sent first, and did not get through.
    let expected = [&[0, 0, 0], encode("100.64.0.2", 53).as_slice(), b"QUESTION"].concat();
    assert_eq!(&buf[..n], expected);
    // The association is the first sender's now.
    exchange(&other, relay, "worker-node-1", b"stolen").await;
    exchange(&socket, relay, "worker-node-1", b"more").await;
    let (n, _) = socket.recv_from(&mut buf).await.unwrap();
    assert!(buf[..n].ends_with(b"MORE"));
    let node: SocketAddr = "100.64.0.2:53".parse().unwrap();
    assert_eq!(*served.dialled.lock().unwrap(), [node, node]);
    drop(control);
}

#[tokio::test]
async fn an_association_ends_with_the_connection_that_asked_for_it() {
    let served = serve(Access::OwnUser, &[], None).await;
    let (_, relay, control) = served.ask(UDP_ASSOCIATE, "0.0.0.0", 0).await;
    drop(control);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        // The port can be bound again once the association has let go of it.
        if UdpSocket::bind(relay).await.is_ok() {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "the socket is still open"
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_dials_nothing() {
    let served = serve(Access::OwnUser, &[], None).await;
    for nonsense in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        &[4, 1, 0, 80],
        &[5, 0],
        &[5, 1, 0, 5, 9, 0, 9],
    ] {
        let mut stream = TcpStream::connect(served.addr).await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset is as good an end as any.
        drop(stream.read_to_end(&mut answer).await);
        assert!(answer.len() <= 12, "{answer:?}");
    }
    assert!(served.dialled.lock().unwrap().is_empty());
}
