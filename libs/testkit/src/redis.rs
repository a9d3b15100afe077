//! A real Redis server that keeps nothing on disk.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::child::{Child, Spec};
use crate::port::free_tcp_port;

/// The password of the default user where [`RedisOptions::password`] asks for one.
pub const REDIS_PASSWORD: &str = "correct-horse-redis";
const START: Duration = Duration::from_secs(30);
const TOOL: Duration = Duration::from_secs(20);

/// How the server is to run.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    tls: Option<(String, String)>,
    password: bool,
    users: Vec<String>,
    port: Option<u16>,
}

impl RedisOptions {
    /// Serves TLS only, with this certificate chain and key (PEM).
    #[must_use]
    pub fn tls(mut self, certificate: impl Into<String>, key: impl Into<String>) -> Self {
        self.tls = Some((certificate.into(), key.into()));
        self
    }

    /// Listens on this port, where a free one would not be known in time.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Asks the default user for [`REDIS_PASSWORD`].
    #[must_use]
    pub fn password(mut self) -> Self {
        self.password = true;
        self
    }

    /// Adds a user: a line of Redis' access list, such as `mesh on >secret ~mesh:* +ping`.
    #[must_use]
    pub fn user(mut self, line: impl Into<String>) -> Self {
        self.users.push(line.into());
        self
    }
}

/// A running Redis on a loopback port. Ended when dropped.
#[derive(Debug)]
pub struct Redis {
    child: Option<Child>,
    options: RedisOptions,
    port: u16,
    dir: TempDir,
}

impl Redis {
    /// Starts a server without password and TLS, and waits until it answers.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(RedisOptions::default())
    }

    /// Like [`Self::start`], with options.
    pub fn start_with(options: RedisOptions) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("mesh-redis-").context("make Redis' directory")?;
        let port = options.port.unwrap_or_else(free_tcp_port);
        let path = dir.path().display();
        let mut config = format!(
            "bind 127.0.0.1\nprotected-mode no\nsave \"\"\nappendonly no\ndaemonize no\ndir {path}\n"
        );
        match &options.tls {
            None => writeln!(config, "port {port}")?,
            Some((certificate, key)) => {
                fs::write(dir.path().join("server.crt"), certificate)?;
                fs::write(dir.path().join("server.key"), key)?;
                writeln!(
                    config,
                    "port 0\ntls-port {port}\ntls-auth-clients no\n\
                     tls-cert-file {path}/server.crt\ntls-key-file {path}/server.key\n\
                     tls-ca-cert-file {path}/server.crt"
                )?;
            }
        }
        if options.password {
            writeln!(config, "requirepass {REDIS_PASSWORD}")?;
        }
        for user in &options.users {
            writeln!(config, "user {user}")?;
        }
        let file = dir.path().join("redis.conf");
        fs::write(&file, config)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        let mut server = Self {
            child: None,
            options,
            port,
            dir,
        };
        server.start_again()?;
        Ok(server)
    }

    /// Starts the server again on its old port; it knows nothing of before.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let child = Spec::new("redis-server")
            .arg(self.dir.path().join("redis.conf"))
            .spawn()
            .context("'cargo xtask setup' installs the package redis-server")?;
        child.wait_for_line("Ready to accept connections", START);
        self.child = Some(child);
        Ok(())
    }

    /// Ends the server as a crash does.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            bail!("Redis is stopped already");
        };
        child.kill()
    }

    /// Freezes the server: it keeps its connections, takes new ones and answers nothing.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("Redis is stopped")?;
        child.signal(signal)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL, without user and password.
    pub fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() {
            "rediss"
        } else {
            "redis"
        };
        format!("{scheme}://127.0.0.1:{}/0", self.port)
    }

    /// Where the certificate lies that it shows, when it does.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("server.crt")
    }

    /// Says one command to it as the default user, by redis-cli, and answers the answer.
    pub fn ask(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut cli = Spec::new("redis-cli").args(["-p", &self.port.to_string()]);
        if self.options.tls.is_some() {
            cli = cli.args(["--tls", "--insecure"]);
        }
        if self.options.password {
            cli = cli.env("REDISCLI_AUTH", REDIS_PASSWORD);
        }
        let done = cli.args(words).run(TOOL)?.success()?;
        Ok(done.stdout.trim_end().to_owned())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.child.is_some() {
            drop(self.kill());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_forgets_and_comes_again() {
        let mut server = Redis::start_with(RedisOptions::default().password()).expect("starts");
        assert_eq!(server.ask(&["SET", "a", "1"]).expect("answers"), "OK");
        assert_eq!(server.ask(&["GET", "a"]).expect("answers"), "1");
        server.freeze().expect("freezes");
        server.thaw().expect("thaws");
        server.kill().expect("ends");
        assert!(server.ask(&["PING"]).is_err());
        server.start_again().expect("starts again");
        assert_eq!(server.ask(&["GET", "a"]).expect("answers"), "");
    }
}
