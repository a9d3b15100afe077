//! AdminService: operators' requests in, the use-cases' answers out.

use std::pin::pin;
use std::sync::Arc;

use mesh_api::model::enums;
use mesh_api::pb;
use mesh_api::pb::admin_service_server::AdminService;
use mesh_types::label::InvalidLabel;
use mesh_types::{Label, NetworkId, TokenId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Grpc;
use super::auth::{caller, shown};
use super::view;
use crate::app::{Core, NewToken, NodeRefText, NodeSettings};
use crate::caller::Caller;
use crate::error::Error;

/// How many events may wait for a slow watcher before it falls behind the feed.
const OUTBOUND: usize = 64;

/// The operator's name, for the audit.
fn operator<T>(request: &Request<T>) -> Result<String, Status> {
    match caller(request)? {
        Caller::Operator(operator) => Ok(operator.name.clone()),
        other => Err(Error::NotAllowed(other.kind().as_str()).into()),
    }
}

fn node_ref(node: Option<pb::NodeRef>) -> Result<NodeRefText, Error> {
    match node {
        Some(pb::NodeRef { network, name }) if !name.is_empty() => {
            Ok(NodeRefText { network, name })
        }
        _ => Err(Error::Invalid("name the node".into())),
    }
}

impl Grpc {
    /// The network whose things the caller may list; `None`: all.
    fn scope(&self, caller: &Caller, wished: &str) -> Result<Option<NetworkId>, Error> {
        let wished = match wished {
            "" => None,
            name => Some(self.core.network_named(name)?.record.id),
        };
        match caller {
            Caller::Operator(_) => Ok(wished),
            Caller::Node(node) if wished.is_none_or(|id| id == node.network) => {
                Ok(Some(node.network))
            }
            _ => Err(Error::WrongNetwork),
        }
    }

    /// Runs a use-case to its end, if need be several times, and answers with what `answer` makes
    /// of it.
    async fn act<W, T, R, F>(
        &self,
        name: &'static str,
        wish: W,
        action: impl Fn(Arc<Core>, W) -> F + Send + Sync + 'static,
        answer: impl FnOnce(T) -> R,
    ) -> Result<Response<R>, Status>
    where
        W: Clone + Send + Sync + 'static,
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let core = Arc::clone(&self.core);
        let action = async move { core.again(|| action(Arc::clone(&core), wish.clone())).await };
        let done = self.core.finish(name, action).await?;
        Ok(Response::new(answer(done)))
    }
}

#[tonic::async_trait]
impl AdminService for Grpc {
    async fn status(
        &self,
        _request: Request<pb::AdminStatusRequest>,
    ) -> Result<Response<pb::AdminStatusResponse>, Status> {
        Ok(Response::new(view::status(self.core.status().await?)))
    }

    async fn create_network(
        &self,
        request: Request<pb::CreateNetworkRequest>,
    ) -> Result<Response<pb::Network>, Status> {
        let by = operator(&request)?;
        let pb::CreateNetworkRequest { name } = request.into_inner();
        self.act(
            "network-create",
            (by, name),
            |core, (by, name)| async move { core.network_create(&by, &name).await },
            |info| view::network(&info.record, 0),
        )
        .await
    }

    async fn list_networks(
        &self,
        request: Request<pb::ListNetworksRequest>,
    ) -> Result<Response<pb::ListNetworksResponse>, Status> {
        let scope = self.scope(&caller(&request)?, "")?;
        let networks = self
            .core
            .members
            .networks()
            .iter()
            .filter(|info| scope.is_none_or(|id| info.record.id == id))
            .map(|info| view::network(&info.record, self.core.node_count(info.record.id)))
            .collect();
        Ok(Response::new(pb::ListNetworksResponse { networks }))
    }

    async fn delete_network(
        &self,
        request: Request<pb::DeleteNetworkRequest>,
    ) -> Result<Response<pb::DeleteNetworkResponse>, Status> {
        let by = operator(&request)?;
        let pb::DeleteNetworkRequest { name, force } = request.into_inner();
        self.act(
            "network-delete",
            (by, name, force),
            |core, (by, name, force)| async move { core.network_delete(&by, &name, force).await },
            |()| pb::DeleteNetworkResponse {},
        )
        .await
    }

