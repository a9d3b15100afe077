//! Heartbeats: what a node signs, and why one is refused.

use serde::{Deserialize, Serialize};

/// What precedes nonce and body under a heartbeat's signature.
pub const HEARTBEAT_CONTEXT: &[u8] = b"mesh-heartbeat-v1";
/// What precedes the parts under a renewal's signature.
pub const RENEW_CONTEXT: &[u8] = b"mesh-renew-v1";
/// How often a node sends one, in seconds.
pub const HEARTBEAT_INTERVAL_SECS: u64 = 15;
/// How long one counts, in seconds.
pub const HEARTBEAT_TTL_SECS: u64 = 45;
/// How long past the time to live a node is stale before it is offline, in seconds.
pub const STALE_SECS: u64 = 60;
/// The most that a node's clock may differ from the coordinator's, in seconds.
pub const MAX_SKEW_SECS: u64 = 30;

/// The bytes under a heartbeat's signature: context ‖ nonce ‖ the exact body bytes as sent.
pub fn signed_bytes(nonce: &[u8], body: &[u8]) -> Vec<u8> {
    [HEARTBEAT_CONTEXT, nonce, body].concat()
}

/// Why a heartbeat was refused; each has its own event and its own word on the wire.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    thiserror::Error,
)]
#[serde(rename_all = "kebab-case")]
pub enum HeartbeatRefusal {
    /// Its sequence number was not above the last one.
    #[error("replayed: its sequence number was seen before")]
    Replay,
    /// Its time differs from the coordinator's by more than [`MAX_SKEW_SECS`].
    #[error("clock skew: its time differs from the coordinator's by more than 30 s")]
    Skew,
    /// It names another node than the stream's.
    #[error("wrong node: it names another node than the one that is connected")]
    WrongNode,
    /// Its signature does not fit its bytes.
    #[error("bad signature: its bytes were changed or signed by another key")]
    BadSignature,
    /// Its body is not a heartbeat.
    #[error("malformed: its body is not a heartbeat")]
    Malformed,
}

impl HeartbeatRefusal {
    /// Every reason.
    pub const ALL: [Self; 5] = [
        Self::Replay,
        Self::Skew,
        Self::WrongNode,
        Self::BadSignature,
        Self::Malformed,
    ];
}
