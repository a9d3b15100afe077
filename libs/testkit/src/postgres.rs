//! A real Postgres server with a data directory of its own.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tempfile::TempDir;

use crate::child::{Child, Spec};
use crate::need::program;
use crate::port::free_tcp_port;

/// The superuser that tests connect as.
pub const POSTGRES_USER: &str = "mesh";
/// Its password, asked for on TCP.
pub const POSTGRES_PASSWORD: &str = "correct-horse-battery";
/// Whom the server runs as when the test is root, since Postgres refuses to be root.
const UNPRIVILEGED: &str = "nobody";
const START: Duration = Duration::from_secs(60);
const TOOL: Duration = Duration::from_secs(60);
/// How often another port is tried when somebody took the one that was free a moment ago.
const PORTS: usize = 5;
/// What the server says then.
const PORT_TAKEN: &str = "Address already in use";

/// How the server is to run.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    tls: Option<(String, String)>,
    settings: Vec<(String, String)>,
}

impl PostgresOptions {
    /// Serves TLS with this certificate chain and key (PEM).
    #[must_use]
    pub fn tls(mut self, certificate: impl Into<String>, key: impl Into<String>) -> Self {
        self.tls = Some((certificate.into(), key.into()));
        self
    }

    /// Sets a server parameter.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A running Postgres on a loopback port, as an unprivileged user, with settings for speed and no
/// durability. Ended, and its directory removed, when this value is dropped or the test process
/// ends, however that happens.
#[derive(Debug)]
pub struct Postgres {
    child: Option<Child>,
    bin: PathBuf,
    port: u16,
    databases: AtomicU32,
    dir: TempDir,
    /// While this pipe is open the server's caretaker waits.
    _caretaker: Option<ChildStdin>,
}

/// Debian's directory of server programs, the newest version's; or where `PATH` has them.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok();
    let newest = versions
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .max();
    let debian = newest.map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
    debian
        .filter(|bin| bin.join("initdb").is_file())
        .or_else(|| Some(program("initdb")?.parent()?.to_owned()))
}

impl Postgres {
    /// Makes a data directory, starts the server and waits until it answers.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&PostgresOptions::default())
    }

    /// Like [`Self::start`], with options.
    pub fn start_with(options: &PostgresOptions) -> anyhow::Result<Self> {
        let bin = programs().context(
            "no Postgres server on this machine: 'cargo xtask setup' installs the package postgresql",
        )?;
        let dir = TempDir::with_prefix("mesh-postgres-").context("make Postgres' directory")?;
        let owner = owner()?;
        // The socket is for everybody; data and passwords are not.
        own(dir.path(), owner, 0o755)?;
        let password = dir.path().join("password");
        write(&password, POSTGRES_PASSWORD, owner)?;
        write(&dir.path().join("client-password"), POSTGRES_PASSWORD, None)?;
        let data = dir.path().join("data");
        as_owner(&bin.join("initdb"), owner)
            .args(["--no-sync", "--encoding=UTF8", "--locale=C", "--username"])
            .arg(POSTGRES_USER)
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .arg("--pwfile")
            .arg(&password)
            .arg("--pgdata")
            .arg(&data)
            .run(TOOL)?
            .success()?;
        let mut config = String::from(
            "listen_addresses = '127.0.0.1'\n\
             fsync = off\n\
             synchronous_commit = off\n\
             full_page_writes = off\n\
             shared_buffers = '32MB'\n\
             max_connections = 300\n\
             autovacuum = off\n\
             logging_collector = off\n",
        );
        if let Some((certificate, key)) = &options.tls {
            write(&data.join("server.crt"), certificate, owner)?;
            write(&data.join("server.key"), key, owner)?;
            config.push_str("ssl = on\n");
        }
        for (name, value) in &options.settings {
            writeln!(config, "{name} = '{value}'")?;
        }
        write(&data.join("postgresql.auto.conf"), &config, owner)?;
        let mut server = Self {
            child: None,
            bin,
            port: free_tcp_port(),
            databases: AtomicU32::new(0),
            _caretaker: Some(caretaker(&data)?),
            dir,
        };
        server.start_anywhere()?;
        Ok(server)
    }

    /// Starts it at its port, or at another when somebody took that one meanwhile.
    fn start_anywhere(&mut self) -> anyhow::Result<()> {
        for _ in 1..PORTS {
            match self.start_again() {
                Err(error) if format!("{error:#}").contains(PORT_TAKEN) => {
                    self.port = free_tcp_port();
                }
                outcome => return outcome,
            }
        }
        self.start_again()
    }

    /// The server that all tests of this process share.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Self::start().expect("a Postgres server"))
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts the server again on its old port and data, and waits until it answers.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let data = self.data();
        let child = as_owner(&self.bin.join("postgres"), owner()?)
            .name("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-p", &self.port.to_string(), "-k"])
            .arg(self.dir.path())
            .spawn()?;
        let is_ready = child.log().wait_for(START, |line| {
            line.text
                .contains("ready to accept connections")
                .then_some(())
        });
        is_ready.with_context(|| format!("Postgres did not start:\n{}", child.log().tail(40)))?;
        self.child = Some(child);
        Ok(())
    }

    /// Stops the server as a service manager does: connections are cut, data stays.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            bail!("Postgres is stopped already");
        };
        child.signal(Signal::SIGINT)?;
        child.wait(START)?;
        Ok(())
    }

    /// Freezes the server and all its sessions: they keep their connections and answer nothing.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal_all(Signal::SIGSTOP)
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal_all(Signal::SIGCONT)
    }

    fn signal_all(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("Postgres is stopped")?;
        let main = child.pid();
        // The main process first, so that no session is added meanwhile.
        kill(Pid::from_raw(main), signal)?;
        let tasks = format!("/proc/{main}/task/{main}/children");
        let sessions = fs::read_to_string(&tasks).with_context(|| format!("read {tasks}"))?;
        for session in sessions.split_whitespace() {
            // A session that has just ended needs no signal.
            let _gone = kill(Pid::from_raw(session.parse()?), signal);
        }
        Ok(())
    }

    /// The server's process.
    ///
    /// # Panics
    /// While it is stopped.
    pub fn child(&self) -> &Child {
        self.child.as_ref().expect("Postgres runs")
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A file of ours with the password of [`POSTGRES_USER`].
    pub fn password_file(&self) -> PathBuf {
        self.dir.path().join("client-password")
    }

    /// Makes an empty database and answers its URL, without a password.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn database(&self) -> String {
        let count = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("mesh_{count}");
        self.psql("postgres", &format!("CREATE DATABASE {name}"))
            .expect("a database");
        self.url(&name)
    }

    /// The URL of a database, without a password.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://{POSTGRES_USER}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// The URL of a database by the server's Unix socket, which needs no password: reachable from
    /// every network namespace of this machine.
    pub fn socket_url(&self, database: &str) -> String {
        let dir = self.dir.path().display();
        let port = self.port;
        format!("postgres:///{database}?host={dir}&port={port}&user={POSTGRES_USER}")
    }

    /// Runs SQL and answers the rows, columns separated by `|`.
    pub fn psql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let done = Spec::new(self.bin.join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h"])
            .arg(self.dir.path())
            .args(["-p", &self.port.to_string(), "-U", POSTGRES_USER])
            .args(["-d", database, "-c", sql])
            .run(TOOL)?
            .success()?;
        Ok(done.stdout.trim_end().to_owned())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.child.is_some() {
            drop(self.thaw());
            drop(self.stop());
        }
    }
}

