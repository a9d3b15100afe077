//! Connections to relays: one task per relay, two bounded byte queues between it and the driver.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_api::client::{ALPN_HTTP1, connect_tls};
use mesh_api::tls::relay_name;
use mesh_tunnel::derp;
use mesh_types::key::SecretKey;
use mesh_types::{Relay, WgPublicKey};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::Instrument as _;

use crate::credential::Credential;

/// Bytes that may wait to be written to a relay; packets beyond are dropped, like on any link.
const OUTBOX_BYTES: usize = 512 * 1024;
/// Bytes that may wait for the driver; beyond, the relay's stream is not read.
const INBOX_BYTES: usize = 1024 * 1024;
/// How long TLS, upgrade and the relay's welcome may take.
const OPENING: Duration = Duration::from_secs(10);
/// A relay that says nothing for this long is gone.
const SILENCE: Duration = derp::KEEPALIVE.saturating_mul(3);
const BACKOFF_START: Duration = Duration::from_millis(250);
const BACKOFF_CAP: Duration = Duration::from_secs(5);
/// Longest answer to the upgrade request.
const MAX_HEAD: usize = 16 * 1024;

/// What a link has for the driver, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item {
    Up,
    Down,
    PeerGone(WgPublicKey),
    /// The next `len` bytes of the inbox.
    Packet {
        from: WgPublicKey,
        len: usize,
    },
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) items: VecDeque<Item>,
    pub(super) bytes: Vec<u8>,
}

/// A link as the status shows it.
#[derive(Debug, Clone, Default)]
pub(super) struct LinkState {
    pub(super) connected: bool,
    pub(super) local: Option<SocketAddr>,
    pub(super) latency: Option<Duration>,
    pub(super) error: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    outbox: Mutex<Vec<u8>>,
    written: Notify,
    inbox: Mutex<Inbox>,
    drained: Notify,
    state: Mutex<LinkState>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can be half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The driver's end of a connection to a relay; dropping it ends the connection.
pub(super) struct Link {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
    pub(super) relay: Relay,
    /// When the driver last had something for it.
    pub(super) used: Instant,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("relay", &self.relay.id)
            .finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Connects, and keeps connecting.
    pub(super) fn start(
        relay: Relay,
        wg_key: SecretKey,
        credential: Credential,
        driver: Arc<Notify>,
        seed: [u8; 32],
        now: Instant,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let runner = Runner {
            relay: relay.clone(),
            wg_key,
            credential,
            driver,
            shared: Arc::clone(&shared),
            random: StdRng::from_seed(seed),
        };
        Self {
            shared,
            task: tokio::spawn(runner.run().in_current_span()),
            relay,
            used: now,
        }
    }

    /// Queues whole frames; `false` when they had to be dropped.
    pub(super) fn send(&self, frame: &[u8]) -> bool {
        let mut outbox = lock(&self.shared.outbox);
        if outbox.len() + frame.len() > OUTBOX_BYTES {
            return false;
        }
        outbox.extend_from_slice(frame);
        true
    }

    /// Has what was queued written.
    pub(super) fn flush(&self) {
        self.shared.written.notify_one();
    }

    /// Swaps the filled inbox against an empty one. `false` when there was nothing.
    pub(super) fn take(&self, into: &mut Inbox) -> bool {
        into.items.clear();
        into.bytes.clear();
        let mut inbox = lock(&self.shared.inbox);
        if inbox.items.is_empty() {
            return false;
        }
        std::mem::swap(&mut *inbox, into);
        drop(inbox);
        self.shared.drained.notify_one();
        true
    }

