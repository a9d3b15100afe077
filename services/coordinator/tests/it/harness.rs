//! A coordinator on a free port with a clock of its own, and machines that talk to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use coordinator::{App, Clock as _, Config, ManualClock, REASON_KEY, WriteGuard};
use mesh_api::client::{ALPN_H2, connect};
use mesh_api::identity::{ENROL_DISCO, ENROL_WG, Identity, enrol_proof, renew_bytes};
use mesh_api::pb;
use mesh_api::pb::admin_service_client::AdminServiceClient;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::tls::{COORDINATOR_NAME, ClientCert, Pin, client_config};
use mesh_daemon::{Handles, ShutdownTrigger};
use mesh_types::{JoinToken, Timestamp};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// When the tests take place.
pub(crate) const START: Timestamp = Timestamp::from_secs(1_800_000_000);

pub(crate) struct Mesh {
    pub(crate) dir: Arc<TempDir>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) addr: SocketAddr,
    pub(crate) ca: CertificateDer<'static>,
    pub(crate) guard: WriteGuard,
    pub(crate) handles: Handles,
    operator: ClientCert,
    trigger: ShutdownTrigger,
    running: JoinHandle<anyhow::Result<()>>,
}

#[derive(Debug)]
struct TestTime(Arc<ManualClock>);

impl TimeProvider for TestTime {
    fn current_time(&self) -> Option<UnixTime> {
        let millis = self.0.now().as_unix_millis();
        Some(UnixTime::since_unix_epoch(Duration::from_millis(millis)))
    }
}

fn der_of_pem(pem: &str) -> Vec<u8> {
    let body: String = pem
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    base64::engine::general_purpose::STANDARD
        .decode(body)
        .expect("PEM")
}

pub(crate) fn config(dir: &TempDir) -> Config {
    let mut config = Config {
        state_dir: dir.path().join("state"),
        store: crate::engine::store(dir.path()),
        ..Config::default()
    };
    config.server.listen = "127.0.0.1:0".parse().expect("an address");
    config.admin = None;
    config
}

