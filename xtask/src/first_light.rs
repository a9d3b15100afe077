//! `first-light`: what the README's first command promises, with a clock beside it.
//!
//! A clone of this repository's last commit, an empty target directory, an empty home for the
//! mesh; then `cargo run -- up --demo`, and the first 200 of `/worker-node-1/`. Crates that cargo
//! has downloaded before are not downloaded again.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::{process, workspace};

/// The README's first command, after `cargo`.
const COMMAND: [&str; 4] = ["run", "--", "up", "--demo"];
const WORKER: &str = "/worker-node-1/";
/// Where `mesh up` listens by itself.
const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 8081);
const PORTS: [u16; 6] = [8080, 8081, 8082, 1080, 8443, 9464];
const PAUSE: Duration = Duration::from_millis(50);
/// How long it may take to end.
const END: Duration = Duration::from_secs(5);

/// Arguments of `cargo xtask first-light`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Fail when clone, build and first page take longer, in seconds.
    #[arg(long, default_value_t = 240, value_name = "SECONDS")]
    limit: u64,
    /// Fail when the first page comes later after the process's start, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    ready: u64,
    /// Use no more processor cores than this.
    #[arg(long, default_value_t = 2, value_name = "N")]
    cores: usize,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    for port in PORTS {
        ensure!(
            TcpListener::bind(SocketAddr::from((GATEWAY.0, port))).is_ok(),
            "port {port} is taken: the README's command uses the usual ports, so stop what has it"
        );
    }
    let folder = workspace::target_dir().join("first-light");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).context("remove the clone of last time")?;
    }
    std::fs::create_dir_all(&folder)?;
    let clone = folder.join("clone");

    let begun = Instant::now();
    process::run(
        Command::new("git")
            .args(["clone", "--quiet"])
            .arg(workspace::root())
            .arg(&clone),
    )?;
    println!("cloned after {:.1} s", begun.elapsed().as_secs_f64());
    let measured = measure(args, begun, &folder, &clone);
    // Two gigabytes that nobody looks at again.
    std::fs::remove_dir_all(&folder).context("remove the clone")?;
    let Measured { first, ready } = measured?;
    println!(
        "first 200 of {WORKER}: {:.1} s after the clone began (limit {} s), {:.1} s after the \
         process started (limit {} s)",
        first.as_secs_f64(),
        args.limit,
        ready.as_secs_f64(),
        args.ready
    );
    ensure!(
        first <= Duration::from_secs(args.limit),
        "clone to first page took {:.1} s, the limit is {} s",
        first.as_secs_f64(),
        args.limit
    );
    ensure!(
        ready <= Duration::from_secs(args.ready),
        "the first page came {:.1} s after the process's start, the limit is {} s",
        ready.as_secs_f64(),
        args.ready
    );
    Ok(())
}

struct Measured {
    /// Since the clone began.
    first: Duration,
    /// Since cargo started the program.
    ready: Duration,
}

fn measure(args: &Args, begun: Instant, folder: &Path, clone: &Path) -> Result<Measured> {
    let mut running = Running::start(args.cores, folder, clone)?;
    let mut started = None;
    // Well behind the limit, so that a slow build is told with its figure.
    let deadline = begun + Duration::from_secs(args.limit) * 3;
    let first = loop {
        started = started.or_else(|| running.started.try_recv().ok());
        if answers().unwrap_or(false) {
            break Instant::now();
        }
        if let Some(status) = running.child.try_wait()? {
            bail!("cargo {} ended: {status}", COMMAND.join(" "));
        }
        ensure!(
            Instant::now() < deadline,
            "no page within three times the limit"
        );
        std::thread::sleep(PAUSE);
    };
    let started = started
        .or_else(|| running.started.try_recv().ok())
        .context("cargo did not say when it started the program")?;
    running.end()?;
    Ok(Measured {
        first: first - begun,
        ready: first - started,
    })
}

/// `cargo run -- up --demo`; its whole process group ends with it.
struct Running {
    child: Child,
    /// When cargo said that it starts the program.
    started: mpsc::Receiver<Instant>,
}

impl Running {
    fn start(cores: usize, folder: &Path, clone: &Path) -> Result<Self> {
        let mut command = process::cargo();
        let present = std::thread::available_parallelism().map_or(1, usize::from);
        if present > cores {
            // The same command, on fewer cores (taskset is in util-linux).
            let cargo = command.get_program().to_owned();
            let mut pinned = Command::new("taskset");
            pinned
                .args(["--cpu-list", &format!("0-{}", cores - 1)])
                .arg(cargo);
            for (name, value) in command.get_envs() {
                match value {
                    Some(value) => pinned.env(name, value),
                    None => pinned.env_remove(name),
                };
            }
            command = pinned;
        }
        println!(
            "cargo {}, on {} of {present} cores",
            COMMAND.join(" "),
            present.min(cores)
        );
        let mut child = command
            .args(COMMAND)
            .current_dir(clone)
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTFLAGS")
            .env("XDG_DATA_HOME", folder.join("data"))
            .env("XDG_CONFIG_HOME", folder.join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("start cargo")?;
        let said = child.stderr.take().context("standard error is piped")?;
        let (tell, started) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                eprintln!("{line}");
                if line.trim_start().starts_with("Running `") {
                    // Said once; nobody listens any more when the measurement is over.
                    let _gone = tell.try_send(Instant::now());
                }
            }
        });
        Ok(Self { child, started })
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    /// As Ctrl-C does: cargo has become the program by now.
    fn end(&mut self) -> Result<()> {
        kill(self.pid()?, Signal::SIGINT).context("end it")?;
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "it ended badly: {status}");
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        bail!("it did not end within {} s", END.as_secs())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), self.pid()) {
            // Whatever is left of it is ours to end; it may end by itself in between.
            let _gone = killpg(pid, Signal::SIGKILL);
            drop(self.child.wait());
        }
    }
}

/// Whether the worker's page is a 200.
fn answers() -> std::io::Result<bool> {
    let addr = SocketAddr::from(GATEWAY);
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {WORKER} HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\r\n",
        addr.port()
    )?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    Ok(&head == b"HTTP/1.1 200")
}
