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
    /// Lets both roles join every network there is, before they run.
    pub(super) async fn join_first(&self) -> Result<()> {
        for network in self.networks().await? {
            for (dir, role, name) in self.identities(&network) {
                self.joiner.join(&dir, role, &network, name).await?;
            }
        }
        Ok(())
    }

    fn identities(&self, network: &NetworkName) -> [(PathBuf, Role, &'static str); 2] {
        let folder = format!("network-{network}");
        [
            (self.gateway.join(&folder), Role::Gateway, "traffic-gateway"),
            (
                self.deploy_manager.join(&folder),
                Role::Deployer,
                "deploy-manager",
            ),
        ]
    }

    /// Lets both running roles join the network, unless they have.
    async fn join(&self, network: &NetworkName) -> Result<()> {
        for (dir, role, name) in self.identities(network) {
            // A joined identity is locked by the role that runs with it.
            if dir.join("node.crt").exists() {
                continue;
            }
            self.joiner.join(&dir, role, network, name).await?;
        }
        Ok(())
    }

    /// Joins every network there is.
    async fn join_all(&self) -> Result<()> {
        for network in self.networks().await? {
            self.join(&network).await?;
        }
        Ok(())
    }

    async fn networks(&self) -> Result<Vec<NetworkName>> {
        let list = pb::ListNetworksRequest {};
        let networks = self
            .joiner
            .admin()
            .list_networks(list)
            .await?
            .into_inner()
            .networks;
        let parse = |network: pb::Network| network.name.parse().context("read a network's name");
        networks.into_iter().map(parse).collect()
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
                // One of the same name may have been deleted a moment ago: what is left of it is
                // put aside by the roles that were in it.
                sleep(Duration::from_secs(1)).await;
                self.join_all().await?;
            }
        }
        Ok(())
    }
}
