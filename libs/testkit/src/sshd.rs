//! A real sshd with a configuration of its own.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;

use crate::child::{Child, Spec};
use crate::lab::Host;
use crate::user::TestUser;

/// Where Debian puts sshd.
pub const SSHD: &str = "/usr/sbin/sshd";
const TOOL_TIMEOUT: Duration = Duration::from_secs(20);

/// How sshd is to run.
#[derive(Debug)]
pub struct SshdOptions {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Public keys (OpenSSH lines) that may log in as a user.
    pub authorized_keys: Vec<(String, String)>,
    /// The file of trusted user CAs; it may come into being later.
    pub trusted_user_ca_keys: Option<PathBuf>,
    /// Variables of every session, such as another search path.
    pub session_env: Vec<(String, String)>,
}

impl SshdOptions {
    /// Listening there, for passwords only.
    pub fn at(listen: SocketAddr) -> Self {
        Self {
            listen,
            authorized_keys: Vec::new(),
            trusted_user_ca_keys: None,
            session_env: Vec::new(),
        }
    }

    /// Lets the owner of this public key (an OpenSSH line) in as `user`.
    #[must_use]
    pub fn authorize(mut self, user: &TestUser, public_key: &str) -> Self {
        self.authorized_keys
            .push((user.name().to_owned(), public_key.trim().to_owned()));
        self
    }
}

/// A running sshd: password by PAM, keys, certificates. Needs root.
#[derive(Debug)]
pub struct Sshd {
    child: Option<Child>,
    dir: TempDir,
    host: Option<Host>,
    listen: SocketAddr,
}

impl Sshd {
    /// Makes a host key, writes the configuration, starts sshd and waits until it listens.
    pub fn start(host: Option<&Host>, options: SshdOptions) -> anyhow::Result<Self> {
        // The privilege separation directory, without which sshd refuses to start.
        std::fs::create_dir_all("/run/sshd").context("make /run/sshd")?;
        let dir = TempDir::new().context("make sshd's directory")?;
        open_to_all(dir.path())?;
        ssh_keygen(&dir.path().join("host_key"))?;
        let keys = dir.path().join("keys");
        std::fs::create_dir(&keys)?;
        open_to_all(&keys)?;
        for (user, key) in &options.authorized_keys {
            std::fs::write(keys.join(user), format!("{key}\n"))?;
        }
        let path = dir.path().display();
        let trusted = options
            .trusted_user_ca_keys
            .map(|file| format!("TrustedUserCAKeys {}\n", file.display()))
            .unwrap_or_default();
        let env: Vec<String> = options
            .session_env
            .iter()
            .map(|(name, value)| format!(" \"{name}={value}\""))
            .collect();
        // One line: sshd takes the first one only (sshd_config(5)).
        let env = match env.is_empty() {
            true => String::new(),
            false => format!("SetEnv{}\n", env.concat()),
        };
        let config = format!(
            "Port {port}\n\
             ListenAddress {addr}\n\
             HostKey {path}/host_key\n\
             PidFile none\n\
             UsePAM yes\n\
             PasswordAuthentication yes\n\
             KbdInteractiveAuthentication no\n\
             PubkeyAuthentication yes\n\
             AuthorizedKeysFile {path}/keys/%u\n\
             StrictModes no\n\
             LogLevel VERBOSE\n\
             MaxStartups 100\n\
             Subsystem sftp internal-sftp\n\
             {trusted}{env}",
            port = options.listen.port(),
            addr = options.listen.ip(),
        );
        std::fs::write(dir.path().join("sshd_config"), config)?;
        let mut sshd = Self {
            child: None,
            dir,
            host: host.cloned(),
            listen: options.listen,
        };
        sshd.run()?;
        Ok(sshd)
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut spec = Spec::new(SSHD).args(["-D", "-e", "-f"]).arg(self.config());
        if let Some(host) = &self.host {
            spec = spec.host(host).name(format!("sshd-{}", host.name()));
        }
        let child = spec.spawn()?;
        child.wait_for_line("Server listening on", TOOL_TIMEOUT);
        self.child = Some(child);
        Ok(())
    }

    /// Replaces its host key by a new one and starts it again.
    pub fn change_host_key(&mut self) -> anyhow::Result<()> {
        drop(self.child.take());
        for file in ["host_key", "host_key.pub"] {
            std::fs::remove_file(self.dir.path().join(file))?;
        }
        ssh_keygen(&self.host_key())?;
        self.run()
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("sshd_config")
    }

    /// Its private host key's file; the public one has `.pub` added.
    pub fn host_key(&self) -> PathBuf {
        self.dir.path().join("host_key")
    }

    /// Where it listens.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The process.
    ///
    /// # Panics
    /// Never: it is there except while the host key is being changed.
    pub fn child(&self) -> &Child {
        self.child.as_ref().expect("sshd runs")
    }
}

fn open_to_all(dir: &Path) -> anyhow::Result<()> {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Makes an Ed25519 key without a passphrase at `path`, the public half at `path.pub`.
pub fn ssh_keygen(path: &Path) -> anyhow::Result<()> {
    Spec::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(path)
        .run(TOOL_TIMEOUT)?
        .success()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;
    use crate::need::{Need, needs};

    #[test]
    fn a_key_logs_in_and_another_does_not() {
        let needed = [
            Need::Root,
            Need::Program("ip"),
            Need::Program("ssh"),
            Need::Program("useradd"),
            Need::Program(SSHD),
        ];
        if !needs(&needed) {
            return;
        }
        let lab = Lab::new().expect("lab");
        let host = lab.host("worker-node-2").expect("host");
        let user = TestUser::create().expect("user");
        let keys = TempDir::new().expect("directory");
        for name in ["known", "unknown"] {
            ssh_keygen(&keys.path().join(name)).expect("key");
        }
        let public = std::fs::read_to_string(keys.path().join("known.pub")).expect("public key");
        let at = SocketAddr::from(([127, 0, 0, 1], 2222));
        let options = SshdOptions::at(at).authorize(&user, &public);
        let _sshd = Sshd::start(Some(&host), options).expect("sshd");
        let login = |key: &str| {
            host.spec("ssh")
                .args(["-F", "none", "-p", "2222", "-o", "BatchMode=yes"])
                .args([
                    "-o",
                    "StrictHostKeyChecking=no",
                    "-o",
                    "UserKnownHostsFile=/dev/null",
                ])
                .args(["-o", "IdentitiesOnly=yes", "-i"])
                .arg(keys.path().join(key))
                .arg(format!("{}@127.0.0.1", user.name()))
                .arg("uname -n")
                .run(TOOL_TIMEOUT)
                .expect("runs")
        };
        assert_eq!(login("known").expect_code(0).stdout.trim(), "worker-node-2");
        assert_eq!(login("unknown").code, Some(255));
    }
}
