//! The only place of this crate that sees the wire's messages.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use mesh_api::ProtocolError;
use mesh_api::client::{ConnectError, connect};
use mesh_api::identity::{ENROL_DISCO, ENROL_WG, enrol_proof, renew_bytes};
use mesh_api::model::enums;
use mesh_api::model::netmap::Assembler;
use mesh_api::model::node::NodeReport;
use mesh_api::pb;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::tls::COORDINATOR_NAME;
use mesh_types::key::SecretKey;
use mesh_types::{
    Cursor, JoinToken, NetworkId, NetworkName, NodeId, OverlayAddrs, Role, Standing, Timestamp,
};
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::control::Incoming;
use crate::enrol::EnrolOptions;
use crate::state_dir::{Enrolled, StateDir};

pub mod message;

/// Messages that may wait to be written to the stream.
const OUTGOING: usize = 16;
/// The longest message accepted: a netmap chunk is at most 512 KiB.
const MAX_MESSAGE: usize = 8 << 20;

/// An RPC failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RpcError {
    /// The coordinator could not be reached, said no, or broke off.
    #[error("{}", plain(.0))]
    Status(Box<Status>),
    /// It said what cannot be.
    #[error("the coordinator's answer cannot be understood")]
    Protocol(#[from] ProtocolError),
    /// A key operation failed here.
    #[error("signing failed on this machine")]
    Sign,
}

impl From<Status> for RpcError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Metadata key of the coordinator's word for what went wrong.
const REASON_KEY: &str = "mesh-error";

/// The coordinator's word for what went wrong; empty when it gave none.
pub(crate) fn word(status: &Status) -> &str {
    status
        .metadata()
        .get(REASON_KEY)
        .and_then(|word| word.to_str().ok())
        .unwrap_or_default()
}

/// Whether the coordinator says that this node is none of its any more.
fn says_removed(status: &Status) -> bool {
    word(status) == "removed"
}

impl RpcError {
    /// Whether the coordinator says that this node is none of its any more.
    pub(crate) fn is_removal(&self) -> bool {
        matches!(self, Self::Status(status) if says_removed(status))
    }
}

impl OpenError {
    /// Whether the coordinator says that this node is none of its any more.
    pub(crate) fn is_removal(&self) -> bool {
        matches!(self, Self::Status(status) if says_removed(status))
    }
}

impl StreamEnd {
    /// Whether the coordinator says that this node is none of its any more.
    pub(crate) fn is_removal(&self) -> bool {
        matches!(self, Self::Status(status) if says_removed(status))
    }
}

/// What a status says to a person: why there was no connection, or the coordinator's own words.
pub(crate) fn plain(status: &Status) -> String {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<ConnectError>() {
            return error.to_string();
        }
        source = error.source();
    }
    match (status.code(), status.message()) {
        (Code::Unavailable, "") => "the coordinator is not available".to_owned(),
        (code, "") => code.description().to_owned(),
        (_, message) => message.to_owned(),
    }
}

