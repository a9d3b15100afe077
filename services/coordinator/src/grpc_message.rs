//! `SyncResponse` as the coordinator writes it: the same bytes on the wire, with peers and patches
//! encoded once and shared between all streams that carry them.

use bytes::Bytes;
use mesh_api::pb;
use mesh_netmap::{EndReason, PeerEncoder, Update};
use mesh_types::{Peer, PeerPatch, Timestamp};
use prost::Message as _;

/// `mesh.v1.SyncResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Body {
    #[prost(message, tag = "1")]
    Welcome(pb::SyncWelcome),
    #[prost(message, tag = "2")]
    Netmap(Chunk),
    #[prost(message, tag = "3")]
    HeartbeatAck(pb::HeartbeatAck),
    #[prost(message, tag = "4")]
    Goodbye(pb::SyncGoodbye),
}

/// `mesh.v1.NetmapChunk`.
#[derive(Clone, PartialEq, prost::Message)]
struct Chunk {
    #[prost(message, optional, tag = "1")]
    cursor: Option<pb::Cursor>,
    #[prost(bool, tag = "2")]
    full: bool,
    #[prost(bool, tag = "3")]
    last: bool,
    #[prost(message, optional, tag = "4")]
    node: Option<pb::SelfNode>,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    peers: Vec<Bytes>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    removed: Vec<Vec<u8>>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    patches: Vec<Bytes>,
    #[prost(message, optional, tag = "8")]
    filter: Option<pb::PacketFilter>,
    #[prost(message, optional, tag = "9")]
    relays: Option<pb::RelayList>,
}

impl Response {
    /// The first message: the nonce that heartbeats sign, and the coordinator's time.
    pub fn welcome(nonce: &[u8; 32], now: Timestamp) -> Self {
        let welcome = pb::SyncWelcome {
            nonce: nonce.to_vec(),
            server_time: now.as_micros(),
        };
        Self {
            body: Some(Body::Welcome(welcome)),
        }
    }

    /// `refusal`: empty when the heartbeat was accepted.
    pub fn ack(sequence: u64, refusal: &str, now: Timestamp) -> Self {
        let ack = pb::HeartbeatAck {
            sequence,
            refusal: refusal.to_owned(),
            server_time: now.as_micros(),
        };
        Self {
            body: Some(Body::HeartbeatAck(ack)),
        }
    }

    /// The last message of a stream, and why.
    pub fn goodbye(reason: pb::sync_goodbye::Reason) -> Self {
        Self {
            body: Some(Body::Goodbye(pb::SyncGoodbye {
                reason: reason.into(),
            })),
        }
    }

    /// [`Response::goodbye`] for a session that the engine ended.
    pub fn ended(reason: EndReason) -> Self {
        Self::goodbye(match reason {
            EndReason::Removed => pb::sync_goodbye::Reason::Removed,
            EndReason::Replaced => pb::sync_goodbye::Reason::Replaced,
        })
    }

    /// One part of a netmap; the encoded peers and patches are taken over, not copied.
    pub fn netmap(update: Update) -> Self {
        let Update {
            cursor,
            full,
            last,
            node,
            peers,
            removed,
            patches,
            filter,
            relays,
        } = update;
        let relays = relays.map(|relays| pb::RelayList {
            relays: relays.iter().cloned().map(Into::into).collect(),
        });
        let chunk = Chunk {
            cursor: Some(cursor.into()),
            full,
            last,
            node: node.map(Into::into),
            peers,
            removed: removed
                .into_iter()
                .map(|id| id.as_bytes().to_vec())
                .collect(),
            patches,
            filter: filter.map(Into::into),
            relays,
        };
        Self {
            body: Some(Body::Netmap(chunk)),
        }
    }
}

/// Encodes peers and patches for the engine.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProtoEncoder;

impl PeerEncoder for ProtoEncoder {
    fn peer(&self, peer: &Peer) -> Bytes {
        pb::Peer::from(peer.clone()).encode_to_vec().into()
    }

    fn unreported_peer(&self, peer: &Peer) -> Bytes {
        let mut peer = pb::Peer::from(peer.clone());
        peer.unreported = true;
        peer.encode_to_vec().into()
    }

    fn patch(&self, patch: &PeerPatch) -> Bytes {
        pb::PeerPatch::from(patch.clone()).encode_to_vec().into()
    }
}

