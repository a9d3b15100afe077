//! The watches of relays and gateways, and the SSH authority.

use std::pin::pin;
use std::sync::Arc;

use mesh_api::pb;
use mesh_api::pb::gateway_service_server::GatewayService;
use mesh_api::pb::relay_service_server::RelayService;
use mesh_api::pb::ssh_service_server::SshService;
use mesh_netmap::{ClientUpdate, EndReason, Output, RouteUpdate};
use mesh_types::{NodeId, OperatorId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Grpc;
use super::auth::{caller, shown};
use crate::app::SshRequest;
use crate::caller::Caller;
use crate::error::Error;
use crate::known::Shown;
use crate::netmap::Of;

/// How many answers may wait for a slow reader; what follows waits, merged, in the engine.
const OUTBOUND: usize = 2;

type Answers<T> = ReceiverStream<Result<T, Status>>;

impl Grpc {
    /// Answers what a session brings until it ends, the caller goes or is the enrolled one no
    /// more, or we shut down.
    async fn watch<T: Send + 'static>(
        &self,
        of: Of,
        who: &'static str,
        shown: Arc<Shown>,
        answer: impl Fn(Output) -> Option<T> + Send + 'static,
    ) -> Result<Response<Answers<T>>, Status> {
        let mut session = self.core.netmap.open(of).await?;
        let (outbound, answers) = mpsc::channel(OUTBOUND);
        let (shutdown, guard) = (self.shutdown.clone(), self.shutdown.guard());
        self.spawn("watch", async move {
            let _guard = guard;
            let mut over = pin!(shown.over());
            loop {
                let news = tokio::select! {
                    news = session.next() => news,
                    () = &mut over => Some(Output::End(EndReason::Removed)),
                    () = outbound.closed() => return,
                    () = shutdown.draining() => None,
                };
                let next = match news {
                    Some(Output::End(EndReason::Removed)) => Err(Error::Removed(who).into()),
                    Some(Output::End(EndReason::Replaced)) => {
                        Err(Status::aborted("a newer watch took over"))
                    }
                    None => Err(Error::ShuttingDown.into()),
                    Some(output) => match answer(output) {
                        Some(message) => Ok(message),
                        None => continue,
                    },
                };
                let over = next.is_err();
                if outbound.send(next).await.is_err() || over {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

#[tonic::async_trait]
impl RelayService for Grpc {
    type WatchClientsStream = Answers<pb::WatchClientsResponse>;

    async fn watch_clients(
        &self,
        request: Request<pb::WatchClientsRequest>,
    ) -> Result<Response<Self::WatchClientsStream>, Status> {
        let Caller::Relay(relay) = caller(&request)? else {
            return Err(Error::NotAllowed("other").into());
        };
        self.watch(
            Of::Clients(relay.id),
            "relay",
            shown(&request)?,
            |output| match output {
                Output::Clients(update) => Some(clients(update)),
                _ => None,
            },
        )
        .await
    }
}

fn clients(update: ClientUpdate) -> pb::WatchClientsResponse {
    let ClientUpdate {
        full,
        last,
        clients,
        removed,
    } = update;
    let client =
        |(key, network): (mesh_types::WgPublicKey, mesh_types::NetworkId)| pb::RelayClient {
            wg_key: key.as_bytes().to_vec(),
            network_id: network.as_bytes().to_vec(),
        };
    pb::WatchClientsResponse {
        full,
        last,
        clients: clients.into_iter().map(client).collect(),
        removed: removed
            .into_iter()
            .map(|key| key.as_bytes().to_vec())
            .collect(),
    }
}

#[tonic::async_trait]
impl GatewayService for Grpc {
    type WatchRoutesStream = Answers<pb::WatchRoutesResponse>;

    async fn watch_routes(
        &self,
        request: Request<pb::WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        let Caller::Node(gateway) = caller(&request)? else {
            return Err(Error::NotAllowed("other").into());
        };
        self.watch(
            Of::Routes(gateway.network, gateway.id),
            "gateway",
            shown(&request)?,
            |output| match output {
                Output::Routes(update) => Some(routes(update)),
                _ => None,
            },
        )
        .await
    }
}

fn routes(update: RouteUpdate) -> pb::WatchRoutesResponse {
    let RouteUpdate {
        full,
        changed,
        removed,
    } = update;
    pb::WatchRoutesResponse {
        full,
        changed: changed.into_iter().map(Into::into).collect(),
        removed: removed
            .into_iter()
            .map(|id| id.as_bytes().to_vec())
            .collect(),
    }
}

#[tonic::async_trait]
impl SshService for Grpc {
    async fn issue_certificate(
        &self,
        request: Request<pb::IssueCertificateRequest>,
    ) -> Result<Response<pb::IssueCertificateResponse>, Status> {
        let caller = caller(&request)?;
        let pb::IssueCertificateRequest {
            public_key,
            network,
            principal,
            targets,
            operator,
        } = request.into_inner();
        let on_behalf_of = match operator.as_slice() {
            [] => None,
            id => {
                let id = OperatorId::try_from(id);
                Some(id.map_err(|error| Error::Invalid(error.to_string()))?)
            }
        };
        let targets = targets
            .iter()
            .map(|id| NodeId::try_from(id.as_slice()))
            .collect::<Result<_, _>>()
            .map_err(|error| Error::Invalid(error.to_string()))?;
        let wish = SshRequest {
            public_key,
            network,
            principal,
            targets,
            on_behalf_of,
        };
        let core = Arc::clone(&self.core);
        let action = async move { core.again(|| core.ssh_issue(&caller, wish.clone())).await };
        let certificate = self.core.finish("ssh-issue", action).await?;
        Ok(Response::new(pb::IssueCertificateResponse {
            certificate: certificate.to_string(),
            valid_before: certificate.valid_until().as_micros(),
        }))
    }
}
