//! The coordinator's end of the control stream's bytes; the node's end is the product's own.

use mesh_api::model::heartbeat::HeartbeatFacts;
use mesh_api::model::netmap::Assembler;
use mesh_api::model::node::NodeReport;
use mesh_api::pb;
use mesh_node::control::machine::Incoming;
use mesh_node::control::wire;
use mesh_types::{Cursor, NodeId, Standing, Timestamp};
use prost::Message as _;

/// What a node says.
#[derive(Debug)]
pub(crate) enum Said {
    Hello(Option<Cursor>),
    Heartbeat {
        body: Vec<u8>,
        signature: Vec<u8>,
        facts: Option<HeartbeatFacts>,
    },
    Report(NodeReport),
}

pub(crate) fn hello(cursor: Option<Cursor>) -> Vec<u8> {
    wire::hello(cursor, "simulated".to_owned()).encode_to_vec()
}

pub(crate) fn heartbeat(
    identity: &mesh_api::identity::Identity,
    node: NodeId,
    nonce: &[u8],
    sequence: u64,
    time: Timestamp,
    standing: Standing,
) -> Vec<u8> {
    wire::heartbeat(identity, node, nonce, sequence, time, standing)
        .expect("the system has randomness")
        .encode_to_vec()
}

pub(crate) fn report(report: NodeReport) -> Vec<u8> {
    wire::report(report).encode_to_vec()
}

/// What the coordinator hears.
pub(crate) fn said(bytes: &[u8]) -> Said {
    let request = pb::SyncRequest::decode(bytes).expect("a node's message");
    match request.message.expect("a node's message says something") {
        pb::sync_request::Message::Hello(hello) => Said::Hello(hello.cursor.map(Into::into)),
        pb::sync_request::Message::Heartbeat(pb::Heartbeat { body, signature }) => {
            Said::Heartbeat {
                facts: HeartbeatFacts::read(&body),
                body,
                signature,
            }
        }
        pb::sync_request::Message::Report(report) => {
            Said::Report(report.try_into().expect("a report that can be"))
        }
    }
}

/// What the node hears, and whether it was a part of a netmap.
pub(crate) fn heard(bytes: &[u8], assembler: &mut Assembler) -> (Incoming, bool) {
    let response = pb::SyncResponse::decode(bytes).expect("a coordinator's message");
    let is_part = matches!(
        response.message,
        Some(pb::sync_response::Message::Netmap(_))
    );
    let incoming = wire::incoming(response, assembler).expect("a message that can be");
    (incoming, is_part)
}

/// What a stream ends with when the node is none of the network any more.
pub(crate) fn goodbye_removed() -> Vec<u8> {
    crate::cores::grpc_message::Response::goodbye(pb::sync_goodbye::Reason::Removed).encode_to_vec()
}

/// What a stream ends with when the coordinator stops.
pub(crate) fn goodbye_shutdown() -> Vec<u8> {
    crate::cores::grpc_message::Response::goodbye(pb::sync_goodbye::Reason::Shutdown)
        .encode_to_vec()
}
