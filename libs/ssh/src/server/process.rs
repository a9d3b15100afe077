//! Starting a user's process, on pipes or on a terminal, and ending all of its group.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::unistd::{Group, Pid, fchown};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::account::Account;
use super::platform;

/// How long a hung-up process has to end before it is killed.
const GRACE: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Debug, Clone)]
pub(super) enum Program {
    /// This command line, by the user's shell.
    Command(String),
    /// The user's login shell.
    LoginShell,
}

/// The terminal a client asked for.
#[derive(Debug, Clone)]
pub(super) struct Terminal {
    pub(super) term: String,
    pub(super) size: Winsize,
}

/// How to talk to the process.
pub(super) enum Io {
    Pipes {
        stdin: ChildStdin,
        stdout: ChildStdout,
        stderr: ChildStderr,
    },
    Terminal(AsyncFd<OwnedFd>),
}

/// A running process that leads a process group of its own. Dropping it kills the group.
pub(super) struct Process {
    child: Child,
    /// The group; `None` once the leader has been waited for.
    group: Option<Pid>,
}

impl Process {
    /// Starts `program` for `account`.
    pub(super) fn start(
        account: &Account,
        program: &Program,
        terminal: Option<&Terminal>,
        env: &BTreeMap<String, String>,
    ) -> io::Result<(Self, Io)> {
        let mut command = command(account, program, env);
        let master = match terminal {
            None => {
                command.stdin(Stdio::piped());
                command.stdout(Stdio::piped());
                command.stderr(Stdio::piped());
                None
            }
            Some(terminal) => {
                let (master, slave, name) = open_terminal(account, &terminal.size)?;
                command.env("TERM", &terminal.term).env("SSH_TTY", name);
                command.stdin(slave.try_clone()?);
                command.stdout(slave.try_clone()?);
                command.stderr(slave);
                Some(master)
            }
        };
        platform::isolate(&mut command, master.is_some(), account.identity.clone());
        let mut command = Command::from(command);
        let mut child = command.kill_on_drop(true).spawn()?;
        // The command holds this side's copies of the terminal; the end of the last process on it
        // is seen only when they are closed.
        drop(command);
        let group = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw);
        let io = match master {
            Some(master) => Io::Terminal(platform::watch(master)?),
            None => match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
                (Some(stdin), Some(stdout), Some(stderr)) => Io::Pipes {
                    stdin,
                    stdout,
                    stderr,
                },
                _ => {
                    return Err(io::Error::other(
                        "the process was started without its pipes",
                    ));
                }
            },
        };
        Ok((Self { child, group }, io))
    }

    /// Waits for the process to end. Cancel safe.
    pub(super) async fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        let status = self.child.wait().await?;
        // What it left running in the background stays, as with any SSH server.
        self.group = None;
        Ok(status)
    }

    /// Sends a signal to the whole group, while its leader is there.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // The only failure is a group that is gone already.
            let _ = killpg(group, signal);
        }
    }

    /// Ends the whole group: hang-up, a moment of grace, then by force.
    pub(super) async fn hang_up(mut self) {
        let Some(group) = self.group else { return };
        self.signal(Signal::SIGHUP);
        self.signal(Signal::SIGTERM);
        self.signal(Signal::SIGCONT);
        drop(tokio::time::timeout(GRACE, self.child.wait()).await);
        self.group = None;
        // Members that ignored the hang-up keep the group's number reserved, so it cannot have
        // passed to anybody else; when there are none, nothing is there to be hit.
        let _ = killpg(group, Signal::SIGKILL);
        drop(self.child.wait().await);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

fn command(
    account: &Account,
    program: &Program,
    env: &BTreeMap<String, String>,
) -> std::process::Command {
    let mut command = std::process::Command::new(&account.shell);
    let shell = account
        .shell
        .file_name()
        .unwrap_or(account.shell.as_os_str());
    match program {
        Program::Command(line) => {
            command.arg0(shell).arg("-c").arg(line);
        }
        Program::LoginShell => {
            // The leading dash is how a shell knows that it is a login shell.
            let mut name = OsString::from("-");
            name.push(shell);
            command.arg0(name);
        }
    }
    let home = if account.home.is_dir() {
        account.home.as_path()
    } else {
        Path::new("/")
    };
    command
        .env_clear()
        .envs(env)
        .env("HOME", &account.home)
        .env("USER", &account.name)
        .env("LOGNAME", &account.name)
        .env("SHELL", &account.shell)
        .env("PATH", &account.path)
        .current_dir(home);
    command
}

/// Opens a pseudo-terminal that the account owns: this side, the process's side, its path.
fn open_terminal(account: &Account, size: &Winsize) -> io::Result<(OwnedFd, OwnedFd, String)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    let slave = open(name.as_str(), flags, Mode::empty())?;
    platform::resize(&slave, size)?;
    if account.identity.is_some() {
        let tty = Group::from_name("tty")
            .ok()
            .flatten()
            .map(|group| group.gid);
        fchown(&slave, Some(account.uid), tty)?;
    }
    Ok((master.into(), slave, name))
}

/// Reads from a terminal; 0 at its end, which Linux reports as EIO when the last process on it is
/// gone.
pub(super) async fn read_terminal(
    terminal: &AsyncFd<OwnedFd>,
    buf: &mut [u8],
) -> io::Result<usize> {
    loop {
        let mut ready = terminal.readable().await?;
        match ready.try_io(|fd| nix::unistd::read(fd, buf).map_err(io::Error::from)) {
            Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => return Ok(0),
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

/// Writes to a terminal; returns how much of `data` it took.
pub(super) async fn write_terminal(terminal: &AsyncFd<OwnedFd>, data: &[u8]) -> io::Result<usize> {
    loop {
        let mut ready = terminal.writable().await?;
        match ready.try_io(|fd| nix::unistd::write(fd, data).map_err(io::Error::from)) {
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}
