//! Networks made while `mesh up` runs: its gateway and deploy-manager join each of them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mesh_api::pb;
use mesh_types::{NetworkName, Role};
use tokio::time::sleep;

use super::joining::Joiner;

/// Where the two roles that serve every network keep their identities.
#[derive(Debug, Clone)]
pub(super) struct Members {
    pub(super) joiner: Joiner,
    pub(super) gateway: PathBuf,
    pub(super) deploy_manager: PathBuf,
}

impl Members {
    /// Lets both roles join the network, unless they have.
    pub(super) async fn join(&self, network: &NetworkName) -> Result<()> {
        let folder = format!("network-{network}");
        let roles = [
            (&self.gateway, Role::Gateway, "traffic-gateway"),
            (&self.deploy_manager, Role::Deployer, "deploy-manager"),
        ];
        for (state, role, name) in roles {
            let dir = state.join(&folder);
            // A joined identity is locked by the role that runs with it.
            if dir.join("node.crt").exists() {
                continue;
            }
            self.joiner.join(&dir, role, network, name).await?;
        }
        Ok(())
    }

    /// Joins every network there is.
    pub(super) async fn join_all(&self) -> Result<()> {
        let list = pb::ListNetworksRequest {};
        let networks = self
            .joiner
            .admin()
            .list_networks(list)
            .await?
            .into_inner()
            .networks;
        for network in networks {
            let name: NetworkName = network.name.parse().context("read a network's name")?;
            self.join(&name).await?;
        }
        Ok(())
    }

    /// Follows the coordinator's events and joins networks as they are made.
    pub(super) async fn follow(self) {
        loop {
            if let Err(error) = self.follow_once().await {
                tracing::info!(
                    error = format!("{error:#}"),
                    "following networks was interrupted"
                );
            }
            // The stream ends with the coordinator only; this bounds the retries meanwhile.
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn follow_once(&self) -> Result<()> {
        let request = pb::WatchEventsRequest {
            follow: true,
            limit: 1,
            ..Default::default()
        };
        let mut events = self
            .joiner
            .admin()
            .watch_events(request)
            .await?
            .into_inner();
        // What was made between the last look and this stream's start.
        self.join_all().await?;
        while let Some(event) = events.message().await? {
            if event.kind == "network-created" {
                self.join_all().await?;
            }
        }
        Ok(())
    }
}
