//! The relay, spoken to by hand.
//!
//! Frames and handshake are `mesh-tunnel`'s; TLS and the upgrade are done here.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use mesh_api::client::{ALPN_HTTP1, connect_tls};
use mesh_api::context::Context;
use mesh_api::pb;
use mesh_api::pb::admin_service_client::AdminServiceClient;
use mesh_api::tls::{Pin, client_config, relay_name};
use mesh_tunnel::derp::{Client, ClientEvent, PATH, UPGRADE, encode_send};
use mesh_types::key::SecretKey;
use mesh_types::{RelayId, WgPublicKey};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::raw::RawNode;

/// A relay as the coordinator knows it.
#[derive(Debug, Clone)]
pub struct RelayAddr {
    id: RelayId,
    derp: Vec<String>,
}

/// The installation's first relay.
pub async fn relay_of(context: &Context) -> anyhow::Result<RelayAddr> {
    let mut admin = AdminServiceClient::new(context.coordinator().await?);
    let status = admin.status(pb::AdminStatusRequest {}).await?.into_inner();
    let relay = status.relays.into_iter().next().context("a relay")?;
    Ok(RelayAddr {
        id: RelayId::try_from(relay.id.as_slice())?,
        derp: relay.derp,
    })
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// One node's connection to a relay.
pub struct DerpClient {
    stream: Box<dyn Stream>,
    client: Client,
}

impl std::fmt::Debug for DerpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DerpClient").finish_non_exhaustive()
    }
}

impl DerpClient {
    /// Connects as this node and waits until the relay has let it in, which a relay that does not
    /// know the node yet does only after a moment.
    pub async fn connect(
        node: &RawNode,
        relay: &RelayAddr,
        within: Duration,
    ) -> anyhow::Result<Self> {
        let started = tokio::time::Instant::now();
        loop {
            match Self::try_connect(node, relay).await {
                Ok(client) => return Ok(client),
                Err(error) if started.elapsed() > within => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn try_connect(node: &RawNode, relay: &RelayAddr) -> anyhow::Result<Self> {
        let ca = Pin::Ca(CertificateDer::from(node.enrolled.ca_certificate.clone()));
        let tls = client_config(ca, None, &[ALPN_HTTP1])?;
        let name = relay_name(relay.id);
        let mut stream = connect_tls(&relay.derp, &name, &tls).await?;
        let upgrade = format!(
            "GET {PATH} HTTP/1.1\r\nHost: {name}\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n"
        );
        stream.write_all(upgrade.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(
                stream
                    .read_u8()
                    .await
                    .context("read the answer to the upgrade")?,
            );
        }
        ensure!(
            head.starts_with(b"HTTP/1.1 101 "),
            "{}",
            String::from_utf8_lossy(&head)
        );
        let key = SecretKey::from_bytes(node.applicant.wg.to_bytes());
        // A test's nonces need no more randomness than its keys have.
        let mut this = Self {
            stream: Box::new(stream),
            client: Client::new(&key, node.applicant.wg_public()),
        };
        match this.next(Duration::from_secs(5)).await? {
            Some(Received::Ready) => Ok(this),
            other => bail!("the relay did not let the node in: {other:?}"),
        }
    }

    /// Sends a packet to another node of this relay.
    pub async fn send(&mut self, to: &WgPublicKey, payload: &[u8]) -> anyhow::Result<()> {
        let mut frame = Vec::new();
        encode_send(to, payload, &mut frame);
        self.stream.write_all(&frame).await?;
        Ok(())
    }

    /// The next packet and its sender; `None` when none comes within that time.
    pub async fn receive(
        &mut self,
        within: Duration,
    ) -> anyhow::Result<Option<(WgPublicKey, Vec<u8>)>> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            match self.next(left).await? {
                Some(Received::Packet(from, payload)) => return Ok(Some((from, payload))),
                Some(Received::Ready | Received::Other) => {}
                None => return Ok(None),
            }
        }
    }

    /// The connection itself, for what no client sends.
    pub fn into_stream(self) -> impl AsyncRead + AsyncWrite + Unpin + Send {
        self.stream
    }

    async fn next(&mut self, within: Duration) -> anyhow::Result<Option<Received>> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let received = self.client.poll()?.map(|event| match event {
                ClientEvent::Ready => Received::Ready,
                ClientEvent::Packet { from, payload } => Received::Packet(from, payload.to_vec()),
                _ => Received::Other,
            });
            let mut output = Vec::new();
            self.client.take_output(&mut output);
            self.stream.write_all(&output).await?;
            if received.is_some() {
                return Ok(received);
            }
            let mut buffer = [0; 4096];
            let read = tokio::time::timeout_at(deadline, self.stream.read(&mut buffer));
            match read.await {
                Err(_) => return Ok(None),
                Ok(read) => {
                    let length = read?;
                    ensure!(length > 0, "the relay closed the connection");
                    self.client.handle_bytes(&buffer[..length]);
                }
            }
        }
    }
}

#[derive(Debug)]
enum Received {
    Ready,
    Packet(WgPublicKey, Vec<u8>),
    Other,
}
