//! All simulated agents, what they see together, and the waiting for it.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::raw::RawNode;
use mesh_api::pb;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::agent::{Agent, first_report};
use super::wire::Chunk;

/// How often a condition is looked at: also the resolution of the figures in seconds.
const POLL: Duration = Duration::from_millis(2);

/// A change that is looked for at every agent.
#[derive(Debug)]
pub(crate) struct Probe {
    /// From 1.
    pub(crate) number: u64,
    /// What only the new state of the node holds.
    pub(crate) marker: Vec<u8>,
    begun: Instant,
    latencies: Mutex<Vec<Duration>>,
}

impl Probe {
    /// An agent has it.
    pub(crate) fn seen(&self) {
        let latency = self.begun.elapsed();
        self.latencies().push(latency);
    }

    fn latencies(&self) -> std::sync::MutexGuard<'_, Vec<Duration>> {
        self.latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What agents and bench share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) addrs: Vec<String>,
    /// A new value ends every stream at once.
    pub(crate) cut: watch::Sender<u64>,
    probe: RwLock<Option<Arc<Probe>>>,
    started: Instant,
    /// Streams of earlier generations no longer count.
    generation: AtomicU64,
    whole: AtomicUsize,
    known: AtomicI64,
    parts: AtomicU64,
    payload: AtomicU64,
    sent: AtomicU64,
    /// Microseconds after `started`.
    last_part: AtomicU64,
    failures: AtomicU64,
    last_failure: Mutex<String>,
}

/// Counted since the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    /// Netmap parts that agents received.
    pub(crate) parts: u64,
    /// Bytes of peers and patches in them.
    pub(crate) payload: u64,
    /// Messages that agents sent, heartbeats and first reports aside.
    pub(crate) sent: u64,
}

impl Shared {
    fn new(addrs: Vec<String>) -> Self {
        Self {
            addrs,
            cut: watch::Sender::new(0),
            probe: RwLock::new(None),
            started: Instant::now(),
            generation: AtomicU64::new(0),
            whole: AtomicUsize::new(0),
            known: AtomicI64::new(0),
            parts: AtomicU64::new(0),
            payload: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            last_part: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            last_failure: Mutex::new(String::new()),
        }
    }

    pub(crate) fn probe(&self) -> Option<Arc<Probe>> {
        let probe = self.probe.read().unwrap_or_else(PoisonError::into_inner);
        probe.clone()
    }

