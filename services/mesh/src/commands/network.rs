//! `mesh network`.

use anyhow::Result;
use mesh_api::pb;
use mesh_types::NetworkId;
use serde_json::json;

use super::Session;
use crate::args::NetworkVerb;
use crate::{output, text};

pub(super) async fn run(session: &Session, verb: NetworkVerb) -> Result<()> {
    let (_, mut admin) = session.admin().await?;
    match verb {
        NetworkVerb::Create { name } => {
            let request = pb::CreateNetworkRequest {
                name: name.clone().into(),
            };
            let network = admin.create_network(request).await?.into_inner();
            if session.json {
                return output::print_json("mesh.network/1", "network", json_of(&network));
            }
            say!("made network {name}");
            eprintln!("Its first worker: mesh token create --role worker --network {name}");
        }
        NetworkVerb::List => {
            let networks = admin
                .list_networks(pb::ListNetworksRequest {})
                .await?
                .into_inner()
                .networks;
            if session.json {
                let networks: Vec<_> = networks.iter().map(json_of).collect();
                return output::print_json("mesh.networks/1", "networks", networks);
            }
            let now = text::now();
            let rows = networks.into_iter().map(|network| {
                let made = text::relative(network.created_at, now);
                [network.name, network.nodes.to_string(), made]
            });
            say!(
                "{}",
                output::table(["NAME", "NODES", "MADE"], rows.collect())
            );
        }
        NetworkVerb::Delete { name, force } => {
            let request = pb::DeleteNetworkRequest {
                name: name.clone().into(),
                force,
            };
            admin.delete_network(request).await?;
            return session.done(
                "network delete",
                name.as_str(),
                &format!("deleted network {name}"),
            );
        }
    }
    Ok(())
}

pub(super) fn json_of(network: &pb::Network) -> serde_json::Value {
    json!({
        "id": NetworkId::try_from(network.id.as_slice()).ok(),
        "name": network.name,
        "nodes": network.nodes,
        "created_at": text::rfc3339(network.created_at),
    })
}