impl Mesh {
    pub(crate) async fn start() -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a directory"));
        Self::start_in(dir, Arc::new(ManualClock::new(START))).await
    }

    pub(crate) async fn start_in(dir: Arc<TempDir>, clock: Arc<ManualClock>) -> Self {
        let config = config(&dir);
        Self::start_with(dir, clock, config).await
    }

    pub(crate) async fn start_with(
        dir: Arc<TempDir>,
        clock: Arc<ManualClock>,
        config: Config,
    ) -> Self {
        let handles = Handles::default();
        let app = App::build_with_clock(config, handles.clone(), Arc::clone(&clock) as _)
            .await
            .expect("builds");
        let files = app.operator().expect("the first operator");
        let operator = ClientCert {
            certificate: der_of_pem(&files.cert_pem).into(),
            key_pkcs8: Zeroizing::new(der_of_pem(&files.key_pem)),
        };
        let (addr, ca, guard) = (
            app.local_addr(),
            app.ca_certificate().into(),
            app.write_guard(),
        );
        let (trigger, shutdown) = ShutdownTrigger::new(Duration::from_secs(3));
        let running = tokio::spawn(app.run(shutdown));
        Self {
            dir,
            clock,
            addr,
            ca,
            guard,
            handles,
            operator,
            trigger,
            running,
        }
    }

    /// Ends the coordinator in good order.
    pub(crate) async fn stop(self) -> (Arc<TempDir>, Arc<ManualClock>) {
        self.trigger.trigger("test");
        let ended = tokio::time::timeout(Duration::from_secs(10), self.running).await;
        ended
            .expect("ends in time")
            .expect("no panic")
            .expect("ends well");
        (self.dir, self.clock)
    }

    /// Ends the coordinator with no chance to write anything.
    pub(crate) async fn crash(self) {
        self.running.abort();
        let _aborted = self.running.await;
    }

    /// How the coordinator ended, which it did by itself within this time.
    #[allow(dead_code, reason = "asked on Postgres only")]
    pub(crate) async fn ended(self, within: Duration) -> anyhow::Result<()> {
        let ended = tokio::time::timeout(within, self.running).await;
        ended.expect("ends by itself").expect("no panic")
    }

    pub(crate) fn begin_stop(&self) {
        self.trigger.trigger("test");
    }

    /// TLS as clients use it, but by the test's clock.
    pub(crate) fn tls(
        &self,
        certificate: Option<ClientCert>,
        alpn: &[&[u8]],
    ) -> Arc<rustls::ClientConfig> {
        let tls = client_config(Pin::Ca(self.ca.clone()), certificate, alpn).expect("TLS");
        let mut tls = Arc::unwrap_or_clone(tls);
        tls.time_provider = Arc::new(TestTime(Arc::clone(&self.clock)));
        Arc::new(tls)
    }

    pub(crate) async fn channel(&self, certificate: Option<ClientCert>) -> Channel {
        let tls = self.tls(certificate, &[ALPN_H2]);
        connect(&[self.addr.to_string()], COORDINATOR_NAME, tls)
            .await
            .expect("connects")
    }

    pub(crate) async fn anonymous(&self) -> ControlServiceClient<Channel> {
        ControlServiceClient::new(self.channel(None).await)
    }

    pub(crate) async fn operator_channel(&self) -> Channel {
        self.channel(Some(self.operator.clone())).await
    }

    pub(crate) async fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.operator_channel().await)
    }

    pub(crate) async fn token_with(&self, wish: pb::CreateTokenRequest) -> JoinToken {
        let made = self
            .admin()
            .await
            .create_token(wish)
            .await
            .expect("a token");
        made.into_inner().token.parse().expect("a token")
    }

    /// A one-use token of the default network.
    pub(crate) async fn token(&self, role: pb::Role) -> JoinToken {
        self.token_with(pb::CreateTokenRequest {
            role: role.into(),
            ..Default::default()
        })
        .await
    }

    pub(crate) async fn network(&self, name: &str) {
        let wish = pb::CreateNetworkRequest {
            name: name.to_owned(),
        };
        self.admin()
            .await
            .create_network(wish)
            .await
            .expect("a network");
    }

    /// A machine that has joined the default network.
    pub(crate) async fn joined(&self, role: pb::Role, hostname: &str) -> Member {
        let token = self.token(role).await;
        Machine::new()
            .join(self, &token, hostname)
            .await
            .expect("joins")
    }

    pub(crate) async fn joined_in(&self, network: &str, role: pb::Role, hostname: &str) -> Member {
        let wish = pb::CreateTokenRequest {
            network: network.to_owned(),
            role: role.into(),
            ..Default::default()
        };
        let token = self.token_with(wish).await;
        Machine::new()
            .join(self, &token, hostname)
            .await
            .expect("joins")
    }

    pub(crate) async fn nodes(&self) -> Vec<pb::Node> {
        let listed = self
            .admin()
            .await
            .list_nodes(pb::ListNodesRequest::default())
            .await;
        listed.expect("lists").into_inner().nodes
    }

    pub(crate) async fn remove(&self, network: &str, name: &str) {
        let request = pb::RemoveNodeRequest {
            node: node_ref(network, name),
        };
        self.admin()
            .await
            .remove_node(request)
            .await
            .expect("removes");
    }

    /// Kinds and details of all events so far.
    pub(crate) async fn events(&self) -> Vec<pb::Event> {
        let request = pb::WatchEventsRequest {
            limit: 1000,
            ..Default::default()
        };
        let mut stream = self
            .admin()
            .await
            .watch_events(request)
            .await
            .expect("watches")
            .into_inner();
        let mut events = Vec::new();
        while let Some(event) = stream.message().await.expect("reads") {
            events.push(event);
        }
        events
    }

    /// Waits for an event of this kind about `subject`; gives what the newest one says.
    pub(crate) async fn told(&self, kind: &str, subject: &str) -> String {
        eventually(&format!("an event {kind} of {subject}"), async || {
            let mut events = self.events().await.into_iter().rev();
            let event = events.find(|event| event.kind == kind && event.subject == subject);
            event.map(|event| event.detail)
        })
        .await
    }
}

pub(crate) fn node_ref(network: &str, name: &str) -> Option<pb::NodeRef> {
    Some(pb::NodeRef {
        network: network.to_owned(),
        name: name.to_owned(),
    })
}

/// The machine-readable word of a refusal.
pub(crate) fn word(status: &Status) -> &str {
    status
        .metadata()
        .get(REASON_KEY)
        .map_or("", |word| word.to_str().expect("ASCII"))
}

/// The word of a call that must be refused.
pub(crate) fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>) -> String {
    word(&outcome.expect_err("must be refused")).to_owned()
}

