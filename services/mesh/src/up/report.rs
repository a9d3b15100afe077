//! What `mesh up` says when everything runs: a table and next steps, or one line of JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mesh_types::{NetworkName, NodeId, NodeName, OverlayAddrs, Role};
use serde_json::json;

use crate::output::{self, Colour, paint};

/// Where everything was bound, and who joined.
#[derive(Debug)]
pub(super) struct Facts {
    /// How this program is typed here.
    pub(super) program: String,
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
        let mesh = &self.program;
        match self.workers.as_slice() {
            [] => vec![
                format!("{mesh} token create --role worker"),
                format!("{mesh} status"),
            ],
            [first, ..] => vec![
                format!("curl {}{first}/", self.gateway),
                format!("{mesh} deploy status all"),
                format!("{mesh} deploy exec \"uname -n\" all"),
                format!("{mesh} ssh-config > mesh.ssh && ssh -F mesh.ssh {first}"),
                format!("{mesh} status"),
            ],
        }
    }
}

/// What to type for the program `exe`: its name where the search path leads to it, else a path, a
/// relative one from within `here`.
pub(super) fn typed(exe: &Path, search: &std::ffi::OsStr, here: &Path) -> String {
    let real = exe.canonicalize().ok();
    if let Some(name) = exe.file_name().filter(|_| real.is_some())
        && let Some(found) = std::env::split_paths(search)
            .map(|dir| dir.join(name))
            .find(|path| path.is_file())
        && found.canonicalize().ok() == real
    {
        return name.to_string_lossy().into_owned();
    }
    let path = match exe.strip_prefix(here) {
        Ok(inside) if inside.components().count() > 1 => inside.to_owned(),
        Ok(inside) => Path::new(".").join(inside),
        Err(_) => exe.to_owned(),
    };
    let path = path.display().to_string();
    if path
        .chars()
        .any(|c| c.is_whitespace() || "'\"\\$`".contains(c))
    {
        return format!("'{}'", path.replace('\'', r"'\''"));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            program: "target/debug/mesh".into(),
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

    #[test]
    fn what_to_try_next_can_be_typed_where_the_mesh_was_started() {
        let text = facts().text(false);
        assert!(
            text.contains("\n  target/debug/mesh deploy status all\n"),
            "{text}"
        );
        let dir = tempfile::tempdir().expect("a folder");
        let bin = dir.path().join("target/debug");
        std::fs::create_dir_all(&bin).expect("a folder");
        let exe = bin.join("mesh");
        std::fs::write(&exe, "").expect("a file");
        let on_path = std::ffi::OsString::from(format!("/nowhere:{}", bin.display()));
        assert_eq!(typed(&exe, &on_path, dir.path()), "mesh");
        let elsewhere = std::ffi::OsStr::new("/nowhere");
        assert_eq!(typed(&exe, elsewhere, dir.path()), "target/debug/mesh");
        assert_eq!(typed(&exe, elsewhere, &bin), "./mesh");
        assert_eq!(
            typed(&exe, elsewhere, Path::new("/other")),
            exe.display().to_string()
        );
        // Another program of the same name comes first.
        let other = dir.path().join("other");
        std::fs::create_dir(&other).expect("a folder");
        std::fs::write(other.join("mesh"), "").expect("a file");
        let hidden = format!("{}:{}", other.display(), bin.display());
        assert_eq!(
            typed(&exe, std::ffi::OsStr::new(&hidden), dir.path()),
            "target/debug/mesh"
        );
        assert_eq!(
            typed(Path::new("/a b/mesh"), elsewhere, Path::new("/other")),
            "'/a b/mesh'"
        );
    }
}