    pub(super) fn state(&self) -> LinkState {
        lock(&self.shared.state).clone()
    }
}

/// Why a connection to a relay ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0}")]
    Connect(#[from] mesh_api::client::ConnectError),
    #[error("the node's certificate cannot be used")]
    Credential(#[from] crate::credential::CredentialError),
    #[error("the relay did not finish its welcome in {} s", OPENING.as_secs())]
    Slow,
    #[error("the relay refused the upgrade: {0:?}")]
    Upgrade(String),
    #[error("the relay's stream cannot be understood: {0}")]
    Derp(#[from] derp::DerpError),
    #[error("the relay was silent for {} s", SILENCE.as_secs())]
    Silent,
    #[error("the relay closed the connection")]
    Closed,
    #[error("the relay is restarting")]
    Restarting,
    #[error("the connection to the relay broke: {0}")]
    Io(#[from] io::Error),
    #[error("the system gave no randomness")]
    Random,
}

struct Runner {
    relay: Relay,
    wg_key: SecretKey,
    credential: Credential,
    driver: Arc<Notify>,
    shared: Arc<Shared>,
    random: StdRng,
}

impl Runner {
    async fn run(mut self) {
        let mut failures = 0_u32;
        loop {
            let mut ready = false;
            let error = match self.session(&mut ready).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            if ready {
                failures = 0;
                self.push(Item::Down, &[]);
            }
            tracing::debug!(relay = %self.relay.id, %error, "relay connection ended");
            *lock(&self.shared.state) = LinkState {
                error: Some(error.to_string()),
                ..LinkState::default()
            };
            // What waited was for the peers of a moment ago; they send it again.
            lock(&self.shared.outbox).clear();
            let cap = BACKOFF_START
                .saturating_mul(1 << failures.min(10))
                .min(BACKOFF_CAP);
            failures = failures.saturating_add(1);
            sleep(cap.mul_f64(self.random.random_range(0.5..=1.0))).await;
        }
    }

    fn push(&self, item: Item, payload: &[u8]) {
        let mut inbox = lock(&self.shared.inbox);
        inbox.bytes.extend_from_slice(payload);
        inbox.items.push_back(item);
    }

    async fn session(&mut self, ready: &mut bool) -> Result<std::convert::Infallible, LinkError> {
        let tls = self.credential.client_config(false, &[ALPN_HTTP1])?;
        let name = relay_name(self.relay.id);
        let stream = connect_tls(&self.relay.derp, &name, &tls).await?;
        let local = stream.get_ref().0.local_addr().ok();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let seed = crate::random::seed().ok_or(LinkError::Random)?;
        let mut client = derp::Client::new(&self.wg_key, seed);
        let opening = async {
            let early = upgrade(&mut reader, &mut writer, &self.relay).await?;
            client.handle_bytes(&early);
            greet(&mut client, &mut reader, &mut writer).await
        };
        timeout(OPENING, opening)
            .await
            .map_err(|_| LinkError::Slow)??;
        *ready = true;
        lock(&self.shared.outbox).clear();
        *lock(&self.shared.state) = LinkState {
            connected: true,
            local,
            ..LinkState::default()
        };
        self.push(Item::Up, &[]);
        self.driver.notify_one();
        tracing::info!(relay = %self.relay.id, "relay connected");
        tokio::select! {
            read = self.read_loop(&mut client, &mut reader) => read,
            written = self.write_loop(&mut writer) => written,
        }
    }

    async fn read_loop(
        &self,
        client: &mut derp::Client,
        reader: &mut (impl AsyncRead + Unpin),
    ) -> Result<std::convert::Infallible, LinkError> {
        let mut buf = vec![0; 64 * 1024];
        let mut heard = Instant::now();
        let mut asked: Option<Instant> = None;
        let mut ask_at = Instant::now();
        loop {
            // Packets may have come together with the welcome.
            self.drain(client, &mut asked)?;
            let now = Instant::now();
            if asked.is_none() && now >= ask_at {
                asked = Some(now);
                ask_at = now + derp::KEEPALIVE;
                client.ping(*b"latency.");
            }
            self.queue_output(client);
            while lock(&self.shared.inbox).bytes.len() > INBOX_BYTES {
                self.shared.drained.notified().await;
            }
            let deadline = (heard + SILENCE).min(ask_at.max(now + Duration::from_millis(1)));
            match tokio::time::timeout_at(deadline.into(), reader.read(&mut buf)).await {
                Ok(Ok(0)) => return Err(LinkError::Closed),
                Ok(Ok(len)) => {
                    heard = Instant::now();
                    client.handle_bytes(&buf[..len]);
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) if heard.elapsed() >= SILENCE => return Err(LinkError::Silent),
                // Time to ask for the latency again, even when the last answer is missing.
                Err(_) => asked = None,
            }
        }
    }

    fn drain(
        &self,
        client: &mut derp::Client,
        asked: &mut Option<Instant>,
    ) -> Result<(), LinkError> {
        let mut any = false;
        let mut restarting = false;
        {
            let mut inbox = lock(&self.shared.inbox);
            while let Some(event) = client.poll()? {
                match event {
                    derp::ClientEvent::Packet { from, payload } => {
                        inbox.bytes.extend_from_slice(payload);
                        inbox.items.push_back(Item::Packet {
                            from,
                            len: payload.len(),
                        });
                        any = true;
                    }
                    derp::ClientEvent::PeerGone { peer } => {
                        inbox.items.push_back(Item::PeerGone(peer));
                        any = true;
                    }
                    derp::ClientEvent::Pong(_) => {
                        if let Some(asked) = asked.take() {
                            lock(&self.shared.state).latency = Some(asked.elapsed());
                        }
                    }
                    derp::ClientEvent::Restarting => restarting = true,
                    derp::ClientEvent::Health(problem) => {
                        tracing::debug!(relay = %self.relay.id, problem, "relay health");
                    }
                    derp::ClientEvent::Ready | derp::ClientEvent::KeepAlive => {}
                }
            }
        }
        if any {
            self.driver.notify_one();
        }
        if restarting {
            Err(LinkError::Restarting)
        } else {
            Ok(())
        }
    }

    fn queue_output(&self, client: &mut derp::Client) {
        let mut outbox = lock(&self.shared.outbox);
        let before = outbox.len();
        client.take_output(&mut outbox);
        if outbox.len() > before {
            drop(outbox);
            self.shared.written.notify_one();
        }
    }

    async fn write_loop(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<std::convert::Infallible, LinkError> {
        let mut writing = Vec::new();
        loop {
            self.shared.written.notified().await;
            loop {
                writing.clear();
                std::mem::swap(&mut *lock(&self.shared.outbox), &mut writing);
                if writing.is_empty() {
                    break;
                }
                writer.write_all(&writing).await?;
                writer.flush().await?;
            }
        }
    }
}

/// Asks for DERP by HTTP/1.1 upgrade (RFC 9110, 7.8); gives bytes that came after the answer.
async fn upgrade(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    relay: &Relay,
) -> Result<Vec<u8>, LinkError> {
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: {}\r\n\r\n",
        derp::PATH,
        relay_name(relay.id),
        derp::UPGRADE,
    );
    writer.write_all(request.as_bytes()).await?;
    writer.flush().await?;
    let mut head = Vec::with_capacity(1024);
    let end = loop {
        if let Some(at) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if head.len() > MAX_HEAD {
            return Err(LinkError::Upgrade("endless answer".to_owned()));
        }
        if reader.read_buf(&mut head).await? == 0 {
            return Err(LinkError::Closed);
        }
    };
    let rest = head.split_off(end);
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    if line.split(' ').nth(1) == Some("101") {
        Ok(rest)
    } else {
        Err(LinkError::Upgrade(line.chars().take(80).collect()))
    }
}

/// Up to the relay's welcome.
async fn greet(
    client: &mut derp::Client,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), LinkError> {
    let mut output = Vec::new();
    let mut buf = vec![0; 4096];
    loop {
        let ready = matches!(client.poll()?, Some(derp::ClientEvent::Ready));
        client.take_output(&mut output);
        if !output.is_empty() {
            writer.write_all(&output).await?;
            writer.flush().await?;
            output.clear();
        }
        if ready {
            return Ok(());
        }
        match reader.read(&mut buf).await? {
            0 => return Err(LinkError::Closed),
            len => client.handle_bytes(&buf[..len]),
        }
    }
}
