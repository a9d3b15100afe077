//! A coordinator small enough to read: it lets everybody in, tells everybody of everybody, and
//! checks what a node must prove.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use mesh_api::identity::{ENROL_DISCO, ENROL_WG, verify, verify_enrol_proof};
use mesh_api::model::node::NodeReport;
use mesh_api::pb;
use mesh_api::pb::control_service_server::{ControlService, ControlServiceServer};
use mesh_api::tls::{COORDINATOR_NAME, fingerprint};
use mesh_types::heartbeat::signed_bytes;
use mesh_types::{
    Cursor, FilterRule, IdentityPublicKey, JoinToken, NetworkId, NodeId, NodeState, OverlayAddrs,
    PacketFilter, Peer, PortRange, Protocol, Relay, Role, SelfNode, Timestamp, TokenId,
};
use prost::Message as _;
use rcgen::CertificateSigningRequestParams;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use x25519_dalek::{PublicKey, StaticSecret};

use super::authority::Ca;

pub(crate) const NETWORK: [u8; 16] = [7; 16];

/// What the tests turn and read.
pub(crate) struct Facts {
    nodes: BTreeMap<NodeId, Member>,
    challenges: HashMap<Vec<u8>, StaticSecret>,
    pub(crate) relays: Vec<Relay>,
    pub(crate) heartbeats: u64,
    pub(crate) refused: Vec<String>,
    /// The next so many enrolments are done but their answers are lost.
    pub(crate) lose_answers: u32,
    pub(crate) clock_offset: i64,
    pub(crate) certificate_life: Duration,
    pub(crate) renewals: u32,
}

struct Member {
    identity: IdentityPublicKey,
    token: TokenId,
    name: String,
    addrs: OverlayAddrs,
    wg: [u8; 32],
    disco: [u8; 32],
    report: NodeReport,
    removed: bool,
}

pub(crate) struct Coordinator {
    pub(crate) addr: SocketAddr,
    pub(crate) ca: Arc<Ca>,
    shared: Arc<Shared>,
    /// Its own, so that stopping it ends its connections too, as a killed process would.
    runtime: Option<Runtime>,
}

struct Shared {
    facts: Mutex<Facts>,
    version: watch::Sender<u64>,
    ca: Arc<Ca>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts
            .lock()
            .expect("no test panics while it holds this")
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.stop();
    }
}

fn start(listener: std::net::TcpListener, shared: Arc<Shared>) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    listener.set_nonblocking(true).expect("a socket");
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).expect("a socket");
        serve(listener, shared).await;
    });
    runtime
}

impl Coordinator {
    pub(crate) fn start() -> Self {
        let ca = Arc::new(Ca::new());
        let shared = Arc::new(Shared {
            facts: Mutex::new(Facts {
                nodes: BTreeMap::new(),
                challenges: HashMap::new(),
                relays: Vec::new(),
                heartbeats: 0,
                refused: Vec::new(),
                lose_answers: 0,
                clock_offset: 0,
                certificate_life: Duration::from_secs(3600),
                renewals: 0,
            }),
            version: watch::Sender::new(1),
            ca: Arc::clone(&ca),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("bound");
        let runtime = Some(start(listener, Arc::clone(&shared)));
        Self {
            addr,
            ca,
            shared,
            runtime,
        }
    }

    /// Stops serving: every connection ends.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Serves again at the same address, with the same facts.
    pub(crate) async fn restart(&mut self) {
        self.stop();
        let listener = loop {
            // The former socket is closed by another thread.
            match TcpListener::bind(self.addr).await {
                Ok(listener) => break listener.into_std().expect("a socket"),
                Err(_) => tokio::task::yield_now().await,
            }
        };
        self.runtime = Some(start(listener, Arc::clone(&self.shared)));
    }

    pub(crate) fn token(&self, n: u8) -> JoinToken {
        JoinToken {
            ca_fingerprint: fingerprint(&self.ca.der).expect("a certificate"),
            id: TokenId::from_bytes([n; 16]),
            secret: [n; 32],
            coordinators: vec![self.addr.to_string()],
        }
    }

    /// Changes facts and tells every node.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        let result = change(&mut self.shared.lock());
        self.shared.version.send_modify(|version| *version += 1);
        result
    }

    pub(crate) fn remove(&self, node: NodeId) {
        self.change(|facts| {
            if let Some(member) = facts.nodes.get_mut(&node) {
                member.removed = true;
            }
        });
    }

    pub(crate) fn report_of(&self, node: NodeId) -> NodeReport {
        self.shared.lock().nodes[&node].report.clone()
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Facts) -> T) -> T {
        read(&self.shared.lock())
    }
}

