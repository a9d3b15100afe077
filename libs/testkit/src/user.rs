//! Local users for tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use crate::child::Spec;
use crate::eventually::rest;

const TOOL_TIMEOUT: Duration = Duration::from_secs(30);
const PREFIX: &str = "mt";

/// The account files are locked by whoever changes them, and the tools do not wait.
static ACCOUNTS: Mutex<()> = Mutex::new(());

/// A local user with a home directory and a password; removed when dropped. Needs root.
#[derive(Debug)]
pub struct TestUser {
    name: String,
    password: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

impl TestUser {
    /// Makes a user with a name of its own.
    pub fn create() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let _accounts = ACCOUNTS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        sweep();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}u{count}", std::process::id());
        retried(|| Spec::new("useradd").args(["-m", "-U", "-s", "/bin/bash", &name]))?;
        let user = User::from_name(&name)?.context("a user that was just made exists")?;
        let made = Self {
            password: format!("Pw-{name}-9x"),
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            home: user.dir,
            name,
        };
        retried(|| Spec::new("chpasswd").stdin(format!("{}:{}\n", made.name, made.password)))?;
        Ok(made)
    }

    /// Its login name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Its user id.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its group id.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Its home directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Hands a file or directory, not what is in it, to this user.
    pub fn own(&self, path: &Path) -> anyhow::Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("hand {} to {}", path.display(), self.name))
    }
}

impl Drop for TestUser {
    fn drop(&mut self) {
        let _accounts = ACCOUNTS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        end_processes(self.uid);
        remove(&self.name);
    }
}

/// Runs a tool that changes accounts, again while another one holds their lock.
fn retried(tool: impl Fn() -> Spec) -> anyhow::Result<()> {
    for _ in 0..100 {
        let ran = tool().run(TOOL_TIMEOUT)?;
        if ran.code == Some(0) {
            return Ok(());
        }
        if !ran.stderr.contains("lock") {
            bail!("{}", ran.all());
        }
        rest(Duration::from_millis(100));
    }
    bail!("the account files stayed locked")
}

fn remove(name: &str) {
    // A user that is gone already is what is wanted.
    drop(
        Command::new("userdel")
            .args(["-r", "-f", name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status(),
    );
}

/// Removes users of tests that were killed before they could.
fn sweep() {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    for name in passwd.lines().filter_map(|line| line.split(':').next()) {
        let Some((pid, _)) = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('u'))
        else {
            continue;
        };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            remove(name);
        }
    }
}

/// Ends every process of a test's own user, one by one and by id.
fn end_processes(uid: u32) {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return;
    };
    for entry in entries.flatten() {
        let pid = entry.file_name().to_string_lossy().parse::<i32>();
        let owner = entry.metadata().map(|metadata| metadata.uid());
        if let (Ok(pid), Ok(owner)) = (pid, owner)
            && owner == uid
        {
            // It may have ended by itself in between.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need::{Need, needs};

    #[test]
    fn a_user_runs_programs_and_is_gone_afterwards() {
        if !needs(&[
            Need::Root,
            Need::Program("useradd"),
            Need::Program("setpriv"),
        ]) {
            return;
        }
        let user = TestUser::create().expect("user");
        let name = user.name().to_owned();
        let ran = Spec::new("id")
            .arg("-un")
            .user(&user)
            .run(TOOL_TIMEOUT)
            .expect("runs");
        assert_eq!(ran.stdout.trim(), name);
        drop(user);
        assert!(User::from_name(&name).expect("lookup").is_none());
    }
}
