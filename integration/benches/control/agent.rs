//! One simulated agent: its own keys, its own TLS connection and Sync stream, heartbeats and
//! reports as a node sends them, and a node's back-off between streams.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures_util::Stream;
use integration::raw::RawNode;
use mesh_api::client::{ALPN_H2, connect_lazy};
use mesh_api::identity::Identity;
use mesh_api::pb;
use mesh_api::pb::sync_request::Message;
use mesh_api::tls::{COORDINATOR_NAME, Pin, client_config};
use mesh_types::Timestamp;
use mesh_types::heartbeat::{HEARTBEAT_INTERVAL_SECS, signed_bytes};
use prost::Message as _;
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tonic::Request;

use super::fleet::Shared;
use super::wire::{Body, Chunk, SyncCodec, holds, id_of};

const HEARTBEAT: Duration = Duration::from_secs(HEARTBEAT_INTERVAL_SECS);
/// A node's back-off (libs/node): from a quarter of a second up to 5 s, with jitter.
const BACKOFF_START: Duration = Duration::from_millis(250);
const BACKOFF_CAP: Duration = Duration::from_secs(5);

type Requests = mpsc::Sender<pb::SyncRequest>;

/// An agent that has joined.
pub(crate) struct Agent {
    id: [u8; 16],
    identity: Arc<Identity>,
    /// Kept across streams, as a node keeps it, so that TLS sessions can be resumed.
    tls: Arc<rustls::ClientConfig>,
    shared: Arc<Shared>,
    reports: mpsc::Receiver<pb::NodeReport>,
    report: pb::NodeReport,
    cursor: Option<pb::Cursor>,
    peers: HashSet<[u8; 16]>,
    /// Within an update of several parts.
    partial: bool,
    /// Whether the running stream has told all.
    whole: bool,
    generation: u64,
    probed: u64,
    failures: u32,
    random: u64,
}

/// What a stream needs to send heartbeats.
struct Live {
    nonce: Vec<u8>,
    sequence: u64,
}

/// What a worker says of itself: its console, its SSH, where it is.
pub(crate) fn first_report(n: usize) -> anyhow::Result<pb::NodeReport> {
    let service = |name: &str, kind: pb::ServiceKind, port| pb::Service {
        name: name.to_owned(),
        kind: kind.into(),
        port,
    };
    let [high, low] = u16::try_from(n)?.to_be_bytes();
    let endpoint = |addr: [u8; 4]| pb::Endpoint {
        addr: addr.to_vec(),
        port: 51820,
    };
    Ok(pb::NodeReport {
        endpoints: vec![endpoint([10, 1, high, low]), endpoint([203, 0, high, low])],
        services: vec![
            service("console", pb::ServiceKind::Console, 9090),
            service("ssh", pb::ServiceKind::Ssh, 22),
        ],
        ssh_user: "root".to_owned(),
        ..pb::NodeReport::default()
    })
}

impl Agent {
    pub(crate) fn new(
        node: &RawNode,
        n: usize,
        shared: Arc<Shared>,
        reports: mpsc::Receiver<pb::NodeReport>,
    ) -> anyhow::Result<Self> {
        let ca = CertificateDer::from(node.enrolled.ca_certificate.clone());
        Ok(Self {
            id: node.id()?.to_bytes(),
            identity: Arc::clone(&node.applicant.identity),
            tls: client_config(Pin::Ca(ca), Some(node.client_cert()), &[ALPN_H2])?,
            shared,
            reports,
            report: first_report(n)?,
            cursor: None,
            peers: HashSet::new(),
            partial: false,
            whole: false,
            generation: 0,
            probed: 0,
            failures: 0,
            random: u64::try_from(n)? + 1,
        })
    }

    /// Streams, one after the other, for as long as the bench runs.
    pub(crate) async fn run(mut self) {
        loop {
            if let Err(error) = self.stream().await {
                self.shared.note_failure(&error);
            }
            if std::mem::take(&mut self.whole) {
                self.shared.no_longer_whole(self.generation);
            }
            let cap = BACKOFF_START * 2_u32.pow(self.failures.min(10));
            self.failures += 1;
            let wait = self.jittered(cap.min(BACKOFF_CAP));
            sleep(wait).await;
        }
    }

