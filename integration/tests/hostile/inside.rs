//! What is longer than it may be, inside TLS and by somebody who was let in.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::Cli;
use integration::derp::{DerpClient, RelayAddr, relay_of};
use integration::raw::{Applicant, RawNode};
use mesh_api::client::{ALPN_H2, connect_tls};
use mesh_api::pb;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::tls::{COORDINATOR_NAME, Pin, client_config};
use mesh_tunnel::derp::{MAX_FRAME, MAX_PACKET, encode_send};
use mesh_types::{JoinToken, WgPublicKey};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::runtime::Runtime;

use super::MOST;
use super::http2::{self, CONTINUATION, DATA, GOAWAY, HEADERS, PREFACE, SETTINGS};

/// How long one attack may take, however busy the machine is.
const WITHIN: Duration = Duration::from_secs(60);
/// Within this of the last byte that was taken the end comes of what was sent. Who is only no longer
/// heard is closed after 10 s of silence.
const CUT: Duration = Duration::from_secs(5);
/// What a coordinator takes as one message is 256 KiB.
const MESSAGE: usize = 4 << 20;
/// Why an HTTP/2 connection is given up (RFC 9113, 7).
const FRAME_SIZE_ERROR: u32 = 6;
const ENHANCE_YOUR_CALM: u32 = 11;

/// How many of them one round has.
pub(super) const ATTACKS: u32 = 4;

/// A node that joined, and that coordinator and relay let in.
pub(super) struct Insider {
    node: RawNode,
    key: WgPublicKey,
    coordinators: Vec<String>,
    relay: RelayAddr,
    runtime: Runtime,
}

impl Insider {
    pub(super) fn join(cli: &Cli) -> anyhow::Result<Self> {
        let token: JoinToken = cli.token(&[]).parse()?;
        let context = cli.context()?;
        let runtime = Runtime::new()?;
        let (node, relay) = runtime.block_on(async {
            let node = Applicant::new("insider")?.join(&token).await?;
            anyhow::Ok((node, relay_of(&context).await?))
        })?;
        Ok(Self {
            key: WgPublicKey::from_bytes(node.applicant.wg_public()),
            node,
            coordinators: token.coordinators.clone(),
            relay,
            runtime,
        })
    }

    /// Each attack once; how many bytes each could send before the other side had enough.
    pub(super) fn attack(&self) -> anyhow::Result<[(&'static str, usize); ATTACKS as usize]> {
        let filling = [b'a'; 4096];
        let mut long = opening();
        long.extend(http2::head(http2::MAX_FRAME + 1, DATA, 0, 1));
        let mut block = opening();
        block.extend(http2::frame(HEADERS, 0, 1, &http2::header("x-0", "a")));
        // As much as a frame takes, of short headers.
        let headers = http2::header("x-name", &"a".repeat(100));
        let headers = headers.repeat(http2::MAX_FRAME as usize / headers.len());
        let more = http2::frame(CONTINUATION, 0, 1, &headers);
        self.runtime.block_on(async {
            Ok([
                (
                    "a frame that is too long, inside TLS at the coordinator",
                    self.http2(&long, &filling, FRAME_SIZE_ERROR).await?,
                ),
                (
                    "headers without end, inside TLS at the coordinator",
                    self.http2(&block, &more, ENHANCE_YOUR_CALM).await?,
                ),
                (
                    "a message that is too long, inside TLS at the coordinator",
                    self.message().await?,
                ),
                (
                    "a frame that is too long, of a client of the relay",
                    self.derp(&filling).await?,
                ),
            ])
        })
    }

    /// Pours over HTTP/2, and is told by this word why that is the end.
    async fn http2(&self, begin: &[u8], piece: &[u8], why: u32) -> anyhow::Result<usize> {
        let ca = Pin::Ca(CertificateDer::from(
            self.node.enrolled.ca_certificate.clone(),
        ));
        let tls = client_config(ca, Some(self.node.client_cert()), &[ALPN_H2])?;
        let stream = connect_tls(&self.coordinators, COORDINATOR_NAME, &tls).await?;
        let (sent, mut heard) = pour(stream, begin, piece).await?;
        let mut told = Vec::new();
        while let Some((kind, _, payload)) = http2::take_frame(&mut heard) {
            told.extend((kind == GOAWAY).then(|| payload.get(4..8).map(<[u8]>::to_vec)));
        }
        let expected = Some(why.to_be_bytes().to_vec());
        ensure!(told == [expected], "it was told {told:?}");
        Ok(sent)
    }

    /// Sends a message as whole as any, but for its size.
    async fn message(&self) -> anyhow::Result<usize> {
        let channel = self.node.channel(&self.coordinators, COORDINATOR_NAME)?;
        let request = pb::EnrolRequest {
            hostname: "a".repeat(MESSAGE),
            ..pb::EnrolRequest::default()
        };
        let mut client = ControlServiceClient::new(channel);
        let answer = tokio::time::timeout(WITHIN, client.enrol(request)).await?;
        let status = answer.err().context("it was taken")?;
        ensure!(status.code() == tonic::Code::OutOfRange, "{status:?}");
        Ok(MESSAGE)
    }

    /// Is forwarded the longest packet that there may be, and then sends a frame that is one byte
    /// longer than any.
    async fn derp(&self, filling: &[u8]) -> anyhow::Result<usize> {
        let mut client = DerpClient::connect(&self.node, &self.relay, WITHIN).await?;
        let longest = vec![b'a'; MAX_PACKET];
        client.send(&self.key, &longest).await?;
        let echo = client.receive(WITHIN).await?;
        let came = echo.is_some_and(|(from, packet)| from == self.key && packet == longest);
        ensure!(came, "the longest packet did not come back");
        let mut begin = Vec::new();
        encode_send(&self.key, &[], &mut begin);
        let length = u32::try_from(MAX_FRAME + 1)?;
        begin[1..5].copy_from_slice(&length.to_be_bytes());
        let (sent, _) = pour(client.into_stream(), &begin, filling).await?;
        Ok(sent)
    }
}

/// How a client of HTTP/2 begins.
fn opening() -> Vec<u8> {
    [PREFACE, &http2::frame(SETTINGS, 0, 0, &[])].concat()
}

/// Sends without end until the other side has closed the connection; how much that was, and what it
/// said meanwhile.
async fn pour<S>(stream: S, begin: &[u8], piece: &[u8]) -> anyhow::Result<(usize, Vec<u8>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let pouring = async {
        let (mut sent, mut taken) = (0, Instant::now());
        let mut next = begin;
        // It fails when the connection is closed, which is what is waited for.
        while sent < MOST && writer.write_all(next).await.is_ok() {
            sent += next.len();
            taken = Instant::now();
            next = piece;
        }
        (sent, taken)
    };
    let hearing = async {
        let (mut heard, mut room) = (Vec::new(), [0; 4096]);
        while let Ok(length @ 1..) = reader.read(&mut room).await {
            heard.extend(&room[..length]);
        }
        heard
    };
    let both = async { tokio::join!(pouring, hearing) };
    let ended = tokio::time::timeout(WITHIN, both).await;
    let ((sent, taken), heard) = ended.context("the connection was kept")?;
    let kept = taken.elapsed();
    ensure!(kept < CUT, "the connection was kept for {kept:?}");
    Ok((sent, heard))
}