/// A machine with its three keys.
pub(crate) struct Machine {
    pub(crate) identity: Identity,
    pub(crate) wg: StaticSecret,
    pub(crate) disco: StaticSecret,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let secret = || {
            let seed = Identity::generate().expect("randomness");
            let mut bytes = [0; 32];
            bytes.copy_from_slice(&seed.public_key().as_point()[1..33]);
            StaticSecret::from(bytes)
        };
        Self {
            identity: Identity::generate().expect("a key"),
            wg: secret(),
            disco: secret(),
        }
    }

    /// A whole request with proofs for a fresh challenge.
    pub(crate) async fn request(
        &self,
        mesh: &Mesh,
        token: &JoinToken,
        host: &str,
    ) -> pb::EnrolRequest {
        let mut client = mesh.anonymous().await;
        let challenge = client
            .challenge(pb::ChallengeRequest {})
            .await
            .expect("a challenge")
            .into_inner();
        self.answer(&challenge, token, host)
    }

    pub(crate) fn answer(
        &self,
        challenge: &pb::ChallengeResponse,
        token: &JoinToken,
        hostname: &str,
    ) -> pb::EnrolRequest {
        let theirs: [u8; 32] = challenge.dh_public.as_slice().try_into().expect("32 bytes");
        let theirs = PublicKey::from(theirs);
        let spki = self.identity.public_key().as_spki_der();
        let proof = |context, secret: &StaticSecret| {
            let shared = secret.diffie_hellman(&theirs).to_bytes();
            enrol_proof(context, &shared, &challenge.nonce, spki).to_vec()
        };
        pb::EnrolRequest {
            token_id: token.id.as_bytes().to_vec(),
            token_secret: token.secret.to_vec(),
            nonce: challenge.nonce.clone(),
            hostname: hostname.to_owned(),
            csr: self.identity.csr_der().expect("a request"),
            wg_key: PublicKey::from(&self.wg).as_bytes().to_vec(),
            disco_key: PublicKey::from(&self.disco).as_bytes().to_vec(),
            wg_proof: proof(ENROL_WG, &self.wg),
            disco_proof: proof(ENROL_DISCO, &self.disco),
            version: "0.1.0".to_owned(),
            permit: Vec::new(),
            roles: Vec::new(),
        }
    }

    pub(crate) async fn enrol(
        &self,
        mesh: &Mesh,
        token: &JoinToken,
        hostname: &str,
    ) -> Result<pb::EnrolResponse, Status> {
        let request = self.request(mesh, token, hostname).await;
        send(mesh, request).await
    }

    pub(crate) async fn join(
        self,
        mesh: &Mesh,
        token: &JoinToken,
        hostname: &str,
    ) -> Result<Member, Status> {
        let answer = self.enrol(mesh, token, hostname).await?;
        Ok(Member {
            machine: self,
            answer,
        })
    }
}

pub(crate) async fn send(
    mesh: &Mesh,
    request: pb::EnrolRequest,
) -> Result<pb::EnrolResponse, Status> {
    mesh.anonymous()
        .await
        .enrol(request)
        .await
        .map(tonic::Response::into_inner)
}

/// A machine that has joined.
pub(crate) struct Member {
    pub(crate) machine: Machine,
    pub(crate) answer: pb::EnrolResponse,
}

impl Member {
    pub(crate) fn certificate(&self) -> ClientCert {
        ClientCert {
            certificate: self.answer.certificate.clone().into(),
            key_pkcs8: Zeroizing::new(self.machine.identity.pkcs8().to_vec()),
        }
    }

    pub(crate) async fn channel(&self, mesh: &Mesh) -> Channel {
        mesh.channel(Some(self.certificate())).await
    }

    pub(crate) fn wg_key(&self) -> Vec<u8> {
        PublicKey::from(&self.machine.wg).as_bytes().to_vec()
    }

    /// A renewal signed by `signer` over a fresh nonce.
    pub(crate) async fn renewal(&self, mesh: &Mesh, signer: &Identity) -> pb::RenewRequest {
        let mut client = mesh.anonymous().await;
        let challenge = client
            .challenge(pb::ChallengeRequest {})
            .await
            .expect("a challenge")
            .into_inner();
        let csr = self.machine.identity.csr_der().expect("a request");
        let id = self.answer.node_id.as_slice().try_into().expect("16 bytes");
        let signature = signer
            .sign(&renew_bytes(&challenge.nonce, &id, &csr))
            .expect("signs");
        pb::RenewRequest {
            node_id: self.answer.node_id.clone(),
            nonce: challenge.nonce,
            csr,
            signature,
        }
    }

    pub(crate) async fn renew(&self, mesh: &Mesh) -> Result<pb::RenewResponse, Status> {
        let request = self.renewal(mesh, &self.machine.identity).await;
        mesh.anonymous()
            .await
            .renew(request)
            .await
            .map(tonic::Response::into_inner)
    }
}

/// Waits until `check` gives something, at most 5 s.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "never came true: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