    async fn create_token(
        &self,
        request: Request<pb::CreateTokenRequest>,
    ) -> Result<Response<pb::CreateTokenResponse>, Status> {
        let by = operator(&request)?;
        let pb::CreateTokenRequest {
            network,
            role,
            owner,
            reusable,
            lifetime_secs,
        } = request.into_inner();
        let role = enums::role(role).map_err(Error::from)?;
        let wish = NewToken {
            network,
            role,
            owner,
            reusable,
            lifetime_secs,
        };
        let core = Arc::clone(&self.core);
        self.act(
            "token-create",
            (by, wish),
            |core, (by, wish)| async move { core.token_create(&by, wish).await },
            |(token, record)| pb::CreateTokenResponse {
                token: token.reveal(),
                info: Some(view::token(&core.members, &record)),
            },
        )
        .await
    }

    async fn list_tokens(
        &self,
        request: Request<pb::ListTokensRequest>,
    ) -> Result<Response<pb::ListTokensResponse>, Status> {
        let records = self.core.token_list(&request.into_inner().network).await?;
        let tokens = records
            .iter()
            .map(|record| view::token(&self.core.members, record));
        Ok(Response::new(pb::ListTokensResponse {
            tokens: tokens.collect(),
        }))
    }

    async fn revoke_token(
        &self,
        request: Request<pb::RevokeTokenRequest>,
    ) -> Result<Response<pb::RevokeTokenResponse>, Status> {
        let by = operator(&request)?;
        let id = TokenId::try_from(request.into_inner().id.as_slice())
            .map_err(|error| Error::Invalid(error.to_string()))?;
        self.act(
            "token-revoke",
            (by, id),
            |core, (by, id)| async move { core.token_revoke(&by, id).await },
            |()| pb::RevokeTokenResponse {},
        )
        .await
    }

    async fn list_nodes(
        &self,
        request: Request<pb::ListNodesRequest>,
    ) -> Result<Response<pb::ListNodesResponse>, Status> {
        let caller = caller(&request)?;
        let scope = self.scope(&caller, &request.into_inner().network)?;
        let nodes = self.core.node_list(scope).await?;
        let nodes = nodes.into_iter().map(view::node).collect();
        Ok(Response::new(pb::ListNodesResponse { nodes }))
    }

    async fn show_node(
        &self,
        request: Request<pb::ShowNodeRequest>,
    ) -> Result<Response<pb::Node>, Status> {
        let wanted = node_ref(request.into_inner().node)?;
        Ok(Response::new(view::node(
            self.core.node_show(&wanted).await?,
        )))
    }

    async fn rename_node(
        &self,
        request: Request<pb::RenameNodeRequest>,
    ) -> Result<Response<pb::Node>, Status> {
        let by = operator(&request)?;
        let pb::RenameNodeRequest { node, new_name } = request.into_inner();
        let wanted = node_ref(node)?;
        self.act(
            "node-rename",
            (by, wanted, new_name),
            |core, (by, wanted, new_name)| async move {
                core.node_rename(&by, &wanted, &new_name).await
            },
            view::node,
        )
        .await
    }

    async fn set_node(
        &self,
        request: Request<pb::SetNodeRequest>,
    ) -> Result<Response<pb::Node>, Status> {
        let by = operator(&request)?;
        let request = request.into_inner();
        let settings = node_settings(&request)?;
        let wanted = node_ref(request.node)?;
        self.act(
            "node-set",
            (by, wanted, settings),
            |core, (by, wanted, settings)| async move { core.node_set(&by, &wanted, settings).await },
            view::node,
        )
        .await
    }

    async fn remove_node(
        &self,
        request: Request<pb::RemoveNodeRequest>,
    ) -> Result<Response<pb::RemoveNodeResponse>, Status> {
        let by = operator(&request)?;
        let wanted = node_ref(request.into_inner().node)?;
        self.act(
            "node-remove",
            (by, wanted),
            |core, (by, wanted)| async move { core.node_remove(&by, &wanted).await },
            |()| pb::RemoveNodeResponse {},
        )
        .await
    }

    async fn accept_host_key(
        &self,
        request: Request<pb::AcceptHostKeyRequest>,
    ) -> Result<Response<pb::Node>, Status> {
        let by = operator(&request)?;
        let wanted = node_ref(request.into_inner().node)?;
        self.act(
            "host-key-accept",
            (by, wanted),
            |core, (by, wanted)| async move { core.host_key_accept(&by, &wanted).await },
            view::node,
        )
        .await
    }

    async fn permit_rejoin(
        &self,
        request: Request<pb::PermitRejoinRequest>,
    ) -> Result<Response<pb::PermitRejoinResponse>, Status> {
        let by = operator(&request)?;
        let wanted = node_ref(request.into_inner().node)?;
        self.act(
            "permit-rejoin",
            (by, wanted),
            |core, (by, wanted)| async move { core.permit_rejoin(&by, &wanted).await },
            |permit| pb::PermitRejoinResponse {
                permit: permit.to_vec(),
            },
        )
        .await
    }

