//! Control streams that are opened and never read, while the network changes.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::hostile::{Others, PATIENCE, load, resident};
use integration::raw::{Applicant, RawNode};
use integration::{Cli, MeshUp};
use mesh_api::client::ALPN_H2;
use mesh_api::pb;
use mesh_api::pb::admin_service_client::AdminServiceClient;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::pb::sync_request::Message as Said;
use mesh_api::pb::sync_response::Message as Heard;
use mesh_api::tls::{COORDINATOR_NAME, Pin, client_config};
use mesh_types::JoinToken;
use prost::Message as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConnection, StreamOwned};
use tokio::sync::watch;

use super::http2::{
    ACK, DATA, END_HEADERS, HEADERS, PING, PREFACE, SETTINGS, WINDOW_UPDATE, frame, header,
    take_frame,
};
use super::{MIB, addr, tell};

/// Nodes that open their stream and never read.
const MUTE: usize = 20;
/// How long somebody is renamed as fast as the coordinator takes it.
const LASTS: Duration = Duration::from_secs(5);
/// What it may cost.
const HELD: u64 = 16 * MIB;
/// What they may take of a core while nothing changes, in percent, and over how long that is looked
/// at.
const BUSY: u128 = 50;
const LOOK: Duration = Duration::from_secs(3);
/// Updates that wait for a reader at most: those that were on their way when it stopped, and one
/// with all that has changed since.
const WAITING: usize = 8;
/// Once nothing comes for so long, everything is there that has waited.
const QUIET: Duration = Duration::from_millis(200);

fn hello() -> pb::SyncRequest {
    let hello = pb::SyncHello {
        cursor: None,
        version: "test".to_owned(),
    };
    pb::SyncRequest {
        message: Some(Said::Hello(hello)),
    }
}

