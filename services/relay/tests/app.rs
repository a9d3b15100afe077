//! A whole relay, started from its state directory alone: no coordinator is there.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_api::client::{ALPN_HTTP1, connect_tls};
use mesh_api::tls::{Pin, client_config, relay_name};
use mesh_api::uri::Subject;
use mesh_daemon::{AskError, Handles, ShutdownTrigger, Task, TaskEnd, control_socket};
use mesh_node::{Enrolled, StateDir};
use mesh_tunnel::derp::{Client, ClientEvent, PATH, UPGRADE, encode_send};
use mesh_tunnel::{stun, wg_public_key};
use mesh_types::key::SecretKey;
use mesh_types::{Finding, NodeId, RelayId, Role};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use relay::status::Status;
use relay::{App, Config};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::time::timeout;

const RELAY: [u8; 16] = [7; 16];
const LIMIT: Duration = Duration::from_secs(20);

struct Running {
    addr: SocketAddr,
    stun: SocketAddr,
    ca: CertificateDer<'static>,
    trigger: ShutdownTrigger,
    task: Task,
    dir: tempfile::TempDir,
}

/// Certificates as the coordinator would give them.
fn certificates(state: &StateDir) -> (CertificateDer<'static>, CertificateDer<'static>) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("a certificate");
    let issuer = Issuer::new(ca, ca_key);
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(state.identity().pkcs8()));
    let key = KeyPair::try_from(&der).expect("the identity's key");
    let id = RelayId::from_bytes(RELAY);
    let mut own = CertificateParams::new(vec![relay_name(id)]).expect("a name");
    own.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let uri = Subject::Relay(id).to_string();
    own.subject_alt_names
        .push(SanType::URI(uri.as_str().try_into().expect("ASCII")));
    let own = own.signed_by(&key, &issuer).expect("a certificate");
    (own.der().clone(), ca_certificate.der().clone())
}

