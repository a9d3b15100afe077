//! A node that answers UDP on the overlay.
//!
//! The product's agents publish TCP services only, so that what comes back from UDP ASSOCIATE has
//! to be proved with a node made by hand: it joins like any other, speaks WireGuard over the relay,
//! and sends every UDP packet back.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use mesh_testkit::Host;
use mesh_types::{JoinToken, WgPublicKey};

use crate::cli::Cli;
use crate::derp::{DerpClient, relay_of};
use crate::raw::{Applicant, RawNode};
use crate::wireguard::{Opened, RawTunnel};

const SOON: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);
const UDP: u8 = 17;

/// The node; it ends when dropped.
#[derive(Debug)]
pub struct OverlayEcho {
    addr: Ipv4Addr,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl OverlayEcho {
    /// Joins `network` as `name` from `host` and answers the node that has the key `peer`.
    pub fn start(
        operator: &Cli,
        host: &Host,
        network: &str,
        name: &str,
        peer: WgPublicKey,
    ) -> anyhow::Result<Self> {
        let token = operator.token(&["--network", network]);
        let token: JoinToken = token.parse()?;
        let context = operator.context()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        // The connection belongs to the host; the thread that serves it need not.
        let (node, client) = host.enter(|| {
            runtime.block_on(async {
                let node = Applicant::new(name)?.join(&token).await?;
                let relay = relay_of(&context).await?;
                let client = DerpClient::connect(&node, &relay, SOON).await?;
                anyhow::Ok((node, client))
            })
        })?;
        let addr = overlay_v4(&node)?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (told, stopped) = (Arc::clone(&heard), Arc::clone(&stop));
        let thread =
            thread::spawn(move || runtime.block_on(serve(client, &node, peer, &told, &stopped)));
        Ok(Self {
            addr,
            heard,
            stop,
            thread: Some(thread),
        })
    }

    /// Its overlay address.
    pub fn addr(&self) -> Ipv4Addr {
        self.addr
    }

    /// The payloads that came so far.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for OverlayEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that ended early, with the relay, answered nobody any more: that was to be seen.
            drop(thread.join());
        }
    }
}

/// A raw node's overlay IPv4 address.
pub fn overlay_v4(node: &RawNode) -> anyhow::Result<Ipv4Addr> {
    let addrs = node.enrolled.addrs.as_ref().context("overlay addresses")?;
    let v4: [u8; 4] = addrs.v4.as_slice().try_into().context("four bytes")?;
    Ok(v4.into())
}

async fn serve(
    mut client: DerpClient,
    node: &RawNode,
    peer: WgPublicKey,
    heard: &Mutex<Vec<Vec<u8>>>,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut tunnel = RawTunnel::new(&node.applicant, &peer);
    while !stop.load(Ordering::Relaxed) {
        let Some((from, datagram)) = client.receive(POLL).await? else {
            continue;
        };
        if from != peer {
            continue;
        }
        let answer = match tunnel.open(&datagram) {
            Opened::Answer(answer) => answer,
            Opened::Packet(packet) => match echo(&packet) {
                Some((payload, back)) => {
                    heard
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(payload);
                    tunnel.seal(&back)?
                }
                None => continue,
            },
            Opened::Nothing | Opened::Foreign => continue,
        };
        client.send(&peer, &answer).await?;
    }
    Ok(())
}

/// The payload of a UDP packet over IPv4 (RFC 791, RFC 768), and the packet that takes it back.
/// The checksums stay right: they are sums, and only the order of their terms changes.
fn echo(packet: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let head = usize::from(packet.first()? & 0x0f) * 4;
    if packet.first()? >> 4 != 4 || packet.get(9) != Some(&UDP) || packet.len() < head + 8 {
        return None;
    }
    let payload = packet[head + 8..].to_vec();
    let mut back = packet.to_vec();
    back[12..20].rotate_left(4);
    back[head..head + 4].rotate_left(2);
    Some((payload, back))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_udp_packet_goes_back_to_its_sender() {
        let mut packet = vec![0x45, 0, 0, 30, 0, 0, 0, 0, 64, UDP, 0, 0];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend([0, 7, 0, 9, 0, 10, 0, 0, b'h', b'i']);
        let (payload, back) = echo(&packet).expect("UDP");
        assert_eq!(payload, b"hi");
        assert_eq!(back[12..20], [10, 0, 0, 2, 10, 0, 0, 1]);
        assert_eq!(back[20..24], [0, 9, 0, 7]);
        packet[9] = 6;
        assert_eq!(echo(&packet), None);
    }
}
