//! Peers and patches as bytes.

use bytes::Bytes;
use mesh_netmap::PeerEncoder;
use mesh_types::{Endpoint, NodeId, NodeState, Peer, PeerPatch, RelayId};

/// Peers and patches as JSON: anything that can be read back will do.
pub(crate) struct Json;

#[derive(serde::Serialize, serde::Deserialize)]
struct WirePatch {
    id: NodeId,
    endpoints: Option<Vec<Endpoint>>,
    moves: bool,
    home_relay: Option<RelayId>,
    state: Option<NodeState>,
}

fn write_peer(peer: &Peer, unreported: bool) -> Bytes {
    serde_json::to_vec(&(peer, unreported))
        .expect("a peer is plain data")
        .into()
}

impl PeerEncoder for Json {
    fn peer(&self, peer: &Peer) -> Bytes {
        write_peer(peer, false)
    }

    fn unreported_peer(&self, peer: &Peer) -> Bytes {
        write_peer(peer, true)
    }

    fn patch(&self, patch: &PeerPatch) -> Bytes {
        let patch = patch.clone();
        let wire = WirePatch {
            id: patch.id,
            endpoints: patch.endpoints,
            moves: patch.home_relay.is_some(),
            home_relay: patch.home_relay.flatten(),
            state: patch.state,
        };
        serde_json::to_vec(&wire)
            .expect("a patch is plain data")
            .into()
    }
}

/// Reads what [`Json`] wrote: the peer, and whether it has told nothing yet.
pub(crate) fn read_peer(bytes: &[u8]) -> (Peer, bool) {
    serde_json::from_slice(bytes).expect("a peer")
}

/// Reads what [`Json`] wrote.
pub(crate) fn read_patch(bytes: &[u8]) -> PeerPatch {
    let wire: WirePatch = serde_json::from_slice(bytes).expect("a patch");
    PeerPatch {
        id: wire.id,
        endpoints: wire.endpoints,
        home_relay: wire.moves.then_some(wire.home_relay),
        state: wire.state,
    }
}