/// Ends the server and removes its directory once the pipe that is returned closes: also when the
/// test process is killed, or ends without dropping what is static.
fn caretaker(data: &Path) -> anyhow::Result<ChildStdin> {
    const SCRIPT: &str = r#"
        read -r _
        pid=$(head -n 1 "$0/postmaster.pid" 2>/dev/null) && kill -CONT "$pid" && kill -QUIT "$pid"
        tries=0
        while [ -e "$0/postmaster.pid" ] && kill -0 "$pid" 2>/dev/null && [ $tries -lt 100 ]; do
            sleep 0.1; tries=$((tries + 1))
        done
        rm -rf "$(dirname "$0")"
    "#;
    let mut caretaker = Command::new("sh")
        .args(["-c", SCRIPT])
        .arg(data)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start the server's caretaker")?;
    let pipe = caretaker.stdin.take().context("its input is piped")?;
    // It outlives this process by design, so nobody here waits for it while tests run.
    std::thread::spawn(move || drop(caretaker.wait()));
    Ok(pipe)
}

/// Whom the server runs as: ourselves, or somebody unprivileged when we are root.
fn owner() -> anyhow::Result<Option<(u32, u32)>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let user = User::from_name(UNPRIVILEGED)?.context("there is no user nobody")?;
    Ok(Some((user.uid.as_raw(), user.gid.as_raw())))
}

fn as_owner(program: &Path, owner: Option<(u32, u32)>) -> Spec {
    match owner {
        None => Spec::new(program),
        Some((uid, gid)) => Spec::new("setpriv")
            .arg(format!("--reuid={uid}"))
            .arg(format!("--regid={gid}"))
            .args(["--clear-groups", "--inh-caps=-all", "--"])
            .arg(program)
            .name(
                program
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            ),
    }
    .env("LC_ALL", "C")
    .dir("/")
}

fn own(path: &Path, owner: Option<(u32, u32)>, mode: u32) -> anyhow::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if let Some((uid, gid)) = owner {
        chown(path, Some(uid), Some(gid)).with_context(|| format!("chown {}", path.display()))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str, owner: Option<(u32, u32)>) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    own(path, owner, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventually::eventually;

    #[test]
    fn a_port_that_was_taken_meanwhile_is_no_failure() {
        let mut server = Postgres::start().expect("starts");
        server.stop().expect("stops");
        let taken = server.port;
        let _taken = std::net::TcpListener::bind(("127.0.0.1", taken)).expect("it is free");
        let told = server.start_again().expect_err("the port is taken");
        assert!(format!("{told:#}").contains(PORT_TAKEN), "{told:#}");
        server.start_anywhere().expect("starts");
        assert_ne!(server.port, taken);
        assert_eq!(server.psql("postgres", "SELECT 1").expect("answers"), "1");
    }

    #[test]
    fn it_serves_stops_freezes_and_leaves_nothing() {
        let mut server = Postgres::start().expect("starts");
        let url = server.database();
        let name = url.rsplit('/').next().expect("a name").to_owned();
        server
            .psql(&name, "CREATE TABLE t (n int)")
            .expect("creates");
        server.stop().expect("stops");
        assert!(server.psql(&name, "SELECT 1").is_err());
        server.start_again().expect("starts again");
        server
            .psql(&name, "INSERT INTO t VALUES (7)")
            .expect("inserts");
        server.freeze().expect("freezes");
        server.thaw().expect("thaws");
        assert_eq!(server.psql(&name, "SELECT n FROM t").expect("reads"), "7");
        let dir = server.dir.path().to_owned();
        drop(server);
        eventually("its directory is gone", Duration::from_secs(10), || {
            anyhow::ensure!(!dir.exists(), "{} is there", dir.display());
            Ok(())
        });
    }
}