    /// Between half of `cap` and all of it.
    fn jittered(&mut self, cap: Duration) -> Duration {
        // xorshift64*: each agent has its own seed.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let part = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 48;
        let part = u32::try_from(part).unwrap_or(0);
        cap / 2 + cap * part / (2 * 65_536)
    }

    async fn stream(&mut self) -> anyhow::Result<()> {
        let mut cut = self.shared.cut.subscribe();
        self.generation = self.shared.generation();
        let channel = connect_lazy(&self.shared.addrs, COORDINATOR_NAME, Arc::clone(&self.tls));
        let (requests, outbound) = mpsc::channel(8);
        let hello = pb::SyncHello {
            cursor: self.cursor,
            version: "bench".to_owned(),
        };
        send(&requests, Message::Hello(hello)).await?;
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.context("connect")?;
        let path = http::uri::PathAndQuery::from_static("/mesh.v1.ControlService/Sync");
        let request = Request::new(stream_of(outbound));
        let mut answers = grpc.streaming(request, path, SyncCodec).await?.into_inner();
        let mut live: Option<Live> = None;
        let mut beat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.partial = false;
        loop {
            tokio::select! {
                answer = answers.message() => match answer?.and_then(|answer| answer.body) {
                    Some(Body::Welcome(welcome)) => {
                        self.failures = 0;
                        send(&requests, Message::Report(self.report.clone())).await?;
                        let live = live.insert(Live { nonce: welcome.nonce, sequence: 0 });
                        self.heartbeat(live, &requests).await?;
                    }
                    Some(Body::Netmap(chunk)) => self.take(&chunk),
                    Some(Body::HeartbeatAck(ack)) if !ack.refusal.is_empty() => {
                        anyhow::bail!("a heartbeat was refused: {}", ack.refusal);
                    }
                    Some(Body::HeartbeatAck(_)) => {}
                    Some(Body::Goodbye(_)) | None => return Ok(()),
                },
                Some(report) = self.reports.recv() => {
                    self.report = report.clone();
                    self.shared.count_sent();
                    send(&requests, Message::Report(report)).await?;
                }
                _ = beat.tick() => if let Some(live) = &mut live {
                    self.heartbeat(live, &requests).await?;
                },
                _ = cut.changed() => return Ok(()),
            }
        }
    }

    async fn heartbeat(&self, live: &mut Live, requests: &Requests) -> anyhow::Result<()> {
        live.sequence += 1;
        let body = pb::HeartbeatBody {
            node_id: self.id.to_vec(),
            sequence: live.sequence,
            time: Timestamp::from(SystemTime::now()).as_micros(),
            status: String::new(),
        }
        .encode_to_vec();
        let signature = self.identity.sign(&signed_bytes(&live.nonce, &body))?;
        send(
            requests,
            Message::Heartbeat(pb::Heartbeat { body, signature }),
        )
        .await
    }

    fn take(&mut self, chunk: &Chunk) {
        let before = self.peers.len();
        if chunk.full && !self.partial {
            self.peers.clear();
        }
        self.peers
            .extend(chunk.peers.iter().filter_map(|peer| id_of(peer)));
        for removed in &chunk.removed {
            if let Some(id) = removed.first_chunk() {
                self.peers.remove(id);
            }
        }
        self.shared.count_part(chunk, before, self.peers.len());
        if let Some(probe) = self
            .shared
            .probe()
            .filter(|probe| probe.number != self.probed)
        {
            let mut changed = chunk.peers.iter().chain(&chunk.patches);
            if changed.any(|bytes| holds(bytes, &probe.marker)) {
                self.probed = probe.number;
                probe.seen();
            }
        }
        self.partial = !chunk.last;
        if chunk.last {
            self.cursor = chunk.cursor;
            if !std::mem::replace(&mut self.whole, true) {
                self.shared.now_whole(self.generation);
            }
        }
    }
}

async fn send(requests: &Requests, message: Message) -> anyhow::Result<()> {
    let request = pb::SyncRequest {
        message: Some(message),
    };
    requests.send(request).await.context("the stream ended")
}

fn stream_of<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        let next = receiver.recv().await?;
        Some((next, receiver))
    })
}
