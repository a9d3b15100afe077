//! What a heartbeat's signed body says.

use mesh_types::{Standing, Timestamp};
use prost::Message as _;

use crate::pb;

/// The facts of one heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatFacts {
    /// Id of the node or relay that it names; `None` when that is no id.
    pub subject: Option<[u8; 16]>,
    /// Counts up from 1 on each stream.
    pub sequence: u64,
    /// The sender's clock.
    pub time: Timestamp,
    /// What it says of itself.
    pub standing: Standing,
}

impl HeartbeatFacts {
    /// Reads a body; `None` when it is none.
    pub fn read(body: &[u8]) -> Option<Self> {
        let pb::HeartbeatBody {
            node_id,
            sequence,
            time,
            status,
        } = pb::HeartbeatBody::decode(body).ok()?;
        Some(Self {
            subject: node_id.as_slice().try_into().ok(),
            sequence,
            time: Timestamp::from_micros(time),
            standing: Standing::read(&status),
        })
    }
}
