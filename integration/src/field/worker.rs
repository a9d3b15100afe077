//! Workers: their hosts, their joins and what is asked of them.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Context as _;
use mesh_testkit::{Child, Host, Spec};
use serde_json::Value;

use super::{Field, Layout, START};
use crate::binaries::binary;
use crate::cli::{Cli, USUAL};

/// A worker-agent with its host.
#[derive(Debug)]
pub struct Worker {
    name: String,
    cli: Cli,
    host: Host,
    addr: Ipv4Addr,
    state_dir: PathBuf,
    shares_host: bool,
    sets: Vec<String>,
    pub(super) child: Option<Child>,
}

impl Worker {
    fn agent(&self, verb: &str) -> Spec {
        let spec = self
            .cli
            .product("worker-agent")
            .name(format!("{}-{verb}", self.name));
        let spec = spec.arg(verb).arg("--set");
        spec.arg(format!("state_dir={}", self.state_dir.display()))
    }

    /// One of the agent's verbs with this worker's settings, behind another program such as
    /// `setpriv`, which comes with its arguments.
    pub fn behind(&self, wrapper: &[&str], verb: &str) -> Spec {
        let (program, args) = wrapper.split_first().unwrap_or((&"env", &[]));
        let mut spec = self.cli.spec(program).args(args);
        spec = spec.arg(binary("worker-agent")).arg(verb);
        spec = spec.arg("--set");
        spec = spec.arg(format!("state_dir={}", self.state_dir.display()));
        for set in &self.sets {
            spec = spec.args(["--set", set]);
        }
        spec
    }

    /// Starts it, for the first time or again, and waits until it has a netmap.
    ///
    /// # Panics
    /// When it does not get ready.
    #[track_caller]
    pub fn start(&mut self) {
        let mut spec = self.agent("run");
        if self.shares_host {
            // The usual ports can be had by one agent of a machine only.
            spec = spec.args(["--set", "wireguard.listen=0.0.0.0:0"]);
            spec = spec.args(["--set", "admin.listen=127.0.0.1:0"]);
        }
        for set in &self.sets {
            spec = spec.args(["--set", set]);
        }
        let child = spec.spawn().unwrap_or_else(|error| panic!("{error:#}"));
        child.wait_for_line(": ready ", START);
        self.child = Some(child);
    }

    /// Runs one of the agent's verbs.
    ///
    /// # Panics
    /// When it cannot be run.
    #[track_caller]
    pub fn run(&self, verb: &str, args: &[&str]) -> mesh_testkit::Finished {
        let spec = self.agent(verb).args(args);
        spec.run(USUAL).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Further settings (`key=value`) for its next start.
    pub fn add_settings(&mut self, sets: &[String]) {
        self.sets.extend(sets.iter().cloned());
    }

    /// Publishes a service of its loopback.
    #[track_caller]
    pub fn publish(&self, name: &str, port: u16) {
        self.run("publish", &[name, &port.to_string()])
            .expect_code(0);
    }

    /// What `worker-agent status --json` prints.
    pub fn status(&self) -> anyhow::Result<Value> {
        // Its exit code says whether something is wrong, which is the test's business.
        let ran = self.agent("status").arg("--json").run(USUAL)?;
        serde_json::from_str(&ran.stdout).with_context(|| format!("not JSON: {}", ran.all()))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its address on the mesh hosts' segment.
    pub fn addr(&self) -> Ipv4Addr {
        self.addr
    }

    /// Its state directory.
    pub fn state_dir(&self) -> &std::path::Path {
        &self.state_dir
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn child(&self) -> &Child {
        self.child.as_ref().expect("the worker runs")
    }

    /// Takes its process away, to end it.
    ///
    /// # Panics
    /// When it does not run.
    pub fn take_child(&mut self) -> Child {
        self.child.take().expect("the worker runs")
    }
}

impl Field {
    /// Adds a worker to a network: its host (when spread), its join, its run with further settings
    /// (`key=value`).
    ///
    /// # Panics
    /// When it does not join.
    #[track_caller]
    pub fn add_worker(&mut self, name: &str, network: &str, sets: &[&str]) -> &mut Worker {
        self.join_worker(name, network, sets).start();
        self.worker_mut(name)
    }

    /// Adds a worker's host and joins it, without starting it.
    ///
    /// # Panics
    /// When it does not join.
    #[track_caller]
    pub fn join_worker(&mut self, name: &str, network: &str, sets: &[&str]) -> &mut Worker {
        self.try_join(name, name, network, sets)
            .unwrap_or_else(|error| panic!("{error:#}"));
        self.worker_mut(name)
    }

    /// As [`Field::add_worker`], with a node name that is not its host's: two networks may have
    /// nodes of the same name. In this field it goes by the host's name.
    ///
    /// # Panics
    /// When it does not join.
    #[track_caller]
    pub fn add_worker_named(&mut self, host: &str, node: &str, network: &str) -> &mut Worker {
        self.try_join(host, node, network, &[])
            .unwrap_or_else(|error| panic!("{error:#}"));
        self.worker_mut(host).start();
        self.worker_mut(host)
    }

    fn try_join(
        &mut self,
        name: &str,
        node: &str,
        network: &str,
        sets: &[&str],
    ) -> anyhow::Result<()> {
        let (host, addr) = match self.layout {
            Layout::Spread => (self.prepare_host(name)?, self.addr(name)),
            Layout::Single => (self.host("core").clone(), self.addr("core")),
        };
        let mut cli = Cli::new()?.on(&host).with_env_of(&self.operator);
        if let Some(user) = &self.user {
            cli = cli.run_by(user)?;
        }
        let token = self
            .operator
            .token(&["--role", "worker", "--network", network]);
        let file = cli.file("join.token", &token)?;
        let worker = Worker {
            name: name.to_owned(),
            state_dir: cli.work("state"),
            cli,
            host,
            addr,
            shares_host: self.layout == Layout::Single,
            sets: sets.iter().map(|set| (*set).to_owned()).collect(),
            child: None,
        };
        let join = worker
            .agent("join")
            .arg("--token-file")
            .arg(file)
            .args(["--hostname", node]);
        join.run(USUAL)?.success().context("worker-agent join")?;
        self.workers.insert(name.to_owned(), worker);
        Ok(())
    }

    /// Makes a worker's host ahead of the worker, to start things on it; the one of that name when
    /// there is one already.
    pub fn prepare_host(&mut self, name: &str) -> anyhow::Result<Host> {
        if let Some((host, _)) = self.hosts.get(name) {
            return Ok(host.clone());
        }
        let number = u8::try_from(self.hosts.len()).context("a few hosts")?;
        let addr = Ipv4Addr::new(10, 90, 0, 9 + number);
        let host = self.lab.host_on(name, &self.mesh, addr)?;
        self.hosts.insert(name.to_owned(), (host.clone(), addr));
        Ok(host)
    }

    /// A worker by name.
    ///
    /// # Panics
    /// When there is none of that name.
    #[track_caller]
    pub fn worker(&self, name: &str) -> &Worker {
        self.workers
            .get(name)
            .unwrap_or_else(|| panic!("no worker {name}"))
    }

    /// A worker by name, to change it.
    ///
    /// # Panics
    /// When there is none of that name.
    #[track_caller]
    pub fn worker_mut(&mut self, name: &str) -> &mut Worker {
        self.workers
            .get_mut(name)
            .unwrap_or_else(|| panic!("no worker {name}"))
    }
}
