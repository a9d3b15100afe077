//! What is under load: `mesh up` with two workers in it, and agents beside.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use integration::server::write_noise;
use integration::{Agent, Cli, MeshUp, Server, websocket};
use mesh_testkit::{Child, eventually};

/// The agent that publishes, whose services are used.
pub(crate) const SERVING: &str = "serving";
/// The agent that commands are run on, and that publishes something and takes it back.
pub(crate) const WORKING: &str = "working";
const FILE: usize = 256 << 10;
const SOON: Duration = Duration::from_secs(30);

/// A mesh, and servers that its workers publish.
pub(crate) struct Stage {
    cli: Cli,
    up: MeshUp,
    agents: Vec<Agent>,
    web: Server,
}

impl Stage {
    /// Starts everything and waits until it is reached.
    pub(crate) fn set() -> anyhow::Result<Self> {
        let cli = Cli::new()?;
        let up = MeshUp::demo(&cli);
        let agents = [SERVING, WORKING].map(|name| Agent::new(&cli, name).joined(&cli, "default"));
        let noise = write_noise(cli.work("noise"), FILE)?;
        let web = Server::start(None, SERVING, Some(&noise))?;
        let echo = websocket::serve_echo(None)?;
        for (name, port) in [("web", web.port()), ("echo", echo)] {
            let ran = agents[0].run(&["publish", name, &port.to_string()]);
            ran.expect_code(0);
        }
        let stage = Self {
            cli,
            up,
            agents: agents.into(),
            web,
        };
        eventually("what is published is reached", SOON, || {
            let body = stage.up.get(&format!("/{SERVING}/s/web/hi"))?.text();
            ensure!(body.contains("hello from"), "{body}");
            Ok(())
        });
        Ok(stage)
    }

    pub(crate) fn cli(&self) -> &Cli {
        &self.cli
    }

    pub(crate) fn up(&self) -> &MeshUp {
        &self.up
    }

    /// The gateway, and what its URLs begin with.
    pub(crate) fn gateway(&self) -> (SocketAddr, String) {
        let port = self.up.gateway_port();
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        (addr, format!("localhost:{port}"))
    }

    /// The overlay port of the service `web`.
    pub(crate) fn web_port(&self) -> u16 {
        self.web.port()
    }

    /// The processes that live from beginning to end: those that are looked at.
    pub(crate) fn processes(&self) -> Vec<&Child> {
        let agents = self.agents.iter().map(Agent::child);
        std::iter::once(self.up.child()).chain(agents).collect()
    }

    /// Ends them.
    pub(crate) fn end(&mut self) -> anyhow::Result<()> {
        for agent in &mut self.agents {
            agent.stop();
        }
        self.up.stop()?;
        Ok(())
    }
}
