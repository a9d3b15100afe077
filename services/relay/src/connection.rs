//! One client's connection, after the upgrade.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mesh_daemon::Shutdown;
use mesh_tunnel::derp::{
    self, DEAD_AFTER, DerpError, Frame, GoneReason, KEEPALIVE, Server, ServerEvent, encode_recv,
};
use mesh_types::WgPublicKey;
use mesh_types::key::SecretKey;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout, timeout_at};

use crate::clients::Clients;
use crate::mailbox::Mailbox;
use crate::metrics::{Drop, Refusal};
use crate::registry::ConnectionId;

/// How long the proof of the key may take.
const OPENING: Duration = Duration::from_secs(10);
/// More than this nobody needs to say before the proof of the key.
const MAX_OPENING: usize = 4096;
/// How long a client waits that the coordinator has not named yet: it may have joined just now.
const ADMISSION: Duration = Duration::from_secs(5);
/// A client that takes nothing for this long is cut.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Bytes read, and written, at once.
const CHUNK: usize = 64 * 1024;
/// A client is told that receivers are not there at most this many times per second.
const GONE_PER_SECOND: u32 = 20;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("it does not speak DERP as it should")]
    Derp(#[from] DerpError),
    #[error("the coordinator has not named its key")]
    NotAllowed,
    #[error("it said too much before it proved its key")]
    TooMuch,
    #[error("it took longer than {} s to prove its key", OPENING.as_secs())]
    Slow,
    #[error("it was silent for {} s", DEAD_AFTER.as_secs())]
    Silent,
    #[error("it took nothing for {} s", WRITE_LIMIT.as_secs())]
    Stuck,
    #[error("it closed the connection")]
    Closed,
    #[error("the connection broke")]
    Io(#[from] io::Error),
}

/// Serves one client until either side ends it.
pub(crate) async fn serve<S>(
    stream: S,
    derp_key: &SecretKey,
    seed: [u8; 32],
    clients: &Arc<Clients>,
    shutdown: Shutdown,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut server = Server::new(derp_key, seed);
    let opening = open(&mut server, &mut reader, &mut writer);
    let key = match timeout(OPENING, opening).await {
        Ok(Ok(key)) => key,
        Ok(Err(error)) => {
            clients.metrics().refuse(Refusal::Protocol);
            return Err(error);
        }
        Err(_) => {
            clients.metrics().refuse(Refusal::Slow);
            return Err(ConnectionError::Slow);
        }
    };
    admit(&key, clients).await?;
    let mailbox = Arc::new(Mailbox::new());
    // Before anybody can reach the mailbox: no packet may overtake the welcome.
    server.accept();
    let mut welcome = Vec::new();
    server.take_output(&mut welcome);
    mailbox.push_control(welcome);
    let connected = clients.registry().connect(key, Arc::clone(&mailbox));
    let (id, older) = connected.map_err(|_| ConnectionError::NotAllowed)?;
    if let Some(older) = older {
        older.close();
    }
    let _place = Place { key, id, clients };
    clients.recount();
    tracing::debug!(client = %key.short(), "client connected");
    if shutdown.is_draining() {
        mailbox.close();
    }
    let client = Client {
        key,
        id,
        clients,
        mailbox: &mailbox,
    };
    tokio::select! {
        read = client.read(&mut server, &mut reader) => read,
        written = write(&mailbox, &mut writer) => written,
    }
}

/// Says who we are and waits for the client's proof.
async fn open(
    server: &mut Server,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<WgPublicKey, ConnectionError> {
    let mut output = Vec::new();
    let mut buffer = vec![0; 1024];
    let mut heard = 0;
    loop {
        match server.poll()? {
            Some(ServerEvent::Hello { client }) => return Ok(client),
            Some(_) => {}
            None => {
                server.take_output(&mut output);
                writer.write_all(&output).await?;
                writer.flush().await?;
                output.clear();
                let read = reader.read(&mut buffer).await?;
                if read == 0 {
                    return Err(ConnectionError::Closed);
                }
                heard += read;
                if heard > MAX_OPENING {
                    return Err(ConnectionError::TooMuch);
                }
                server.handle_bytes(&buffer[..read]);
            }
        }
    }
}

/// Waits until the coordinator has named the key.
async fn admit(key: &WgPublicKey, clients: &Clients) -> Result<(), ConnectionError> {
    let mut changes = clients.changes();
    let limit = Instant::now() + ADMISSION;
    while !clients.registry().is_allowed(key) {
        if !matches!(timeout_at(limit, changes.changed()).await, Ok(Ok(()))) {
            clients.metrics().refuse(Refusal::UnknownKey);
            return Err(ConnectionError::NotAllowed);
        }
    }
    Ok(())
}

/// A client's place in the registry, given up when the connection ends, however it does.
struct Place<'a> {
    key: WgPublicKey,
    id: ConnectionId,
    clients: &'a Clients,
}

impl std::ops::Drop for Place<'_> {
    fn drop(&mut self) {
        self.clients.registry().disconnect(&self.key, self.id);
        self.clients.recount();
    }
}

