//! Disco messages from and to peers.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use rand::Rng;

use super::{Device, Source, random_tx};
use crate::buffers::Out;
use crate::disco::{self, InvalidDisco, Message};
use crate::nacl::{NONCE, SharedBox};
use crate::path::Via;
use crate::router::Slot;
use crate::stats::DropReason;

impl Device {
    pub(super) fn open_disco(
        &mut self,
        source: Source,
        datagram: &[u8],
        out: &mut Out,
        now: Instant,
    ) {
        let slot = disco::claimed_sender(datagram)
            .ok()
            .and_then(|sender| self.peers.by_disco.get(&sender).copied());
        let Some(slot) = slot else {
            self.drops.count(DropReason::UnknownPeer);
            return;
        };
        let message = match self.read_disco(slot, source, datagram) {
            Ok(message) => message,
            // A newer node may send what we do not know; that is no fault.
            Err(InvalidDisco::UnknownType(_)) => return,
            Err(_) => {
                self.drops.count(DropReason::InvalidDisco);
                return;
            }
        };
        match message {
            Message::Ping { tx, wg_key } => self.on_ping(slot, source, tx, wg_key, out, now),
            Message::Pong { tx, seen } => {
                let direct = matches!(source, Source::Direct(_));
                let is_ours = self
                    .peers
                    .slot_mut(slot)
                    .is_some_and(|peer| peer.paths.on_pong(&tx, direct, now));
                if !is_ours {
                    return;
                }
                match source {
                    Source::Direct(_) => self.mapped.on_seen(seen, now),
                    Source::Relay { relay, .. } => self.seen_by_relay(slot, relay),
                }
                self.tell_path(slot, now);
            }
            Message::CallMeMaybe { endpoints } => {
                let Source::Relay { relay, .. } = source else {
                    self.drops.count(DropReason::InvalidDisco);
                    return;
                };
                self.seen_by_relay(slot, relay);
                self.on_call_me_maybe(slot, &endpoints, out, now);
            }
        }
    }

    fn seen_by_relay(&mut self, slot: Slot, relay: mesh_types::RelayId) {
        if let Some(peer) = self.peers.slot_mut(slot) {
            peer.seen_relay = Some(relay);
            peer.gone = None;
        }
    }

    fn read_disco(
        &mut self,
        slot: Slot,
        source: Source,
        datagram: &[u8],
    ) -> Result<Message, InvalidDisco> {
        let Some(peer) = self.peers.slot_mut(slot) else {
            return Err(InvalidDisco::Format);
        };
        if matches!(source, Source::Relay { from, .. } if from != peer.wg_key) {
            return Err(InvalidDisco::Unauthentic);
        }
        if peer.shared.is_none() {
            peer.shared =
                SharedBox::new(&self.disco_private, peer.disco_key.as_bytes()).map(Box::new);
        }
        let shared = peer.shared.as_deref().ok_or(InvalidDisco::Unauthentic)?;
        disco::open(shared, datagram, &mut self.scratch)
    }

    fn on_ping(
        &mut self,
        slot: Slot,
        source: Source,
        tx: disco::TxId,
        wg_key: mesh_types::WgPublicKey,
        out: &mut Out,
        now: Instant,
    ) {
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        if peer.wg_key != wg_key {
            self.drops.count(DropReason::InvalidDisco);
            return;
        }
        let (via, seen) = match source {
            Source::Direct(addr) => {
                let rng = &mut self.rng;
                let mut random = || random_tx(rng);
                peer.paths
                    .on_ping(addr, &mut random, &mut self.actions, now);
                (Via::Direct(addr), addr)
            }
            Source::Relay { relay, .. } => {
                peer.seen_relay = Some(relay);
                peer.gone = None;
                let nowhere = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
                (Via::Relay(relay), nowhere)
            }
        };
        self.send_disco(slot, via, &Message::Pong { tx, seen }, out);
        self.perform_actions(slot, out, now);
    }

    fn on_call_me_maybe(
        &mut self,
        slot: Slot,
        endpoints: &[SocketAddr],
        out: &mut Out,
        now: Instant,
    ) {
        let underlay: Vec<SocketAddr> = endpoints
            .iter()
            .copied()
            .filter(|endpoint| {
                let addr = endpoint.ip().to_canonical().into();
                self.router.lookup(addr).is_none() && !self.filter.is_own(addr)
            })
            .collect();
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        let rng = &mut self.rng;
        let mut random = || random_tx(rng);
        peer.paths
            .on_call_me_maybe(&underlay, &mut random, &mut self.actions, now);
        self.perform_actions(slot, out, now);
    }

    /// Seals a disco message for the peer and sends it.
    pub(super) fn send_disco(&mut self, slot: Slot, via: Via, message: &Message, out: &mut Out) {
        let mut nonce = [0; NONCE];
        self.rng.fill_bytes(&mut nonce);
        let Some(peer) = self.peers.slot_mut(slot) else {
            return;
        };
        if peer.shared.is_none() {
            peer.shared =
                SharedBox::new(&self.disco_private, peer.disco_key.as_bytes()).map(Box::new);
        }
        let Some(shared) = peer.shared.as_deref() else {
            return;
        };
        let mut bytes = std::mem::take(&mut self.message);
        bytes.clear();
        disco::seal(&self.disco_public, shared, nonce, message, &mut bytes);
        self.send_via(slot, via, &bytes, out);
        self.message = bytes;
    }
}
