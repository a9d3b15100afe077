//! ControlService: joining, renewing, leaving. `Sync` has a file of its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh_api::model::enrolment::Enrolment;
use mesh_api::pb;
use mesh_api::pb::control_service_server::ControlService;
use tonic::{Request, Response, Status};

use super::auth::caller;
use crate::app::{Core, Enrolled, Party, Renewal};
use crate::caller::Caller;
use crate::error::Error;
use crate::serve::PeerInfo;

#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) core: Arc<Core>,
}

fn id16(field: &'static str, bytes: &[u8]) -> Result<[u8; 16], Error> {
    bytes
        .try_into()
        .map_err(|_| Error::Invalid(format!("{field} has 16 bytes")))
}

fn enrolled(core: &Core, enrolled: Enrolled) -> pb::EnrolResponse {
    let Enrolled {
        id,
        network,
        name,
        role,
        owner,
        addrs,
        certificate,
        console_prefix,
    } = enrolled;
    let (network_id, network) = match network {
        Some((id, name)) => (id.as_bytes().to_vec(), name.to_string()),
        None => (Vec::new(), String::new()),
    };
    pb::EnrolResponse {
        node_id: id.to_vec(),
        network,
        network_id,
        name: name.to_string(),
        role: pb::Role::from(role).into(),
        addrs: addrs.map(Into::into),
        certificate,
        ca_certificate: core.ca.certificate().to_vec(),
        console_prefix,
        owner,
    }
}

/// From where a call comes.
fn source<T>(request: &Request<T>) -> Result<IpAddr, Status> {
    // INVARIANT: the server puts in who is on the other side of each connection.
    let peer = request.extensions().get::<PeerInfo>();
    peer.map(|peer| peer.addr.ip())
        .ok_or_else(|| Error::Unauthenticated.into())
}

/// Whose stream or wish this is.
pub(super) fn party(caller: &Caller) -> Result<Party, Error> {
    match caller {
        Caller::Node(node) => Ok(Party::Node(node.id)),
        Caller::Relay(relay) => Ok(Party::Relay(relay.id)),
        other => Err(Error::NotAllowed(other.kind().as_str())),
    }
}

#[tonic::async_trait]
impl ControlService for Control {
    async fn challenge(
        &self,
        request: Request<pb::ChallengeRequest>,
    ) -> Result<Response<pb::ChallengeResponse>, Status> {
        let peer = request.extensions().get::<PeerInfo>();
        let peer = peer.ok_or(Error::Unauthenticated)?;
        peer.share
            .take(Instant::now())
            .map_err(|wait| Error::RateLimited(wait.as_secs() + 1))?;
        let (challenge, now) = self.core.challenge()?;
        Ok(Response::new(pb::ChallengeResponse {
            nonce: challenge.nonce.to_vec(),
            dh_public: challenge.dh_public.to_vec(),
            server_time: now.as_micros(),
        }))
    }

    async fn enrol(
        &self,
        request: Request<pb::EnrolRequest>,
    ) -> Result<Response<pb::EnrolResponse>, Status> {
        let from = source(&request)?;
        let wish = Enrolment::try_from(request.into_inner()).map_err(Error::from)?;
        self.core.admit_enrolment(from, wish.token).await?;
        let core = Arc::clone(&self.core);
        let joined = self
            .core
            .finish("enrol", async move { core.enrol(wish).await })
            .await?;
        Ok(Response::new(enrolled(&self.core, joined)))
    }

    async fn renew(
        &self,
        request: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::RenewResponse>, Status> {
        let from = source(&request)?;
        let pb::RenewRequest {
            node_id,
            nonce,
            csr,
            signature,
        } = request.into_inner();
        let wish = Renewal {
            id: id16("node_id", &node_id)?,
            nonce,
            csr,
            signature,
        };
        self.core.admit_renewal(from, wish.id).await?;
        let core = Arc::clone(&self.core);
        let issued = self
            .core
            .finish("renew", async move { core.renew(wish).await })
            .await?;
        Ok(Response::new(pb::RenewResponse {
            certificate: issued.certificate,
            ca_certificate: self.core.ca.certificate().to_vec(),
        }))
    }

    type SyncStream = tokio_stream::Empty<Result<pb::SyncResponse, Status>>;

    async fn sync(
        &self,
        _request: Request<tonic::Streaming<pb::SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        // Routed to `sync::serve` instead, which writes peers that were encoded before.
        Err(Status::unimplemented("Sync is served elsewhere"))
    }

    async fn leave(
        &self,
        request: Request<pb::LeaveRequest>,
    ) -> Result<Response<pb::LeaveResponse>, Status> {
        let party = party(&caller(&request)?)?;
        let core = Arc::clone(&self.core);
        self.core
            .finish(
                "leave",
                async move { core.again(|| core.leave(party)).await },
            )
            .await?;
        Ok(Response::new(pb::LeaveResponse {}))
    }
}