impl Facts {
    fn netmap(&self, node: NodeId, version: u64) -> pb::NetmapChunk {
        let own = &self.nodes[&node];
        let others = self
            .nodes
            .iter()
            .filter(|(id, member)| **id != node && !member.removed);
        let peers = others.map(|(id, member)| {
            Peer {
                id: *id,
                name: member.name.parse().expect("a name"),
                role: Role::Worker,
                addrs: member.addrs,
                routes: Vec::new(),
                wg_key: mesh_types::WgPublicKey::from_bytes(member.wg),
                disco_key: mesh_types::DiscoPublicKey::from_bytes(member.disco),
                services: member.report.services.clone(),
                ssh_host_keys: Vec::new(),
                ssh_user: String::new(),
                endpoints: member.report.endpoints.clone(),
                home_relay: member.report.home_relay,
                state: NodeState::Online,
            }
            .into()
        });
        let everybody = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"];
        let filter = PacketFilter {
            rules: vec![FilterRule {
                sources: everybody.map(|net| net.parse().expect("a prefix")).to_vec(),
                protocols: vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp],
                ports: vec![PortRange::ALL],
            }],
        };
        let self_node = SelfNode {
            id: node,
            network: NetworkId::from_bytes(NETWORK),
            network_name: "default".parse().expect("a name"),
            name: own.name.parse().expect("a name"),
            role: Role::Worker,
            addrs: own.addrs,
            console_prefix: format!("/{}/", own.name),
            ssh_ca: String::new(),
        };
        pb::NetmapChunk {
            cursor: Some(
                Cursor {
                    version,
                    epoch: 1,
                    volatile: version,
                }
                .into(),
            ),
            full: true,
            last: true,
            node: Some(self_node.into()),
            peers: peers.collect(),
            removed: Vec::new(),
            patches: Vec::new(),
            filter: Some(filter.into()),
            relays: Some(pb::RelayList {
                relays: self.relays.iter().cloned().map(Into::into).collect(),
            }),
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(shared.ca.der.clone()).expect("a CA");
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .expect("roots");
    let (chain, key) = shared.ca.server(COORDINATOR_NAME);
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key.into())
        .expect("fits");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (ready, incoming) = mpsc::channel::<io::Result<Accepted>>(16);
    let accept = async move {
        let mut handshakes = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            handshakes.spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _gone = ready.send(Ok(Accepted(stream))).await;
                }
            });
        }
    };
    let service = Arc::clone(&shared);
    let grpc = tonic::transport::Server::builder()
        .add_service(ControlServiceServer::new(Service(service)))
        .serve_with_incoming(ReceiverStream::new(incoming));
    tokio::select! {
        () = accept => {}
        _ended = grpc => {}
    }
}

struct Accepted(TlsStream<TcpStream>);