    fn set_probe(&self, probe: Option<Arc<Probe>>) {
        *self.probe.write().unwrap_or_else(PoisonError::into_inner) = probe;
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// A stream of this generation has told all.
    pub(crate) fn now_whole(&self, generation: u64) {
        if generation == self.generation() {
            self.whole.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A stream that had told all has ended.
    pub(crate) fn no_longer_whole(&self, generation: u64) {
        if generation == self.generation() {
            self.whole.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_part(&self, chunk: &Chunk, known_before: usize, known: usize) {
        let bytes = u64::try_from(chunk.payload()).unwrap_or(u64::MAX);
        let micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.parts.fetch_add(1, Ordering::Relaxed);
        self.payload.fetch_add(bytes, Ordering::Relaxed);
        self.last_part.fetch_max(micros, Ordering::Relaxed);
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.known
            .fetch_add(count(known) - count(known_before), Ordering::Relaxed);
    }

    pub(crate) fn note_failure(&self, error: &anyhow::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut last = self
            .last_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = format!("{error:#}");
    }
}

/// One agent as the bench handles it.
struct Handle {
    report: pb::NodeReport,
    reports: mpsc::Sender<pb::NodeReport>,
}

/// The agents, running.
pub(crate) struct Fleet {
    pub(crate) shared: Arc<Shared>,
    agents: Vec<Handle>,
    probes: u64,
    _tasks: JoinSet<()>,
}

impl Fleet {
    /// Starts an agent for each node, all at once.
    pub(crate) fn start(addrs: Vec<String>, nodes: &[RawNode]) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::new(addrs));
        let mut agents = Vec::with_capacity(nodes.len());
        let mut tasks = JoinSet::new();
        for (n, node) in nodes.iter().enumerate() {
            let (reports, received) = mpsc::channel(4);
            let agent = Agent::new(node, n, Arc::clone(&shared), received)?;
            agents.push(Handle {
                report: first_report(n)?,
                reports,
            });
            tasks.spawn(agent.run());
        }
        Ok(Self {
            shared,
            agents,
            probes: 0,
            _tasks: tasks,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.agents.len()
    }

    pub(crate) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            parts: read(&self.shared.parts),
            payload: read(&self.shared.payload),
            sent: read(&self.shared.sent),
        }
    }

    /// From now on only new streams count.
    pub(crate) fn expect_new_streams(&self) {
        self.shared.generation.fetch_add(1, Ordering::Relaxed);
        self.shared.whole.store(0, Ordering::Relaxed);
    }

    /// Ends every connection at once, without a goodbye.
    pub(crate) fn cut(&self) {
        self.expect_new_streams();
        self.shared.cut.send_modify(|n| *n += 1);
    }

    /// Waits until every agent has a stream that told all.
    pub(crate) async fn wait_whole(&self, within: Duration) -> anyhow::Result<()> {
        self.wait("every agent has its netmap", within, || {
            self.shared.whole.load(Ordering::Relaxed) == self.len()
        })
        .await
    }

    /// Waits until nothing has arrived at anybody for `quiet`, and every agent knows all others and
    /// `further` nodes; gives when the last part arrived.
    pub(crate) async fn wait_quiet(
        &self,
        quiet: Duration,
        further: usize,
        within: Duration,
    ) -> anyhow::Result<Instant> {
        let last = || {
            let micros = self.shared.last_part.load(Ordering::Relaxed);
            self.shared.started + Duration::from_micros(micros)
        };
        self.wait("the network is quiet", within, || last().elapsed() >= quiet)
            .await?;
        let wanted = i64::try_from(self.len() * (self.len() - 1 + further))?;
        let known = self.shared.known.load(Ordering::Relaxed);
        ensure!(known == wanted, "agents know {known} peers, not {wanted}");
        Ok(last())
    }

    async fn wait(
        &self,
        what: &str,
        within: Duration,
        is: impl Fn() -> bool,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !is() {
            ensure!(
                begun.elapsed() < within,
                "not within {within:?}: {what}; {} of {} agents have their netmap, {} streams \
                 failed, the last: {}",
                self.shared.whole.load(Ordering::Relaxed),
                self.len(),
                self.shared.failures.load(Ordering::Relaxed),
                self.shared
                    .last_failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner),
            );
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Has an agent move to a new endpoint, which is held in memory only.
    pub(crate) async fn moves(&mut self, n: usize) -> anyhow::Result<Vec<Duration>> {
        let mut report = self.agents[n].report.clone();
        let mut addr = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        addr[8..].copy_from_slice(&(self.probes + 1).to_be_bytes());
        report.endpoints.truncate(2);
        report.endpoints.push(pb::Endpoint {
            addr: addr.to_vec(),
            port: 51820,
        });
        self.report(n, addr.to_vec(), report).await
    }

    /// Has an agent publish one more service, which is stored.
    pub(crate) async fn publishes(&mut self, n: usize) -> anyhow::Result<Vec<Duration>> {
        let mut report = self.agents[n].report.clone();
        let name = format!("probe-{:06}", self.probes + 1);
        report.services.truncate(2);
        report.services.push(pb::Service {
            name: name.clone(),
            kind: pb::ServiceKind::Http.into(),
            port: 8000,
        });
        self.report(n, name.into_bytes(), report).await
    }

    async fn report(
        &mut self,
        n: usize,
        marker: Vec<u8>,
        report: pb::NodeReport,
    ) -> anyhow::Result<Vec<Duration>> {
        let probe = self.begin(marker);
        self.agents[n].report = report.clone();
        self.agents[n].reports.send(report).await?;
        self.everybody(&probe, self.len() - 1).await
    }

    /// Starts the clock of a change.
    pub(crate) fn begin(&mut self, marker: Vec<u8>) -> Arc<Probe> {
        self.probes += 1;
        let probe = Arc::new(Probe {
            number: self.probes,
            marker,
            begun: Instant::now(),
            latencies: Mutex::new(Vec::with_capacity(self.len())),
        });
        self.shared.set_probe(Some(Arc::clone(&probe)));
        probe
    }

    /// Waits until that many agents have seen the change; how long each took.
    pub(crate) async fn everybody(
        &self,
        probe: &Probe,
        viewers: usize,
    ) -> anyhow::Result<Vec<Duration>> {
        let all = || probe.latencies().len() >= viewers;
        self.wait("every viewer sees the change", Duration::from_secs(20), all)
            .await?;
        self.shared.set_probe(None);
        Ok(std::mem::take(&mut *probe.latencies()))
    }
}
