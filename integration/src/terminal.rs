//! A person's terminal: lines typed into a shell, in a home directory of its own.

use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_testkit::{Child, Finished, Host, Spec, TestUser};
use tempfile::TempDir;

use crate::binaries::binary;

use crate::cli::{log_name_of_mesh, reachable};

/// Every program of the product.
pub const PROGRAMS: [&str; 7] = [
    "coordinator",
    "deploy-cli",
    "deploy-manager",
    "mesh",
    "relay",
    "traffic-gateway",
    "worker-agent",
];
const SYSTEM: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// What is on the search path ahead of the system's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// Nothing but a `cargo` in whose target directory everything is built already.
    Cargo,
    /// The product's programs, copied there.
    Programs,
}

/// A shell of an ordinary user on a host.
#[derive(Debug)]
pub struct Terminal {
    host: Host,
    user: Arc<TestUser>,
    bin: TempDir,
}

impl Terminal {
    /// On a host, in the user's home.
    pub fn new(host: &Host, user: &Arc<TestUser>, installed: Installed) -> anyhow::Result<Self> {
        let bin = tempfile::Builder::new().prefix("mesh-path-").tempdir()?;
        open_to_all(bin.path())?;
        match installed {
            Installed::Cargo => {
                let cargo = bin.path().join("cargo");
                std::fs::write(&cargo, stand_in(&reachable(&binary("mesh"))))?;
                open_to_all(&cargo)?;
            }
            Installed::Programs => {
                for name in PROGRAMS {
                    symlink(reachable(&binary(name)), bin.path().join(name))?;
                }
            }
        }
        Ok(Self {
            host: host.clone(),
            user: Arc::clone(user),
            bin,
        })
    }

    fn everything(&self) -> String {
        format!("terminal-{}", self.host.name())
    }

    /// A shell; what it prints is kept under this name.
    fn shell(&self, name: &str) -> Spec {
        let mut spec = Spec::new("bash")
            .name(name.to_owned())
            .host(&self.host)
            .user(&self.user)
            .dir(self.user.home())
            .env("PATH", format!("{}:{SYSTEM}", self.bin.path().display()))
            .env("NO_COLOR", "1");
        for name in [
            "XDG_CONFIG_HOME",
            "XDG_DATA_HOME",
            "XDG_STATE_HOME",
            "MESH_CONTEXT",
            "MESH_HOSTNAME",
            "RUST_LOG",
            "SSH_AUTH_SOCK",
        ] {
            spec = spec.env_remove(name);
        }
        spec
    }

    /// Types a line and waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn run(&self, line: &str, within: Duration) -> Finished {
        self.run_with(line, "", within)
    }

    /// Types a line, then what the program asks for, then Ctrl-D.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn run_with(&self, line: &str, typed: &str, within: Duration) -> Finished {
        // Under the program's name, by which the search for secrets in logs knows whose output it
        // is: `mesh token create` is there to show one.
        let words: Vec<&str> = line.split_whitespace().collect();
        let spec = match words.split_first() {
            Some((&"mesh", args)) => self.shell(log_name_of_mesh(args)),
            Some((name, _)) if PROGRAMS.contains(name) => self.shell(name),
            _ => self.shell(&self.everything()),
        };
        let spec = spec.args(["-c", line]).stdin(typed);
        spec.run(within)
            .unwrap_or_else(|error| panic!("{line}: {error:#}"))
    }

    /// Types a line that goes on running.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(&self, line: &str) -> Child {
        let spec = self.shell(&self.everything()).args(["-c", line]);
        spec.spawn()
            .unwrap_or_else(|error| panic!("{line}: {error:#}"))
    }

    /// Types lines one after the other into one shell, which stays open with what they put in the
    /// background. A line that fails ends it.
    ///
    /// # Panics
    /// When one fails, or they are not done in time.
    #[track_caller]
    pub fn type_all(&self, lines: &[&str], within: Duration) -> Child {
        const DONE: &str = "every line was typed";
        let script = format!("set -e\n{}\necho '{DONE}'\nwait\n", lines.join("\n"));
        let spec = self.shell(&self.everything()).args(["-c", &script]);
        let child = spec.spawn().unwrap_or_else(|error| panic!("{error:#}"));
        child.wait_for_line(DONE, within);
        child
    }
}

/// What `cargo` does in a clone where everything is built. `cargo run` runs the binary of the
/// workspace's default member, which is `mesh` (the root's Cargo.toml), built for debugging, as the
/// binaries under test are. Anything else fails.
fn stand_in(mesh: &Path) -> String {
    format!(
        "#!/bin/sh\n\
         if [ \"$1 $2\" != 'run --' ]; then echo \"not known here: cargo $*\" >&2; exit 101; fi\n\
         shift 2\n\
         exec '{}' \"$@\"\n",
        mesh.display()
    )
}

fn open_to_all(path: &Path) -> anyhow::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("open {}", path.display()))
}

/// Names that the programs on some hosts find in `/etc/hosts`, until this is dropped.
#[derive(Debug)]
pub struct Names {
    folders: Vec<PathBuf>,
}

impl Names {
    /// Makes `name` known on `hosts`, by what `ip netns exec` lays over `/etc` (ip-netns(8)).
    pub fn add(hosts: &[&Host], name: &str, addr: Ipv4Addr) -> anyhow::Result<Self> {
        let mut names = Self {
            folders: Vec::new(),
        };
        for host in hosts {
            let folder = Path::new("/etc/netns").join(host.namespace());
            std::fs::create_dir_all(&folder)?;
            names.folders.push(folder.clone());
            let text = format!("127.0.0.1 localhost\n::1 localhost\n{addr} {name}\n");
            std::fs::write(folder.join("hosts"), text)?;
        }
        Ok(names)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        for folder in &self.folders {
            // It is of no use to anybody once its namespace is gone.
            drop(std::fs::remove_dir_all(folder));
        }
    }
}