async fn start(clients: &[SecretKey]) -> Running {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("relay");
    let state = StateDir::open(&path).expect("a state directory");
    let (own, ca) = certificates(&state);
    let enrolled = Enrolled {
        node: NodeId::from_bytes(RELAY),
        name: "relay".parse().expect("a name"),
        role: Role::Relay,
        network: None,
        network_id: None,
        addrs: None,
        console_prefix: String::new(),
        owner: String::new(),
        coordinators: vec!["127.0.0.1:9".to_owned()],
    };
    state.store_enrolment(&enrolled, &own, &ca).expect("stored");
    let network = "01010101-0101-0101-0101-010101010101";
    let list: Vec<String> = clients
        .iter()
        .map(|key| format!("\"{}\":\"{network}\"", wg_public_key(key)))
        .collect();
    let list = format!(r#"{{"version":1,"clients":{{{}}}}}"#, list.join(","));
    state
        .write("clients.json", list.as_bytes())
        .expect("stored");
    drop(state);

    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config {
        state_dir: path,
        admin: None,
        ..Config::default()
    };
    config.server.listen = any;
    config.stun.listen = any;
    let app = App::build(config, Handles::default())
        .await
        .expect("a relay");
    let (trigger, shutdown) = ShutdownTrigger::new(Duration::from_secs(5));
    Running {
        addr: app.derp_addr(),
        stun: app.stun_addr(),
        ca,
        trigger,
        task: Task::spawn("relay", app.run(shutdown)),
        dir,
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A node's connection, after the upgrade.
struct Node {
    stream: Box<dyn Stream>,
    derp: Client,
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Ready,
    Packet(Vec<u8>),
    Restarting,
    Other,
    End,
}

impl Running {
    async fn http(&self, request: &str) -> (String, Box<dyn Stream>) {
        let tls = client_config(Pin::Ca(self.ca.clone()), None, &[ALPN_HTTP1]).expect("a config");
        let name = relay_name(RelayId::from_bytes(RELAY));
        let addrs = [self.addr.to_string()];
        let mut stream = connect_tls(&addrs, &name, &tls).await.expect("TLS");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        (String::from_utf8(head).expect("text"), Box::new(stream))
    }

    async fn connect(&self, key: &SecretKey) -> Node {
        let upgrade = format!(
            "GET {PATH} HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n"
        );
        let (head, stream) = self.http(&upgrade).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let mut node = Node {
            stream,
            derp: Client::new(key, *wg_public_key(key).as_bytes()),
        };
        assert_eq!(node.hear().await, Heard::Ready);
        node
    }
}

impl Node {
    async fn hear(&mut self) -> Heard {
        let mut output = Vec::new();
        let mut buffer = vec![0; 8192];
        loop {
            let heard = match self.derp.poll().expect("DERP") {
                Some(ClientEvent::Ready) => Some(Heard::Ready),
                Some(ClientEvent::Packet { payload, .. }) => Some(Heard::Packet(payload.to_vec())),
                Some(ClientEvent::Restarting) => Some(Heard::Restarting),
                Some(_) => Some(Heard::Other),
                None => None,
            };
            self.derp.take_output(&mut output);
            self.stream.write_all(&output).await.expect("written");
            output.clear();
            if let Some(heard) = heard {
                return heard;
            }
            match timeout(LIMIT, self.stream.read(&mut buffer))
                .await
                .expect("in time")
            {
                Ok(0) | Err(_) => return Heard::End,
                Ok(read) => self.derp.handle_bytes(&buffer[..read]),
            }
        }
    }
}

#[tokio::test]
async fn a_relay_serves_from_its_stored_list_without_a_coordinator_and_ends_cleanly() {
    let keys = [
        SecretKey::from_bytes([1; 32]),
        SecretKey::from_bytes([2; 32]),
    ];
    let mut relay = start(&keys).await;
    let mut one = relay.connect(&keys[0]).await;
    let mut two = relay.connect(&keys[1]).await;
    let mut frame = Vec::new();
    encode_send(&wg_public_key(&keys[1]), b"through TLS", &mut frame);
    one.stream.write_all(&frame).await.expect("written");
    assert_eq!(two.hear().await, Heard::Packet(b"through TLS".to_vec()));

    relay.trigger.trigger("the test is over");
    assert_eq!(one.hear().await, Heard::Restarting);
    assert_eq!(one.hear().await, Heard::End);
    let end = timeout(LIMIT, relay.task.finished())
        .await
        .expect("in time");
    assert_eq!(end, TaskEnd::Completed);
}

#[tokio::test]
async fn a_relay_nobody_is_connected_to_ends_cleanly() {
    let mut relay = start(&[]).await;
    relay.trigger.trigger("the test is over");
    let end = timeout(LIMIT, relay.task.finished())
        .await
        .expect("in time");
    assert_eq!(end, TaskEnd::Completed);
}

#[tokio::test]
async fn health_is_told_and_derp_is_offered_only_by_upgrade() {
    let relay = start(&[]).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: relay\r\n\r\n");
    for (path, status) in [("/health", "200"), ("/derp", "426"), ("/else", "404")] {
        let (head, _) = relay.http(&get(path)).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {head}"
        );
    }
}

#[tokio::test]
async fn stun_tells_a_client_its_address() {
    let relay = start(&[]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let own = socket.local_addr().expect("an address");
    let mut answer = [0; 100];
    socket.send_to(b"noise", relay.stun).await.expect("sent");
    socket
        .send_to(&stun::encode_request(&[5; 12]), relay.stun)
        .await
        .expect("sent");
    let len = timeout(LIMIT, socket.recv(&mut answer))
        .await
        .expect("in time")
        .expect("received");
    assert_eq!(stun::parse_response(&answer[..len]), Ok(([5; 12], own)));
}

#[tokio::test]
async fn its_status_is_told_while_it_runs_with_what_is_wrong() {
    let mut relay = start(&[SecretKey::from_bytes([1; 32])]).await;
    let dir = relay.dir.path().join("relay");
    let asked = async || -> Status {
        let answer = control_socket::ask(&dir, "status").await.expect("answered");
        serde_json::from_str(&answer).expect("a status")
    };
    let told = async {
        loop {
            // Nothing is wrong until the coordinator was tried.
            let status = asked().await;
            if !status.findings.is_empty() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let status = timeout(LIMIT, told).await.expect("in time");
    assert_eq!(status.schema, "mesh.relay/1");
    assert_eq!(status.id, RelayId::from_bytes(RELAY));
    assert_eq!(
        (status.derp_addr, status.stun_addr),
        (relay.addr, relay.stun)
    );
    assert_eq!((status.clients, status.allowed), (0, 1));
    assert_eq!(status.findings[0].code, "coordinator-unreachable");
    assert!(!Finding::any_error(&status.findings), "{status:?}");

    relay.trigger.trigger("the test is over");
    let end = timeout(LIMIT, relay.task.finished()).await;
    assert_eq!(end.expect("in time"), TaskEnd::Completed);
    let gone = control_socket::ask(&dir, "status").await;
    assert!(matches!(gone, Err(AskError::NotRunning)), "{gone:?}");
}