/// The certificate shown on a connection.
#[derive(Clone)]
struct Shown(Option<CertificateDer<'static>>);

impl tonic::transport::server::Connected for Accepted {
    type ConnectInfo = Shown;

    fn connect_info(&self) -> Shown {
        let certificates = self.0.get_ref().1.peer_certificates();
        Shown(
            certificates
                .and_then(|chain| chain.first())
                .map(|cert| cert.clone().into_owned()),
        )
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

struct Service(Arc<Shared>);

fn wall(facts: &Facts) -> i64 {
    Timestamp::from(SystemTime::now()).as_micros() + facts.clock_offset
}

fn refused(word: &'static str, text: &str) -> Status {
    let mut status = Status::permission_denied(text);
    status
        .metadata_mut()
        .insert("mesh-error", word.parse().expect("ASCII"));
    status
}

fn spki(csr: &[u8]) -> Option<IdentityPublicKey> {
    use rcgen::PublicKeyData as _;
    let csr = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).ok()?;
    IdentityPublicKey::from_spki_der(&csr.public_key.subject_public_key_info()).ok()
}

#[tonic::async_trait]
impl ControlService for Service {
    async fn challenge(
        &self,
        _: Request<pb::ChallengeRequest>,
    ) -> Result<Response<pb::ChallengeResponse>, Status> {
        let mut facts = self.0.lock();
        let mut nonce = vec![0; 32];
        let mut secret = [0; 32];
        let random = ring::rand::SystemRandom::new();
        ring::rand::SecureRandom::fill(&random, &mut nonce).expect("randomness");
        ring::rand::SecureRandom::fill(&random, &mut secret).expect("randomness");
        let secret = StaticSecret::from(secret);
        let dh_public = PublicKey::from(&secret).as_bytes().to_vec();
        facts.challenges.insert(nonce.clone(), secret);
        let server_time = wall(&facts);
        Ok(Response::new(pb::ChallengeResponse {
            nonce,
            dh_public,
            server_time,
        }))
    }

    async fn enrol(
        &self,
        request: Request<pb::EnrolRequest>,
    ) -> Result<Response<pb::EnrolResponse>, Status> {
        let request = request.into_inner();
        let response = {
            let mut facts = self.0.lock();
            enrol(&mut facts, &self.0.ca, &request)?
        };
        self.0.version.send_modify(|version| *version += 1);
        let mut facts = self.0.lock();
        if facts.lose_answers > 0 {
            facts.lose_answers -= 1;
            return Err(Status::unknown("the answer was lost"));
        }
        Ok(Response::new(response))
    }

    async fn renew(
        &self,
        request: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::RenewResponse>, Status> {
        let pb::RenewRequest {
            node_id,
            nonce,
            csr,
            signature,
        } = request.into_inner();
        let mut facts = self.0.lock();
        facts
            .challenges
            .remove(&nonce)
            .ok_or_else(|| Status::aborted("no such challenge"))?;
        let id = NodeId::try_from(node_id.as_slice()).expect("an id");
        let life = facts.certificate_life;
        let member = facts
            .nodes
            .get(&id)
            .ok_or_else(|| refused("removed", "unknown"))?;
        let signed = mesh_api::identity::renew_bytes(&nonce, id.as_bytes(), &csr);
        if !verify(&member.identity, &signed, &signature) {
            return Err(Status::unauthenticated("bad signature"));
        }
        let certificate = self.0.ca.node(&csr, id, life);
        facts.renewals += 1;
        Ok(Response::new(pb::RenewResponse {
            certificate,
            ca_certificate: self.0.ca.der.to_vec(),
        }))
    }

    type SyncStream = ReceiverStream<Result<pb::SyncResponse, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<pb::SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let shown = request
            .extensions()
            .get::<Shown>()
            .and_then(|shown| shown.0.clone());
        let shown = shown.ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let subject = mesh_api::uri::Subject::from_certificate(&shown);
        let Ok(mesh_api::uri::Subject::Node { network: _, node }) = subject else {
            return Err(Status::unauthenticated("not a node"));
        };
        if self
            .0
            .lock()
            .nodes
            .get(&node)
            .is_none_or(|member| member.removed)
        {
            return Err(refused("removed", "this node was removed from the mesh"));
        }
        let (out, responses) = mpsc::channel(64);
        tokio::spawn(session(
            Arc::clone(&self.0),
            node,
            request.into_inner(),
            out,
        ));
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn leave(
        &self,
        request: Request<pb::LeaveRequest>,
    ) -> Result<Response<pb::LeaveResponse>, Status> {
        let shown = request
            .extensions()
            .get::<Shown>()
            .and_then(|shown| shown.0.clone());
        let shown = shown.ok_or_else(|| Status::unauthenticated("no certificate"))?;
        if let Ok(mesh_api::uri::Subject::Node { network: _, node }) =
            mesh_api::uri::Subject::from_certificate(&shown)
        {
            self.0.lock().nodes.remove(&node);
            self.0.version.send_modify(|version| *version += 1);
        }
        Ok(Response::new(pb::LeaveResponse {}))
    }
}

fn enrol(
    facts: &mut Facts,
    ca: &Ca,
    request: &pb::EnrolRequest,
) -> Result<pb::EnrolResponse, Status> {
    let secret = facts
        .challenges
        .remove(&request.nonce)
        .ok_or_else(|| refused("nonce-unknown", "no such challenge"))?;
    if request.token_secret == [99; 32] {
        return Err(refused("token-revoked", "this join token was revoked"));
    }
    let identity = spki(&request.csr).ok_or_else(|| Status::invalid_argument("bad CSR"))?;
    let keys = [
        (ENROL_WG, &request.wg_key, &request.wg_proof),
        (ENROL_DISCO, &request.disco_key, &request.disco_proof),
    ];
    for (context, key, proof) in keys {
        let key = <[u8; 32]>::try_from(key.as_slice()).expect("a key");
        let shared = secret.diffie_hellman(&PublicKey::from(key));
        let spki = identity.as_spki_der();
        if !verify_enrol_proof(context, shared.as_bytes(), &request.nonce, spki, proof) {
            return Err(refused("bad-proof", "not proven"));
        }
    }
    let token = TokenId::try_from(request.token_id.as_slice()).expect("an id");
    let known = facts.nodes.iter().find(|(_, member)| member.token == token);
    let id = match known {
        Some((id, member)) if member.identity == identity => *id,
        Some(_) => return Err(refused("token-used", "this join token has been used")),
        None => {
            let n = u8::try_from(facts.nodes.len() + 1).expect("few nodes");
            let id = NodeId::from_bytes([n; 16]);
            let addrs = OverlayAddrs {
                v4: std::net::Ipv4Addr::new(100, 64, 0, n),
                v6: format!("fd7a:115c:a1e0::{n:x}")
                    .parse()
                    .expect("an address"),
            };
            let member = Member {
                identity,
                token,
                name: request.hostname.clone(),
                addrs,
                wg: request.wg_key.as_slice().try_into().expect("a key"),
                disco: request.disco_key.as_slice().try_into().expect("a key"),
                report: NodeReport::default(),
                removed: false,
            };
            facts.nodes.insert(id, member);
            id
        }
    };
    let member = &facts.nodes[&id];
    Ok(pb::EnrolResponse {
        node_id: id.as_bytes().to_vec(),
        network: "default".into(),
        network_id: NETWORK.to_vec(),
        name: member.name.clone(),
        role: pb::Role::Worker.into(),
        addrs: Some(member.addrs.into()),
        certificate: ca.node(&request.csr, id, facts.certificate_life),
        ca_certificate: ca.der.to_vec(),
        console_prefix: format!("/{}/", member.name),
        owner: "owner".into(),
    })
}

async fn session(
    shared: Arc<Shared>,
    node: NodeId,
    mut requests: Streaming<pb::SyncRequest>,
    out: mpsc::Sender<Result<pb::SyncResponse, Status>>,
) {
    use pb::sync_response::Message;
    let say = |message| {
        out.send(Ok(pb::SyncResponse {
            message: Some(message),
        }))
    };
    let hello = requests.message().await;
    let Ok(Some(pb::SyncRequest {
        message: Some(pb::sync_request::Message::Hello(_)),
    })) = hello
    else {
        return;
    };
    let nonce = b"a nonce of the stream".to_vec();
    let server_time = wall(&shared.lock());
    let welcome = pb::SyncWelcome {
        nonce: nonce.clone(),
        server_time,
    };
    let _gone = say(Message::Welcome(welcome)).await;
    let mut version = shared.version.subscribe();
    version.mark_changed();
    let mut sequence = 0;
    loop {
        tokio::select! {
            changed = version.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = *version.borrow_and_update();
                let message = {
                    let facts = shared.lock();
                    match facts.nodes.get(&node) {
                        Some(member) if !member.removed => Message::Netmap(facts.netmap(node, now)),
                        _ => Message::Goodbye(pb::SyncGoodbye {
                            reason: pb::sync_goodbye::Reason::Removed.into(),
                        }),
                    }
                };
                let last = matches!(message, Message::Goodbye(_));
                if say(message).await.is_err() || last {
                    return;
                }
            }
            request = requests.message() => {
                let Ok(Some(pb::SyncRequest { message: Some(message) })) = request else { return };
                match message {
                    pb::sync_request::Message::Report(report) => {
                        let report = NodeReport::try_from(report).expect("a good report");
                        let mut facts = shared.lock();
                        if let Some(member) = facts.nodes.get_mut(&node) {
                            member.report = report;
                        }
                        drop(facts);
                        shared.version.send_modify(|version| *version += 1);
                    }
                    pb::sync_request::Message::Heartbeat(beat) => {
                        let refusal = check(&shared, node, &nonce, &beat, &mut sequence);
                        let ack = pb::HeartbeatAck { sequence, refusal, server_time };
                        let _gone = say(Message::HeartbeatAck(ack)).await;
                    }
                    pb::sync_request::Message::Hello(_) => return,
                }
            }
        }
    }
}

fn check(
    shared: &Shared,
    node: NodeId,
    nonce: &[u8],
    beat: &pb::Heartbeat,
    sequence: &mut u64,
) -> String {
    let mut facts = shared.lock();
    let Some(member) = facts.nodes.get(&node) else {
        return "wrong-node".into();
    };
    let signed = verify(
        &member.identity,
        &signed_bytes(nonce, &beat.body),
        &beat.signature,
    );
    let body = pb::HeartbeatBody::decode(beat.body.as_slice()).expect("a body");
    let word = if !signed {
        "bad-signature"
    } else if body.node_id != node.as_bytes() {
        "wrong-node"
    } else if body.sequence != *sequence + 1 {
        "replay"
    } else {
        ""
    };
    *sequence = body.sequence;
    facts.heartbeats += 1;
    if !word.is_empty() {
        facts.refused.push(word.to_owned());
    }
    word.to_owned()
}
