//! The real thing: `mesh up` with its gateway, and a `worker-agent` that publishes the upstream.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_testkit::{Child, Spec, artefact, http_get};
use serde_json::Value;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);
const WORKER: &str = "bench-worker";
const SERVICE: &str = "bench";

/// A running mesh; ends when dropped, the worker first.
pub(crate) struct Mesh {
    _worker: Child,
    _up: Child,
    gateway: String,
    _home: TempDir,
}

fn product(name: &str, home: &TempDir) -> Spec {
    Spec::new(artefact::profile_dir().join(name))
        .name(name)
        .env("HOME", home.path())
        .env("XDG_CONFIG_HOME", home.path().join("config"))
        .env("XDG_DATA_HOME", home.path().join("data"))
}

impl Mesh {
    /// A worker that publishes what listens on `port` of loopback.
    pub(crate) fn start(port: u16) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let path = |name: &str| home.path().join(name);
        let mut up = product("mesh", &home)
            .args(["--json", "up", "--state-dir"])
            .arg(path("mesh"));
        for flag in [
            "--coordinator-port",
            "--gateway-port",
            "--deploy-port",
            "--socks-port",
            "--relay-port",
            "--stun-port",
            "--wg-port",
            "--admin-port",
        ] {
            up = up.args([flag, "0"]);
        }
        let up = up
            .spawn()
            .context("start mesh up (cargo build --release builds it)")?;
        let gateway = up.wait_for("its ready line", LIMIT, |line| {
            let ready: Value = serde_json::from_str(&line.text).ok()?;
            let url = ready.get("gateway")?.get("url")?.as_str()?;
            Some(url.trim_end_matches('/').to_owned())
        });
        let token = path("token");
        product("mesh", &home)
            .args(["token", "create", "--output"])
            .arg(&token)
            .run(LIMIT)?
            .success()?;
        let state = path("worker");
        product("worker-agent", &home)
            .args(["join", "--hostname", WORKER, "--token-file"])
            .arg(&token)
            .arg("--state-dir")
            .arg(&state)
            .run(LIMIT)?
            .success()?;
        let worker = product("worker-agent", &home)
            .args(["run", "--state-dir"])
            .arg(&state)
            .args(["--set", "wireguard.listen=127.0.0.1:0"])
            .args(["--set", "admin.listen=127.0.0.1:0"])
            .args(["--set", "console.mode=page"])
            .spawn()?;
        let mesh = Self {
            _worker: worker,
            _up: up,
            gateway,
            _home: home,
        };
        mesh.publish(port)?;
        Ok(mesh)
    }

    /// Publishes the upstream, as soon as the agent listens, and waits until the gateway has it.
    fn publish(&self, port: u16) -> Result<()> {
        let begun = Instant::now();
        loop {
            let published = product("worker-agent", &self._home)
                .args(["publish", SERVICE, &port.to_string(), "--state-dir"])
                .arg(self._home.path().join("worker"))
                .run(LIMIT)?
                .success();
            match published {
                Ok(_) => break,
                Err(err) if begun.elapsed() > LIMIT => return Err(err),
                Err(_) => std::thread::park_timeout(Duration::from_millis(100)),
            }
        }
        let authority = self.gateway.trim_start_matches("http://");
        let port = authority.rsplit_once(':').context("the gateway's port")?.1;
        let addr = SocketAddr::from(([127, 0, 0, 1], port.parse()?));
        loop {
            let reply = http_get(addr, authority, &format!("/{WORKER}/s/{SERVICE}/1k"), LIMIT);
            if reply.is_ok_and(|reply| reply.status == 200) {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < LIMIT,
                "the gateway does not serve the worker"
            );
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// Where the published files are at the gateway; ends with a slash.
    pub(crate) fn service_url(&self) -> String {
        format!("{}/{WORKER}/s/{SERVICE}/", self.gateway)
    }
}