fn client(channel: Channel) -> ControlServiceClient<Channel> {
    ControlServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

/// A one-use challenge.
pub(crate) struct Challenge {
    nonce: Vec<u8>,
    dh_public: [u8; 32],
    pub(crate) server_time: Timestamp,
}

/// Asks for a challenge.
pub(crate) async fn challenge(channel: Channel) -> Result<Challenge, RpcError> {
    let response = client(channel).challenge(pb::ChallengeRequest {}).await?;
    let pb::ChallengeResponse {
        nonce,
        dh_public,
        server_time,
    } = response.into_inner();
    let dh_public = dh_public
        .as_slice()
        .try_into()
        .map_err(|_| ProtocolError::invalid("challenge.dh_public", "not 32 bytes"))?;
    Ok(Challenge {
        nonce,
        dh_public,
        server_time: Timestamp::from_micros(server_time),
    })
}

/// What an enrolment gave.
pub(crate) struct EnrolAnswer {
    pub(crate) enrolled: Enrolled,
    pub(crate) certificate: Vec<u8>,
    pub(crate) ca: Vec<u8>,
}

/// Enrols with the keys of the state directory.
pub(crate) async fn enrol(
    channel: Channel,
    token: &JoinToken,
    challenge: &Challenge,
    hostname: &str,
    options: &EnrolOptions,
    state: &StateDir,
) -> Result<EnrolAnswer, RpcError> {
    let spki = state.identity_public().as_spki_der();
    let request = pb::EnrolRequest {
        token_id: token.id.as_bytes().to_vec(),
        token_secret: token.secret.to_vec(),
        nonce: challenge.nonce.clone(),
        hostname: hostname.to_owned(),
        csr: state.identity().csr_der().map_err(|_| RpcError::Sign)?,
        wg_key: state.wg_public().as_bytes().to_vec(),
        disco_key: state.disco_public().as_bytes().to_vec(),
        wg_proof: proof(ENROL_WG, state.wg_key(), challenge, spki),
        disco_proof: proof(ENROL_DISCO, state.disco_key(), challenge, spki),
        version: options.version.clone(),
        permit: options.permit.clone(),
        roles: options
            .roles
            .iter()
            .map(|role| pb::Role::from(*role).into())
            .collect(),
    };
    let response = client(channel).enrol(request).await?.into_inner();
    let pb::EnrolResponse {
        node_id,
        network,
        network_id,
        name,
        role,
        addrs,
        certificate,
        ca_certificate,
        console_prefix,
        owner,
    } = response;
    let invalid = |field: &'static str| ProtocolError::invalid(field, "not what it should be");
    let role = enums::role(role)?;
    let (network, network_id, addrs) = if role == Role::Relay {
        (None, None, None)
    } else {
        let name: NetworkName = network.parse().map_err(|_| invalid("enrol.network"))?;
        let id =
            NetworkId::try_from(network_id.as_slice()).map_err(|_| invalid("enrol.network_id"))?;
        let addrs = addrs.ok_or(ProtocolError::Missing("enrol.addrs"))?;
        (Some(name), Some(id), Some(OverlayAddrs::try_from(addrs)?))
    };
    let enrolled = Enrolled {
        node: NodeId::try_from(node_id.as_slice()).map_err(|_| invalid("enrol.node_id"))?,
        name: name.parse().map_err(|_| invalid("enrol.name"))?,
        role,
        network,
        network_id,
        addrs,
        console_prefix,
        owner,
        coordinators: token.coordinators.clone(),
    };
    Ok(EnrolAnswer {
        enrolled,
        certificate,
        ca: ca_certificate,
    })
}

fn proof(context: &[u8], key: &SecretKey, challenge: &Challenge, spki: &[u8]) -> Vec<u8> {
    let secret = StaticSecret::from(*key.expose());
    let shared = secret.diffie_hellman(&PublicKey::from(challenge.dh_public));
    enrol_proof(context, shared.as_bytes(), &challenge.nonce, spki).to_vec()
}

/// Asks for a new certificate by a signature of the identity key; gives certificate and CA (DER).
pub(crate) async fn renew(
    channel: Channel,
    node: NodeId,
    state: &StateDir,
) -> Result<(Vec<u8>, Vec<u8>), RpcError> {
    let challenge = challenge(channel.clone()).await?;
    let csr = state.identity().csr_der().map_err(|_| RpcError::Sign)?;
    let signed = renew_bytes(&challenge.nonce, node.as_bytes(), &csr);
    let signature = state.identity().sign(&signed).map_err(|_| RpcError::Sign)?;
    let request = pb::RenewRequest {
        node_id: node.as_bytes().to_vec(),
        nonce: challenge.nonce,
        csr,
        signature,
    };
    let response = client(channel).renew(request).await?.into_inner();
    Ok((response.certificate, response.ca_certificate))
}

/// Leaves the network for good.
pub(crate) async fn leave(channel: Channel) -> Result<(), RpcError> {
    client(channel).leave(pb::LeaveRequest {}).await?;
    Ok(())
}

/// An open control stream.
pub(crate) struct SyncStream {
    outgoing: mpsc::Sender<pb::SyncRequest>,
    incoming: Streaming<pb::SyncResponse>,
    assembler: Assembler,
}

/// Opens a control stream; boxed, since it is kept beside the state machine.
pub(crate) fn open(
    addrs: Vec<String>,
    tls: Arc<ClientConfig>,
    cursor: Option<Cursor>,
    version: String,
) -> Pin<Box<dyn Future<Output = Result<SyncStream, OpenError>> + Send>> {
    Box::pin(async move {
        let channel = connect(&addrs, COORDINATOR_NAME, tls).await?;
        let (outgoing, requests) = mpsc::channel(OUTGOING);
        // The channel is new, so there is room.
        let _sent = outgoing.try_send(message::hello(cursor, version));
        let response = client(channel).sync(ReceiverStream::new(requests)).await?;
        Ok(SyncStream {
            outgoing,
            incoming: response.into_inner(),
            assembler: Assembler::default(),
        })
    })
}

/// A control stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// No connection; says why, address by address.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The coordinator said no.
    #[error("{}", plain(.0))]
    Status(Box<Status>),
}

impl From<Status> for OpenError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl SyncStream {
    /// Signs and sends a heartbeat. `false`: the stream does not take it.
    pub(crate) fn heartbeat(
        &self,
        node: NodeId,
        nonce: &[u8],
        sequence: u64,
        time: Timestamp,
        standing: Standing,
        state: &StateDir,
    ) -> bool {
        message::heartbeat(state.identity(), node, nonce, sequence, time, standing)
            .is_ok_and(|beat| self.outgoing.try_send(beat).is_ok())
    }

    /// Sends the report. `false`: the stream does not take it.
    pub(crate) fn report(&self, report: NodeReport) -> bool {
        self.outgoing.try_send(message::report(report)).is_ok()
    }

    /// The next thing the coordinator says. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Incoming, StreamEnd> {
        match self.incoming.message().await {
            Ok(Some(response)) => Ok(message::incoming(response, &mut self.assembler)?),
            Ok(None) => Err(StreamEnd::Closed),
            Err(status) => Err(StreamEnd::Status(Box::new(status))),
        }
    }
}

/// How a control stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamEnd {
    /// Without a word.
    #[error("the coordinator closed the stream")]
    Closed,
    /// With a status.
    #[error("{}", plain(.0))]
    Status(Box<Status>),
    /// With a message that cannot be.
    #[error("the coordinator's message cannot be understood")]
    Protocol(#[from] ProtocolError),
}