struct Client<'a> {
    key: WgPublicKey,
    id: ConnectionId,
    clients: &'a Clients,
    mailbox: &'a Mailbox,
}

impl Client<'_> {
    /// Takes what the client sends, for ever.
    async fn read(
        &self,
        server: &mut Server,
        reader: &mut (impl AsyncRead + Unpin),
    ) -> Result<(), ConnectionError> {
        let mut buffer = vec![0; CHUNK];
        let mut output = Vec::new();
        let mut gone = GoneLimit::new();
        loop {
            self.forward(server, &mut gone)?;
            server.take_output(&mut output);
            if !output.is_empty() {
                let fits = self.mailbox.push_control(std::mem::take(&mut output));
                let metrics = self.clients.metrics();
                metrics.drop(Drop::QueueFull, usize::from(!fits));
            }
            let read = timeout(DEAD_AFTER, reader.read(&mut buffer))
                .await
                .map_err(|_| ConnectionError::Silent)??;
            if read == 0 {
                return Err(ConnectionError::Closed);
            }
            server.handle_bytes(&buffer[..read]);
        }
    }

    /// Gives the packets that arrived to their receivers' mailboxes.
    fn forward(&self, server: &mut Server, gone: &mut GoneLimit) -> Result<(), ConnectionError> {
        let metrics = self.clients.metrics();
        let mut packets = 0;
        let mut bytes = 0;
        let registry = self.clients.registry();
        while let Some(event) = server.poll()? {
            let ServerEvent::Packet { to, payload } = event else {
                continue;
            };
            if let Some(receiver) = registry.route(&self.key, self.id, &to) {
                let mut frame = Vec::with_capacity(derp::PACKET_HEADER + payload.len());
                encode_recv(&self.key, payload, &mut frame);
                metrics.drop(Drop::QueueFull, receiver.push(frame));
                packets += 1;
                bytes += payload.len() as u64;
            } else {
                metrics.drop(Drop::NoReceiver, 1);
                if gone.allows() {
                    let mut frame = Vec::new();
                    let reason = GoneReason::NotHere;
                    Frame::PeerGone { peer: to, reason }.encode(&mut frame);
                    let fits = self.mailbox.push_control(frame);
                    metrics.drop(Drop::QueueFull, usize::from(!fits));
                }
            }
        }
        metrics.forwarded_packets.inc_by(packets);
        metrics.forwarded_bytes.inc_by(bytes);
        Ok(())
    }
}

/// Writes what waits for the client, with a keepalive and a ping when it is quiet, until the
/// mailbox is closed and empty.
async fn write(
    mailbox: &Mailbox,
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), ConnectionError> {
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        chunk.clear();
        match timeout(KEEPALIVE, mailbox.take(&mut chunk, CHUNK)).await {
            Ok(true) => {}
            Ok(false) => {
                drop(limited(writer.shutdown()).await);
                return Ok(());
            }
            Err(_) => {
                // The answer to the ping shows that the client is still there.
                Frame::KeepAlive.encode(&mut chunk);
                Frame::Ping([0; 8]).encode(&mut chunk);
            }
        }
        limited(writer.write_all(&chunk)).await?;
        limited(writer.flush()).await?;
    }
}

async fn limited(write: impl Future<Output = io::Result<()>>) -> Result<(), ConnectionError> {
    let written = timeout(WRITE_LIMIT, write)
        .await
        .map_err(|_| ConnectionError::Stuck)?;
    Ok(written?)
}

/// Bounds how often one client is told that a receiver is not there.
struct GoneLimit {
    second: Instant,
    told: u32,
}

impl GoneLimit {
    fn new() -> Self {
        Self {
            second: Instant::now(),
            told: 0,
        }
    }

    fn allows(&mut self) -> bool {
        if self.second.elapsed() >= Duration::from_secs(1) {
            *self = Self::new();
        }
        self.told += 1;
        self.told <= GONE_PER_SECOND
    }
}

#[cfg(test)]
mod tests;