#[cfg(test)]
mod tests {
    use mesh_types::{
        Cursor, DiscoPublicKey, FilterRule, NodeId, NodeState, OverlayAddrs, PacketFilter, Relay,
        RelayId, Role, WgPublicKey,
    };

    use super::*;

    fn peer() -> Peer {
        Peer {
            id: NodeId::from_bytes([1; 16]),
            name: "worker".parse().expect("a name"),
            role: Role::Worker,
            addrs: OverlayAddrs {
                v4: [100, 64, 0, 1].into(),
                v6: [0xfd7a, 0, 0, 0, 0, 0, 0, 1].into(),
            },
            routes: vec!["10.0.0.0/8".parse().expect("a prefix")],
            wg_key: WgPublicKey::from_bytes([2; 32]),
            disco_key: DiscoPublicKey::from_bytes([3; 32]),
            services: Vec::new(),
            ssh_host_keys: vec!["ssh-ed25519 AAAA".into()],
            ssh_user: "root".into(),
            endpoints: vec!["192.0.2.1:51820".parse().expect("an address")],
            home_relay: Some(RelayId::from_bytes([4; 16])),
            state: NodeState::Online,
        }
    }

    #[test]
    fn what_is_written_is_read_as_a_sync_response() {
        let patch = PeerPatch {
            id: NodeId::from_bytes([1; 16]),
            endpoints: Some(Vec::new()),
            home_relay: Some(None),
            state: Some(NodeState::Stale),
        };
        let filter = PacketFilter {
            rules: vec![FilterRule {
                sources: Vec::new(),
                protocols: Vec::new(),
                ports: Vec::new(),
            }],
        };
        let relay = Relay {
            id: RelayId::from_bytes([4; 16]),
            derp: vec!["relay:8443".into()],
            stun: Vec::new(),
        };
        let update = Update {
            cursor: Cursor {
                version: 7,
                epoch: 8,
                volatile: 9,
            },
            full: true,
            last: true,
            node: None,
            peers: vec![
                ProtoEncoder.peer(&peer()),
                ProtoEncoder.unreported_peer(&peer()),
            ],
            removed: vec![NodeId::from_bytes([5; 16])],
            patches: vec![ProtoEncoder.patch(&patch)],
            filter: Some(filter.clone()),
            relays: Some([relay.clone()].into()),
        };
        let written = Response::netmap(update).encode_to_vec();
        let read = pb::SyncResponse::decode(written.as_slice()).expect("decodes");
        let Some(pb::sync_response::Message::Netmap(chunk)) = read.message else {
            panic!("not a netmap: {read:?}");
        };
        assert_eq!(chunk.peers.len(), 2);
        for (read, unreported) in chunk.peers.iter().zip([false, true]) {
            assert_eq!(read.unreported, unreported);
            assert_eq!(Peer::try_from(read.clone()), Ok(peer()));
        }
        assert_eq!(PeerPatch::try_from(chunk.patches[0].clone()), Ok(patch));
        assert_eq!(chunk.filter, Some(filter.into()));
        assert_eq!(chunk.relays.expect("relays").relays, [relay.into()]);
        assert_eq!(chunk.removed, [vec![5; 16]]);
        assert_eq!(chunk.cursor.map(|cursor| cursor.volatile_sequence), Some(9));
        assert!(chunk.full && chunk.last);
    }

    #[test]
    fn the_other_messages_keep_their_places() {
        let read = |response: Response| {
            let bytes = response.encode_to_vec();
            pb::SyncResponse::decode(bytes.as_slice())
                .expect("decodes")
                .message
        };
        use pb::sync_response::Message;
        let now = Timestamp::from_secs(5);
        assert!(matches!(
            read(Response::welcome(&[1; 32], now)),
            Some(Message::Welcome(welcome)) if welcome.nonce == [1; 32]
        ));
        assert!(matches!(
            read(Response::ack(3, "skew", now)),
            Some(Message::HeartbeatAck(ack)) if ack.sequence == 3 && ack.refusal == "skew"
        ));
        assert!(matches!(
            read(Response::ended(EndReason::Removed)),
            Some(Message::Goodbye(bye)) if bye.reason() == pb::sync_goodbye::Reason::Removed
        ));
    }
}