/// A control stream by hand, whose reader takes nothing at all.
struct Mute {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Mute {
    fn open(node: &RawNode, to: SocketAddr) -> anyhow::Result<Self> {
        let ca = Pin::Ca(CertificateDer::from(node.enrolled.ca_certificate.clone()));
        let tls = client_config(ca, Some(node.client_cert()), &[ALPN_H2])?;
        let name = ServerName::try_from(COORDINATOR_NAME)?;
        let tcp = TcpStream::connect(to)?;
        tcp.set_nodelay(true)?;
        let mut stream = StreamOwned::new(ClientConnection::new(tls, name)?, tcp);
        let headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", "/mesh.v1.ControlService/Sync"),
            (":authority", COORDINATOR_NAME),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        let headers: Vec<u8> = headers
            .iter()
            .flat_map(|(name, value)| header(name, value))
            .collect();
        let hello = hello().encode_to_vec();
        let length = u32::try_from(hello.len())?.to_be_bytes();
        // INITIAL_WINDOW_SIZE is 0: the other side may send nothing of its answer.
        let bytes = [
            PREFACE.to_vec(),
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]),
            frame(HEADERS, END_HEADERS, 1, &headers),
            frame(DATA, 0, 1, &[&[0][..], &length, &hello].concat()),
        ];
        stream.write_all(&bytes.concat())?;
        stream.flush()?;
        Ok(Self { stream })
    }

    /// Takes something after all.
    fn widen(&mut self) -> anyhow::Result<()> {
        let window = (8_u32 << 20).to_be_bytes();
        let wider = [
            frame(WINDOW_UPDATE, 0, 0, &window),
            frame(WINDOW_UPDATE, 0, 1, &window),
        ];
        self.stream.write_all(&wider.concat())?;
        Ok(self.stream.flush()?)
    }

    /// The updates that had waited, of which one speaks of the name with the number `last`.
    fn read_on(mut self, last: usize) -> anyhow::Result<Vec<pb::NetmapChunk>> {
        let begun = Instant::now();
        self.stream.get_ref().set_read_timeout(Some(QUIET))?;
        let (mut bytes, mut data, mut room) = (Vec::new(), Vec::new(), vec![0; 64 << 10]);
        loop {
            match self.stream.read(&mut room) {
                Ok(0) => anyhow::bail!("the stream was closed"),
                Ok(length) => bytes.extend(&room[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let updates = updates(&data)?;
                    let newest = updates.iter().filter_map(|update| number_of(&update.peers));
                    let newest = newest.max();
                    if newest == Some(last) {
                        return Ok(updates);
                    }
                    ensure!(begun.elapsed() < PATIENCE, "the newest is {newest:?}");
                }
                Err(error) => return Err(error.into()),
            }
            while let Some((kind, flags, payload)) = take_frame(&mut bytes) {
                match kind {
                    DATA => data.extend(payload),
                    PING if flags & ACK == 0 => {
                        self.stream.write_all(&frame(PING, ACK, 0, &payload))?;
                        self.stream.flush()?;
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The netmaps among the whole messages in there.
fn updates(mut data: &[u8]) -> anyhow::Result<Vec<pb::NetmapChunk>> {
    let mut updates = Vec::new();
    while let Some((prefix, rest)) = data.split_at_checked(5) {
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let Some((message, rest)) = rest.split_at_checked(length) else {
            break;
        };
        if let Some(Heard::Netmap(update)) = pb::SyncResponse::decode(message)?.message {
            updates.push(update);
        }
        data = rest;
    }
    Ok(updates)
}

/// When which name was given, by its number.
type Given = Arc<Mutex<Vec<Instant>>>;

fn name_of(number: usize) -> String {
    format!("renamed-{number}")
}

fn number_of(peers: &[pb::Peer]) -> Option<usize> {
    let numbers = peers
        .iter()
        .filter_map(|peer| peer.name.strip_prefix("renamed-"));
    numbers.filter_map(|number| number.parse().ok()).max()
}

/// An honest node that reads: tells the newest name it heard of, and the longest time that one took
/// to get there.
async fn read(
    node: RawNode,
    coordinators: Vec<String>,
    given: Given,
    heard: watch::Sender<(usize, Duration)>,
) -> anyhow::Result<()> {
    let channel = node.channel(&coordinators, COORDINATOR_NAME)?;
    let said = futures_util::StreamExt::chain(
        futures_util::stream::iter([hello()]),
        futures_util::stream::pending(),
    );
    let mut stream = ControlServiceClient::new(channel)
        .sync(said)
        .await?
        .into_inner();
    let mut worst = Duration::ZERO;
    while let Some(message) = stream.message().await? {
        let Some(Heard::Netmap(update)) = message.message else {
            continue;
        };
        if let Some(number) = number_of(&update.peers) {
            let given = given.lock().expect("not poisoned")[number];
            worst = worst.max(given.elapsed());
            ensure!(worst < PATIENCE, "{} took {worst:?}", name_of(number));
            heard.send((number, worst))?;
        }
    }
    anyhow::bail!("the stream ended")
}

async fn join(name: String, token: &JoinToken) -> RawNode {
    let node = Applicant::new(&name).expect("keys").join(token).await;
    node.expect("it joins")
}

#[test]
fn streams_that_never_read_cost_little_and_hold_nobody_up() {
    let cli = Cli::new().expect("folders");
    let mut up = MeshUp::demo(&cli);
    let pid = up.child().pid();
    let token: JoinToken = cli.token(&["--reusable"]).parse().expect("a join token");
    let coordinator = addr(&up.ready().coordinator.addr);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let context = cli.context().expect("a context");
    let (_renamed, honest, mut mutes) = runtime.block_on(async {
        let renamed = join(name_of(0), &token).await;
        let honest = join("honest".to_owned(), &token).await;
        let mut mutes = Vec::new();
        for number in 0..MUTE {
            let node = join(format!("mute-{number}"), &token).await;
            mutes.push(Mute::open(&node, coordinator).expect("a stream"));
        }
        (renamed, honest, mutes)
    });
    let given = Given::default();
    given.lock().expect("not poisoned").push(Instant::now());
    let (heard, mut newest) = watch::channel((0, Duration::ZERO));
    let reading = read(
        honest,
        token.coordinators.clone(),
        Arc::clone(&given),
        heard,
    );
    let reading = runtime.spawn(reading);

    let before = resident(pid).expect("memory");
    let others = Others::of(&up).expect("people");
    let (last, worst) = runtime.block_on(async {
        let mut admin = AdminServiceClient::new(context.coordinator().await.expect("a channel"));
        let begun = Instant::now();
        let mut number = 0;
        while begun.elapsed() < LASTS {
            number += 1;
            given.lock().expect("not poisoned").push(Instant::now());
            let asked = pb::RenameNodeRequest {
                node: Some(pb::NodeRef {
                    network: "default".to_owned(),
                    name: name_of(number - 1),
                }),
                new_name: name_of(number),
            };
            admin.rename_node(asked).await.expect("renamed");
        }
        let last = newest.wait_for(|&(newest, _)| newest == number);
        let last = tokio::time::timeout(PATIENCE, last).await.expect("in time");
        let (number, worst) = *last.expect("it reads");
        (number, worst)
    });
    let held = resident(pid).expect("memory").saturating_sub(before);
    tell("mute streams", others);
    let busy = load(pid, LOOK).expect("time");
    for mute in &mut mutes {
        mute.widen().expect("it is still served");
    }
    let waited = mutes
        .into_iter()
        .map(|mute| mute.read_on(last).expect("what waited is the newest").len());
    let most = waited.max().expect("some");
    println!(
        "mute streams: {MUTE} beside {last} changes took {} MiB, and {most} updates waited for \
         each; who reads had each change within {worst:?}; then {busy} % of a core",
        held / MIB
    );
    assert!(last > 20, "only {last} changes");
    assert!(held < HELD, "{} MiB", held / MIB);
    assert!(busy < BUSY, "{busy} % of a core");
    assert!(most <= WAITING, "{most} updates waited");
    reading.abort();
    up.child().assert_log_clean(&[]);
    up.stop().expect("stopped");
}