    async fn add_operator(
        &self,
        request: Request<pb::AddOperatorRequest>,
    ) -> Result<Response<pb::AddOperatorResponse>, Status> {
        let by = operator(&request)?;
        let pb::AddOperatorRequest { name, csr } = request.into_inner();
        let ca = self.core.ca.certificate().to_vec();
        self.act(
            "operator-add",
            (by, name, csr),
            |core, (by, name, csr)| async move { core.operator_add(&by, &name, &csr).await },
            |(id, issued)| pb::AddOperatorResponse {
                id: id.as_bytes().to_vec(),
                certificate: issued.certificate,
                ca_certificate: ca,
            },
        )
        .await
    }

    async fn list_operators(
        &self,
        _request: Request<pb::ListOperatorsRequest>,
    ) -> Result<Response<pb::ListOperatorsResponse>, Status> {
        let operators = self.core.operator_list();
        let operators = operators
            .iter()
            .map(|record| view::operator(record))
            .collect();
        Ok(Response::new(pb::ListOperatorsResponse { operators }))
    }

    async fn revoke_operator(
        &self,
        request: Request<pb::RevokeOperatorRequest>,
    ) -> Result<Response<pb::RevokeOperatorResponse>, Status> {
        let by = operator(&request)?;
        let pb::RevokeOperatorRequest { name } = request.into_inner();
        self.act(
            "operator-revoke",
            (by, name),
            |core, (by, name)| async move { core.operator_revoke(&by, &name).await },
            |()| pb::RevokeOperatorResponse {},
        )
        .await
    }

    async fn list_audit(
        &self,
        request: Request<pb::ListAuditRequest>,
    ) -> Result<Response<pb::ListAuditResponse>, Status> {
        let pb::ListAuditRequest { limit } = request.into_inner();
        let entries = self.core.audit(limit).await?;
        let entries = entries.into_iter().map(view::audit).collect();
        Ok(Response::new(pb::ListAuditResponse { entries }))
    }

    type WatchEventsStream = ReceiverStream<Result<pb::Event, Status>>;

    async fn watch_events(
        &self,
        request: Request<pb::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let shown = shown(&request)?;
        let pb::WatchEventsRequest {
            network,
            follow,
            limit,
        } = request.into_inner();
        let (past, mut feed) = self.core.events(&network, limit).await?;
        let (outbound, answers) = mpsc::channel(OUTBOUND);
        let (shutdown, guard) = (self.shutdown.clone(), self.shutdown.guard());
        self.spawn("event-watch", async move {
            let _guard = guard;
            for event in past {
                if outbound.send(Ok(view::event(event))).await.is_err() {
                    return;
                }
            }
            if !follow {
                return;
            }
            let mut over = pin!(shown.over());
            loop {
                let next = tokio::select! {
                    next = feed.next() => next,
                    () = &mut over => Err(Error::Revoked),
                    () = outbound.closed() => return,
                    () = shutdown.draining() => Err(Error::ShuttingDown),
                };
                let answers = match next {
                    Ok(events) => events
                        .into_iter()
                        .map(|event| Ok(view::event(event)))
                        .collect(),
                    Err(error) => vec![Err(Status::from(error))],
                };
                for answer in answers {
                    let over = answer.is_err();
                    if outbound.send(answer).await.is_err() || over {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

fn node_settings(request: &pb::SetNodeRequest) -> Result<NodeSettings, Error> {
    let invalid = |error: InvalidLabel| Error::Invalid(error.to_string());
    // What only informs may be guessed when it is read, but not when it is set.
    let uptime_class = match pb::UptimeClass::try_from(request.uptime_class) {
        Ok(pb::UptimeClass::Unspecified) => None,
        Ok(class) => Some(enums::uptime_class(class.into())),
        Err(_) => {
            return Err(Error::Invalid("there is no such uptime class".to_owned()));
        }
    };
    let set_labels = request
        .set_labels
        .iter()
        .map(|(key, value)| Label::new(key, value).map_err(invalid))
        .collect::<Result<Vec<_>, _>>()?;
    if uptime_class.is_none() && set_labels.is_empty() && request.remove_labels.is_empty() {
        return Err(Error::Invalid("nothing to set was named".to_owned()));
    }
    Ok(NodeSettings {
        uptime_class,
        set_labels,
        remove_labels: request.remove_labels.clone(),
    })
}
