//! The Sync stream as a simulated agent reads it: peers and patches stay the bytes they came as,
//! since a thousand agents on the coordinator's own machine must cost less than what is measured.

use bytes::Bytes;
use mesh_api::pb;
use prost::Message as _;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// `mesh.v1.SyncResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Response {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4")]
    pub(crate) body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Body {
    #[prost(message, tag = "1")]
    Welcome(pb::SyncWelcome),
    #[prost(message, tag = "2")]
    Netmap(Chunk),
    #[prost(message, tag = "3")]
    HeartbeatAck(pb::HeartbeatAck),
    #[prost(message, tag = "4")]
    Goodbye(pb::SyncGoodbye),
}

/// `mesh.v1.NetmapChunk` without own node, filter and relays.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Chunk {
    #[prost(message, optional, tag = "1")]
    pub(crate) cursor: Option<pb::Cursor>,
    #[prost(bool, tag = "2")]
    pub(crate) full: bool,
    #[prost(bool, tag = "3")]
    pub(crate) last: bool,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    pub(crate) peers: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub(crate) removed: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub(crate) patches: Vec<Bytes>,
}

/// Writes requests as they are and reads answers as [`Response`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SyncCodec;

impl Codec for SyncCodec {
    type Encode = pb::SyncRequest;
    type Decode = Response;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for SyncCodec {
    type Item = pb::SyncRequest;
    type Error = Status;

    fn encode(&mut self, item: pb::SyncRequest, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let written = item.encode(into);
        written.map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for SyncCodec {
    type Item = Response;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Response>, Status> {
        let read = Response::decode(from);
        read.map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl Chunk {
    /// The bytes of all peers and patches.
    pub(crate) fn payload(&self) -> usize {
        self.peers.iter().chain(&self.patches).map(Bytes::len).sum()
    }
}

/// The id at the start of an encoded peer or patch (field 1, 16 bytes).
pub(crate) fn id_of(encoded: &[u8]) -> Option<[u8; 16]> {
    match encoded {
        [0x0a, 16, rest @ ..] => rest.first_chunk().copied(),
        _ => None,
    }
}

/// Whether an encoded peer or patch holds these bytes.
pub(crate) fn holds(encoded: &[u8], marker: &[u8]) -> bool {
    encoded.windows(marker.len()).any(|window| window == marker)
}
