//! The services: how each is started, for the first time or again.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use mesh_testkit::{Child, Curl, Spec, eventually};

use super::{COORDINATOR_PORT, DEPLOY_PORT, DERP_PORT, Field, GATEWAY_PORT, START, STUN_PORT};
use crate::cli::USUAL;

impl Field {
    pub(super) fn state_dir(&self, service: &str) -> PathBuf {
        self.operator.work(&format!("state-{service}"))
    }

    /// One of the binaries, on a host, with its state directory.
    fn program(&self, name: &str, host: &str) -> Spec {
        self.operator
            .product(name)
            .host(self.host(host))
            .arg("--set")
            .arg(format!("state_dir={}", self.state_dir(name).display()))
    }

    /// What a service needs to join at its first start: a token for each of its networks.
    fn tokens(&self, service: &str, role: &str) -> anyhow::Result<Vec<OsString>> {
        let networks: &[String] = match role {
            "relay" => &self.networks[..1],
            _ => &self.networks,
        };
        let mut args = Vec::new();
        for network in networks {
            let name = format!("{service}-{network}.token");
            // A second start of the same service needs none.
            if self.operator.work(&name).exists() {
                continue;
            }
            let token = self.operator.token(&["--role", role, "--network", network]);
            args.push("--token-file".into());
            args.push(self.operator.file(&name, &token)?.into());
        }
        Ok(args)
    }

    /// Starts the coordinator, for the first time or again.
    pub fn start_coordinator(&mut self) -> anyhow::Result<()> {
        self.start_coordinator_with(&[])
    }

    /// The same with further settings (`key=value`).
    pub fn start_coordinator_with(&mut self, sets: &[&str]) -> anyhow::Result<()> {
        let at = SocketAddr::from((self.addr("core"), COORDINATOR_PORT));
        let mut spec = self.program("coordinator", "core");
        for set in sets {
            spec = spec.args(["--set", set]);
        }
        let child = spec
            .args(["--set", &format!("server.listen={at}")])
            .args(["--set", &format!("server.advertise={at}")])
            .args(["--set", "admin.listen=127.0.0.1:9464"])
            .spawn()?;
        self.ready("coordinator", "core", 9464, child)
    }

    /// Starts the relay, for the first time or again.
    pub fn start_relay(&mut self) -> anyhow::Result<()> {
        let addr = self.addr("core");
        let derp = SocketAddr::from((addr, DERP_PORT));
        let stun = SocketAddr::from((addr, STUN_PORT));
        let child = self
            .program("relay", "core")
            .args(self.tokens("relay", "relay")?)
            .args(["--set", &format!("server.listen={derp}")])
            .args(["--set", &format!("stun.listen={stun}")])
            .args(["--set", "admin.listen=127.0.0.1:9468"])
            .spawn()?;
        self.ready("relay", "core", 9468, child)
    }

    /// Starts the gateway, for the first time or again.
    pub fn start_gateway(&mut self) -> anyhow::Result<()> {
        let child = self
            .program("traffic-gateway", "edge")
            .args(self.tokens("traffic-gateway", "gateway")?)
            .arg("--dev")
            .args(["--set", &format!("server.listen=0.0.0.0:{GATEWAY_PORT}")])
            .args(["--set", "server.allowed_hosts=gateway"])
            .args(["--set", "admin.listen=127.0.0.1:9465"])
            .spawn()?;
        self.ready("gateway", "edge", 9465, child)
    }

    /// Starts the deploy-manager, for the first time or again.
    pub fn start_deploy_manager(&mut self) -> anyhow::Result<()> {
        let grpc = SocketAddr::from((self.addr("edge"), DEPLOY_PORT));
        let mut spec = self
            .program("deploy-manager", "edge")
            .args(self.tokens("deploy-manager", "deployer")?)
            .args(["--set", &format!("server.listen={grpc}")])
            .args(["--set", "admin.listen=127.0.0.1:9466"]);
        let mut context = vec!["context".to_owned(), "set".to_owned()];
        for network in &self.networks {
            let socks = self.socks(network);
            let key = match network.as_str() {
                "default" => "socks.listen".to_owned(),
                other => format!("socks.networks.{other}"),
            };
            spec = spec.args(["--set", &format!("{key}={socks}")]);
            context.extend(["--socks".to_owned(), format!("{network}={socks}")]);
        }
        let child = spec.spawn()?;
        self.ready("deploy-manager", "edge", 9466, child)?;
        context.extend(["--deploy".to_owned(), grpc.to_string()]);
        let gateway = format!("http://localhost:{GATEWAY_PORT}/");
        context.extend(["--gateway".to_owned(), gateway]);
        let set = self.operator.product("mesh").args(context).run(USUAL)?;
        set.success().context("mesh context set")?;
        Ok(())
    }

    /// Waits for a service's readiness endpoint and keeps its process.
    fn ready(
        &mut self,
        name: &'static str,
        host: &str,
        admin: u16,
        mut child: Child,
    ) -> anyhow::Result<()> {
        let host = self.host(host).clone();
        eventually(&format!("{name} is ready"), START, || {
            // An end is final: there is nothing to wait for then.
            assert!(
                child.is_running(),
                "{name} ended:\n{}",
                child.log().tail(30)
            );
            let reply = Curl::new()
                .on(Some(&host))
                .get(format!("http://127.0.0.1:{admin}/readyz"))?;
            ensure!(reply.status == 200, "{reply:?}");
            Ok(())
        });
        self.services.insert(name, child);
        Ok(())
    }
}
