//! The messages of a control stream, between the wire and [`crate::control::machine`]. No IO: the
//! shell and the simulation both speak through here.

use mesh_api::ProtocolError;
use mesh_api::identity::{Identity, InvalidIdentity};
use mesh_api::model::netmap::Assembler;
use mesh_api::model::node::NodeReport;
use mesh_api::pb;
use mesh_types::heartbeat::{HeartbeatRefusal, signed_bytes};
use mesh_types::{Cursor, NodeId, Standing, Timestamp};
use prost::Message as _;

use crate::control::{Goodbye, Incoming};

/// The first message of a stream.
pub fn hello(cursor: Option<Cursor>, version: String) -> pb::SyncRequest {
    request(pb::sync_request::Message::Hello(pb::SyncHello {
        cursor: cursor.map(Into::into),
        version,
    }))
}

/// A signed heartbeat.
///
/// # Errors
/// The system gave no randomness to sign with.
pub fn heartbeat(
    identity: &Identity,
    node: NodeId,
    nonce: &[u8],
    sequence: u64,
    time: Timestamp,
    standing: Standing,
) -> Result<pb::SyncRequest, InvalidIdentity> {
    let body = pb::HeartbeatBody {
        node_id: node.as_bytes().to_vec(),
        sequence,
        time: time.as_micros(),
        status: standing.to_string(),
    }
    .encode_to_vec();
    let signature = identity.sign(&signed_bytes(nonce, &body))?;
    let beat = pb::Heartbeat { body, signature };
    Ok(request(pb::sync_request::Message::Heartbeat(beat)))
}

/// What the node says of itself.
pub fn report(report: NodeReport) -> pb::SyncRequest {
    request(pb::sync_request::Message::Report(report.into()))
}

fn request(message: pb::sync_request::Message) -> pb::SyncRequest {
    pb::SyncRequest {
        message: Some(message),
    }
}

/// Reads what the coordinator says; `assembler` joins the parts of one stream's updates.
///
/// # Errors
/// The message cannot be; the stream must end.
pub fn incoming(
    response: pb::SyncResponse,
    assembler: &mut Assembler,
) -> Result<Incoming, ProtocolError> {
    let Some(message) = response.message else {
        // A later coordinator says something this program does not know.
        return Ok(Incoming::Partial);
    };
    Ok(match message {
        pb::sync_response::Message::Welcome(pb::SyncWelcome { nonce, server_time }) => {
            Incoming::Welcome {
                nonce,
                server_time: Timestamp::from_micros(server_time),
            }
        }
        pb::sync_response::Message::Netmap(chunk) => match assembler.push(chunk)? {
            Some(update) => Incoming::Netmap(update),
            None => Incoming::Partial,
        },
        pb::sync_response::Message::HeartbeatAck(ack) => {
            let pb::HeartbeatAck {
                sequence: _,
                refusal,
                server_time,
            } = ack;
            Incoming::HeartbeatAck {
                refusal: refusal_of(&refusal),
                server_time: Timestamp::from_micros(server_time),
            }
        }
        pb::sync_response::Message::Goodbye(pb::SyncGoodbye { reason }) => {
            Incoming::Goodbye(match pb::sync_goodbye::Reason::try_from(reason) {
                Ok(pb::sync_goodbye::Reason::Removed) => Goodbye::Removed,
                Ok(pb::sync_goodbye::Reason::Replaced) => Goodbye::Replaced,
                _ => Goodbye::Shutdown,
            })
        }
    })
}

fn refusal_of(word: &str) -> Option<HeartbeatRefusal> {
    match word {
        "" => None,
        "replay" => Some(HeartbeatRefusal::Replay),
        "skew" => Some(HeartbeatRefusal::Skew),
        "wrong-node" => Some(HeartbeatRefusal::WrongNode),
        "bad-signature" => Some(HeartbeatRefusal::BadSignature),
        _ => Some(HeartbeatRefusal::Malformed),
    }
}
