//! What `mesh up` says when everything runs: a table and next steps, or one line of JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use mesh_types::{NetworkName, NodeId, NodeName, OverlayAddrs, Role};
use serde_json::json;

use crate::output::{self, Colour, paint};

/// Where everything was bound, and who joined.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) state_dir: PathBuf,
    pub(super) context: String,
    /// `host:port`.
    pub(super) coordinator: String,
    pub(super) derp: String,
    pub(super) stun: String,
    /// With the scheme, ending in `/`.
    pub(super) gateway: String,
    pub(super) deploy: String,
    pub(super) socks: BTreeMap<NetworkName, String>,
    pub(super) admin: Option<String>,
    pub(super) nodes: Vec<NodeFacts>,
    /// Names of the demo's workers.
    pub(super) workers: Vec<NodeName>,
}

/// One node of this process.
#[derive(Debug)]
pub(super) struct NodeFacts {
    pub(super) id: NodeId,
    pub(super) name: NodeName,
    pub(super) role: Role,
    pub(super) network: NetworkName,
    pub(super) addrs: OverlayAddrs,
    pub(super) wg_port: u16,
    pub(super) state_dir: PathBuf,
}

impl Facts {
    /// One line, schema `mesh.up/1`.
    pub(super) fn json(&self) -> String {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                json!({
                    "id": node.id,
                    "name": node.name,
                    "role": node.role,
                    "network": node.network,
                    "addrs": [node.addrs.v4.to_string(), node.addrs.v6.to_string()],
                    "wg_port": node.wg_port,
                    "state_dir": node.state_dir,
                })
            })
            .collect();
        json!({
            "schema": "mesh.up/1",
            "version": mesh_daemon::build_info::VERSION,
            "state_dir": self.state_dir,
            "context": self.context,
            "coordinator": { "addr": self.coordinator },
            "relay": { "derp": self.derp, "stun": self.stun },
            "gateway": { "url": self.gateway },
            "deploy_manager": { "grpc": self.deploy, "socks": self.socks },
            "admin": self.admin,
            "nodes": nodes,
        })
        .to_string()
    }

    /// The table and what to try next.
    pub(super) fn text(&self, coloured: bool) -> String {
        let bold = |text: &str| paint(text, Colour::Bold, coloured);
        let mut text = String::new();
        let mut rows = vec![
            [
                "coordinator".to_owned(),
                format!("https://{}", self.coordinator),
                "gRPC, /health".to_owned(),
            ],
            [
                "gateway".to_owned(),
                bold(&self.gateway),
                "every worker, live".to_owned(),
            ],
            [
                "deploy-manager".to_owned(),
                self.deploy.clone(),
                "gRPC".to_owned(),
            ],
        ];
        for (network, addr) in &self.socks {
            rows.push([
                String::new(),
                format!("socks5h://{addr}"),
                format!("SOCKS5 into {network}"),
            ]);
        }
        rows.push([
            "relay".to_owned(),
            self.derp.clone(),
            format!("STUN {}", self.stun),
        ]);
        for node in self
            .nodes
            .iter()
            .filter(|node| self.workers.contains(&node.name))
        {
            let addr = node.addrs.v4.to_string();
            rows.push([
                node.name.to_string(),
                addr,
                format!("{}{}/", self.gateway, node.name),
            ]);
        }
        if let Some(admin) = &self.admin {
            rows.push([
                "health".to_owned(),
                format!("http://{admin}/readyz"),
                "/metrics".to_owned(),
            ]);
        }
        rows.push([
            "state".to_owned(),
            self.state_dir.display().to_string(),
            String::new(),
        ]);
        // Writing to a String cannot fail; the results have nothing to say.
        let _ = writeln!(text, "{}\n", output::table(["ROLE", "WHERE", ""], rows));
        let _ = writeln!(text, "Try next, in another terminal:");
        for line in self.next_steps() {
            let _ = writeln!(text, "  {line}");
        }
        let _ = write!(text, "\nCtrl-C stops everything; the state stays.");
        text
    }

    fn next_steps(&self) -> Vec<String> {
        match self.workers.as_slice() {
            [] => vec![
                "mesh token create --role worker      then, on the worker: worker-agent join …"
                    .into(),
                "mesh status".into(),
            ],
            [first, ..] => vec![
                format!("curl {}{first}/", self.gateway),
                "mesh deploy status all".into(),
                "mesh deploy exec \"uname -n\" all".into(),
                format!("ssh -F <(mesh ssh-config) {first}"),
                "mesh status".into(),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            state_dir: "/s".into(),
            context: "up".into(),
            coordinator: "127.0.0.1:8080".into(),
            derp: "127.0.0.1:8443".into(),
            stun: "127.0.0.1:3478".into(),
            gateway: "http://localhost:8081/".into(),
            deploy: "127.0.0.1:8082".into(),
            socks: BTreeMap::from([(NetworkName::default_network(), "127.0.0.1:1080".into())]),
            admin: None,
            nodes: vec![NodeFacts {
                id: NodeId::from_bytes([1; 16]),
                name: "worker-node-1".parse().expect("a name"),
                role: Role::Worker,
                network: NetworkName::default_network(),
                addrs: OverlayAddrs {
                    v4: [100, 64, 0, 4].into(),
                    v6: [0; 16].into(),
                },
                wg_port: 51821,
                state_dir: "/s/demo/worker-node-1".into(),
            }],
            workers: vec!["worker-node-1".parse().expect("a name")],
        }
    }

    #[test]
    fn json_is_one_line_with_schema_and_nodes() {
        let line = facts().json();
        assert!(!line.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["schema"], "mesh.up/1");
        assert_eq!(value["nodes"][0]["name"], "worker-node-1");
        assert_eq!(
            value["deploy_manager"]["socks"]["default"],
            "127.0.0.1:1080"
        );
    }

    #[test]
    fn the_table_names_the_worker_and_its_url() {
        let text = facts().text(false);
        assert!(
            text.contains("http://localhost:8081/worker-node-1/"),
            "{text}"
        );
        assert!(!text.contains('\x1b'));
    }
}
