//! The real coordinator as a child process, and what the system says of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::Cli;
use integration::cli::USUAL;
use mesh_testkit::{Child, free_tcp_port, http_get, rest};

const START: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(2);
/// How often memory is looked at, and for how long it may not have fallen to be at rest.
const LOOK: Duration = Duration::from_millis(100);
const SETTLED: Duration = Duration::from_secs(5);
/// Clock ticks of `/proc/<pid>/stat` in a second (`USER_HZ`, 100 on every Linux).
const TICKS: f64 = 100.0;

/// A coordinator that can be started again on the same state.
pub(crate) struct Coordinator {
    cli: Cli,
    listen: SocketAddr,
    admin: SocketAddr,
    settings: Vec<String>,
    child: Child,
}

impl Coordinator {
    /// A fresh one, with its operator logged in. `settings`: `key=value`.
    pub(crate) fn start(mut settings: Vec<String>) -> anyhow::Result<Self> {
        let cli = Cli::new()?;
        // With Postgres it must come from outside.
        let master_key = cli.file("master.key", &"0123456789abcdef".repeat(4))?;
        settings.push(format!("master_key_file={}", master_key.display()));
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (listen, admin) = (local(free_tcp_port()), local(free_tcp_port()));
        let child = spawn(&cli, listen, admin, &settings)?;
        let mut coordinator = Self {
            cli,
            listen,
            admin,
            settings,
            child,
        };
        coordinator.wait_until_ready()?;
        let state = coordinator.cli.work("coordinator");
        let login = coordinator
            .cli
            .product("mesh")
            .args(["login", "--coordinator-state"])
            .arg(state)
            .run(USUAL)?;
        login.success().context("mesh login")?;
        Ok(coordinator)
    }

    /// A reusable join token.
    pub(crate) fn token(&self) -> String {
        self.cli.token(&["--reusable"])
    }

    /// `host:port`.
    pub(crate) fn addr(&self) -> String {
        self.listen.to_string()
    }

    /// Kills it, as a crash would, and starts it again; how long until it was ready.
    pub(crate) fn crash_and_restart(&mut self) -> anyhow::Result<Duration> {
        self.child.kill()?;
        self.child.wait(USUAL)?;
        let begun = Instant::now();
        self.child = spawn(&self.cli, self.listen, self.admin, &self.settings)?;
        self.wait_until_ready()?;
        Ok(begun.elapsed())
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let reply = http_get(self.admin, "localhost", "/readyz", START);
            if reply.is_ok_and(|reply| reply.status == 200) {
                return Ok(());
            }
            ensure!(
                self.child.is_running() && begun.elapsed() < START,
                "the coordinator is not ready:\n{}",
                self.child.log().tail(30)
            );
            rest(POLL);
        }
    }

    /// Its memory, once it has stopped to fall: what a moment needed is given back within seconds.
    pub(crate) async fn memory(&self) -> anyhow::Result<Memory> {
        let begun = Instant::now();
        let mut least = Memory::of(self.child.pid())?;
        let mut since = begun;
        while since.elapsed() < SETTLED && begun.elapsed() < START {
            tokio::time::sleep(LOOK).await;
            let memory = Memory::of(self.child.pid())?;
            if memory.own < least.own * 0.99 {
                (least, since) = (memory, Instant::now());
            }
        }
        Memory::of(self.child.pid())
    }

    /// The processor time that it has used, in seconds.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.pid()))?;
        // After the name in parentheses: state, 10 numbers, utime, stime (proc(5)).
        let rest = stat.rsplit_once(')').context("no name in /proc")?.1;
        let ticks = |n: usize| -> Option<f64> { rest.split_whitespace().nth(n)?.parse().ok() };
        let (user, system) = ticks(11).zip(ticks(12)).context("no times in /proc")?;
        Ok((user + system) / TICKS)
    }

    /// Ends it as an operator does.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.child.terminate()?;
        self.child.wait(USUAL)?;
        Ok(())
    }
}

/// What a process has in memory, in KiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Its own: heap and stacks (`RssAnon`).
    pub(crate) own: f64,
    /// Its program's pages too, which come in as code is first run (`VmRSS`).
    pub(crate) resident: f64,
}

impl Memory {
    fn of(pid: i32) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let figure = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.with_context(|| format!("no {name} in /proc"))
        };
        Ok(Self {
            own: figure("RssAnon:")?,
            resident: figure("VmRSS:")?,
        })
    }
}

fn spawn(
    cli: &Cli,
    listen: SocketAddr,
    admin: SocketAddr,
    settings: &[String],
) -> anyhow::Result<Child> {
    let mut spec = cli
        .product("coordinator")
        .arg("--set")
        .arg(format!("state_dir={}", cli.work("coordinator").display()))
        .args(["--set", &format!("server.listen={listen}")])
        .args(["--set", &format!("admin.listen={admin}")]);
    for setting in settings {
        spec = spec.args(["--set", setting]);
    }
    spec.spawn()
}
