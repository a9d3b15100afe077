//! A coordinator small enough to read: it lets everybody in, tells everybody of everybody, and
//! checks what a node must prove.

mod calls;
mod netmap;
mod port;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use mesh_api::model::node::NodeReport;
use mesh_api::tls::fingerprint;
use mesh_types::{IdentityPublicKey, JoinToken, NodeId, OverlayAddrs, Relay, TokenId};
use port::serve;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use x25519_dalek::StaticSecret;

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
