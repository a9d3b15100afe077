//! How the roles of this process join: by tokens, like any other machine.

use std::path::Path;

use anyhow::{Context as _, Result};
use mesh_api::pb;
use mesh_api::pb::admin_service_client::AdminServiceClient;
use mesh_node::{EnrolOptions, Enrolled, StateDir};
use mesh_types::{JoinToken, NetworkName, Role};
use tonic::transport::Channel;

/// Makes join tokens as the first operator.
#[derive(Debug, Clone)]
pub(super) struct Joiner {
    admin: AdminServiceClient<Channel>,
    /// Where the coordinator is now.
    coordinators: Vec<String>,
}

impl Joiner {
    pub(super) fn new(channel: Channel, coordinators: Vec<String>) -> Self {
        Self {
            admin: AdminServiceClient::new(channel),
            coordinators,
        }
    }

    /// A client of the coordinator's admin service.
    pub(super) fn admin(&self) -> AdminServiceClient<Channel> {
        self.admin.clone()
    }

    /// A one-use token that lives one minute.
    async fn token(&self, role: Role, network: &NetworkName) -> Result<JoinToken> {
        let request = pb::CreateTokenRequest {
            network: network.as_str().to_owned(),
            role: pb::Role::from(role).into(),
            lifetime_secs: 60,
            ..Default::default()
        };
        let created = self.admin.clone().create_token(request).await?.into_inner();
        created
            .token
            .parse()
            .context("read the coordinator's own token")
    }

    /// Whether the coordinator still knows the node; an operator may have removed it.
    async fn is_member(&self, enrolled: &Enrolled) -> Result<bool> {
        let Some(network) = &enrolled.network else {
            // A relay belongs to the installation.
            return Ok(true);
        };
        let request = pb::ShowNodeRequest {
            node: Some(pb::NodeRef {
                network: network.as_str().to_owned(),
                name: enrolled.node.to_string(),
            }),
        };
        match self.admin.clone().show_node(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
            Err(status) => Err(status.into()),
        }
    }

    /// The coordinator may have another port or host name than when the node joined.
    fn found_again(&self, enrolled: Enrolled, state: &StateDir) -> Result<Enrolled> {
        if enrolled.coordinators == self.coordinators {
            return Ok(enrolled);
        }
        let moved = Enrolled {
            coordinators: self.coordinators.clone(),
            ..enrolled
        };
        let (certificate, ca) = state
            .certificates()?
            .context("the identity is incomplete")?;
        state.store_enrolment(&moved, &certificate, &ca)?;
        Ok(moved)
    }

    /// Enrols the identity in `dir` when it is not enrolled, or no longer. The directory is unlocked again
    /// when this returns, for the service that runs with it.
    pub(super) async fn join(
        &self,
        dir: &Path,
        role: Role,
        network: &NetworkName,
        name: &str,
    ) -> Result<Enrolled> {
        let what = || format!("join {name} to {network}");
        let mut state = StateDir::open(dir).with_context(what)?;
        if let Some(enrolled) = state.enrolment().with_context(what)? {
            if self.is_member(&enrolled).await.with_context(what)? {
                return self.found_again(enrolled, &state).with_context(what);
            }
            tracing::info!(%name, "it was removed from the mesh, and joins again");
            state.wipe().with_context(what)?;
            // Opened anew, it makes new keys.
            drop(state);
            state = StateDir::open(dir).with_context(what)?;
        }
        let token = self.token(role, network).await.with_context(what)?;
        mesh_node::enrol(&token, EnrolOptions::new(name), &state)
            .await
            .with_context(what)
    }
}
