//! Child processes with a captured log.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::artefact;
use crate::eventually::rest;
use crate::lab::Host;
use crate::log::{Line, Log, Stream};
use crate::need::program;
use crate::user::TestUser;

/// How long a process gets to end by itself when its [`Child`] is dropped.
const DROP_GRACE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(5);
/// Lines of a process that are shown when its test fails.
const LAST: usize = 5;

/// What to start: a program with arguments and environment, in a namespace, as a user.
#[derive(Debug, Clone)]
pub struct Spec {
    name: String,
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(OsString, Option<OsString>)>,
    dir: Option<PathBuf>,
    stdin: Option<Vec<u8>>,
    host: Option<(String, String)>,
    user: Option<(u32, u32)>,
}

impl Spec {
    /// The program, by path or by name.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref().to_owned();
        let name = PathBuf::from(&program).file_name().map_or_else(
            || "child".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        Self {
            name,
            program,
            args: Vec::new(),
            envs: Vec::new(),
            dir: None,
            stdin: None,
            host: None,
            user: None,
        }
    }

    /// A name for logs, instead of the program's.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let pair = (key.as_ref().to_owned(), Some(value.as_ref().to_owned()));
        self.envs.push(pair);
        self
    }

    /// Leaves an environment variable out.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.envs.push((key.as_ref().to_owned(), None));
        self
    }

    /// The working directory.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// What it reads from standard input; nothing otherwise.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Runs on a host of a lab: in its network namespace and under its host name.
    #[must_use]
    pub fn host(mut self, host: &Host) -> Self {
        self.host = Some((host.namespace().to_owned(), host.name().to_owned()));
        self
    }

    /// Runs as another user, without any capability; needs root.
    #[must_use]
    pub fn user(mut self, user: &TestUser) -> Self {
        self.user = Some((user.uid(), user.gid()));
        self.env("HOME", user.home())
            .env("USER", user.name())
            .env("LOGNAME", user.name())
            .env_remove("XDG_RUNTIME_DIR")
    }

    fn command(&self) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Some((namespace, hostname)) = &self.host {
            // Each process gets a UTS namespace of its own: host names are not the network's.
            let script = r#"hostname "$0" && exec "$@""#;
            words.extend(["ip", "netns", "exec", namespace].map(Into::into));
            words.extend(["unshare", "--uts", "sh", "-c", script, hostname].map(Into::into));
        }
        if let Some((uid, gid)) = self.user {
            words.push("setpriv".into());
            words.push(format!("--reuid={uid}").into());
            words.push(format!("--regid={gid}").into());
            words.extend(["--init-groups", "--inh-caps=-all", "--"].map(Into::into));
        }
        let found = self.program.to_str().and_then(program);
        words.push(found.map_or_else(|| self.program.clone(), Into::into));
        words.extend(self.args.iter().cloned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        for (key, value) in &self.envs {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }

    /// Starts it, with both outputs captured and copied to `target/ci/logs/<test>/`.
    pub fn spawn(self) -> anyhow::Result<Child> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut command = self.command();
        let stdin = if self.stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        let mut process = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that what it leaves behind can be ended with it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", self.name))?;
        let dir = artefact::dir("logs").join(artefact::test_name());
        std::fs::create_dir_all(&dir)?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = Log::new(File::create(dir.join(format!("{count:03}-{}.log", self.name))).ok());
        let stdout = process.stdout.take().context("standard output is piped")?;
        let stderr = process.stderr.take().context("standard error is piped")?;
        let readers = vec![
            log.follow(Stream::Stdout, stdout),
            log.follow(Stream::Stderr, stderr),
        ];
        if let (Some(bytes), Some(mut pipe)) = (self.stdin, process.stdin.take()) {
            // A process that closes its input early is its own business.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        Ok(Child {
            name: self.name,
            started: Instant::now(),
            process,
            status: None,
            log,
            readers,
        })
    }

    /// Runs it to its end.
    pub fn run(self, within: Duration) -> anyhow::Result<Finished> {
        let mut child = self.spawn()?;
        child.finish(within)
    }
}

/// A running process; ended when dropped.
pub struct Child {
    name: String,
    started: Instant,
    process: std::process::Child,
    status: Option<ExitStatus>,
    log: Log,
    readers: Vec<JoinHandle<()>>,
}

impl Child {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).expect("process ids are positive and 31 bits")
    }

    /// Its name in logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// What it printed.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.poll().is_none()
    }

    fn poll(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.process.try_wait().ok().flatten();
        }
        self.status
    }

    /// The first line for which `wanted` answers.
    ///
    /// # Panics
    /// When the deadline passes or the process ends first, with the end of the log.
    #[track_caller]
    pub fn wait_for<T>(
        &self,
        what: &str,
        within: Duration,
        wanted: impl FnMut(&Line) -> Option<T>,
    ) -> T {
        self.log.wait_for(within, wanted).unwrap_or_else(|| {
            panic!(
                "{} did not print {what} within {within:?}; its last lines:\n{}",
                self.name,
                self.log.tail(40)
            )
        })
    }

    /// Waits for a line that contains `text`.
    ///
    /// # Panics
    /// When the deadline passes or the process ends first.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str, within: Duration) {
        self.wait_for(text, within, |line| line.text.contains(text).then_some(()));
    }

    /// Sends a signal to this process (not to those it started).
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        if self.status.is_some() {
            bail!("{} has ended", self.name);
        }
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("signal {}", self.name))
    }

    /// Asks it to end, as a service manager does.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Asks it to end, as Ctrl-C does.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGINT)
    }

    /// Holds it: it keeps its connections and answers nothing.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a held one go on.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(DROP_GRACE)?;
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.poll() {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} still runs after {within:?}; its last lines:\n{}",
                    self.name,
                    self.log.tail(40)
                );
            }
            rest(POLL);
        }
    }

    /// Waits for its end and for the last of its output.
    pub fn finish(&mut self, within: Duration) -> anyhow::Result<Finished> {
        let status = self.wait(within)?;
        let elapsed = self.started.elapsed();
        // A grandchild that keeps the pipe open must not hold up the test.
        let deadline = Instant::now() + DROP_GRACE;
        for reader in std::mem::take(&mut self.readers) {
            while !reader.is_finished() && Instant::now() < deadline {
                rest(POLL);
            }
        }
        Ok(Finished {
            code: status.code(),
            signal: status.signal(),
            stdout: self.log.text(Stream::Stdout),
            stderr: self.log.text(Stream::Stderr),
            started: self.started,
            elapsed,
            log: self.log.clone(),
        })
    }

    /// Fails when the log has a line of level WARN or ERROR, or a panic, with none of `allowed` in it.
    ///
    /// # Panics
    /// When there is such a line.
    #[track_caller]
    pub fn assert_log_clean(&self, allowed: &[&str]) {
        let alarms = self.log.alarms(allowed);
        assert!(
            alarms.is_empty(),
            "{} logged {} unexpected WARN or ERROR lines:\n{}",
            self.name,
            alarms.len(),
            alarms.join("\n")
        );
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child")
            .field("name", &self.name)
            .field("pid", &self.process.id())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.pid());
        if self.poll().is_none() {
            drop(self.terminate());
            drop(self.wait(DROP_GRACE));
        }
        // The rest of the group, and the process itself when it would not end. The group may be
        // empty by now, which is an error of no interest.
        let _gone = killpg(group, Signal::SIGKILL);
        if self.poll().is_none() {
            drop(self.process.wait());
        }
        if thread::panicking() {
            // Few, since why the test failed must not be lost among them; all is in target/ci/logs.
            eprintln!("the last lines of {}:\n{}", self.name, self.log.tail(LAST));
        }
    }
}

/// A process that ran to its end.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
    /// When it was started.
    pub started: Instant,
    /// How long it ran.
    pub elapsed: Duration,
    /// Its output line by line.
    pub log: Log,
}

impl Finished {
    /// Both outputs, for messages.
    pub fn all(&self) -> String {
        format!(
            "exit code {:?}, signal {:?}\n--- standard output\n{}--- standard error\n{}",
            self.code, self.signal, self.stdout, self.stderr
        )
    }

    /// The lines of both outputs, standard output's first.
    pub fn log_lines(&self) -> impl Iterator<Item = &str> {
        self.stdout.lines().chain(self.stderr.lines())
    }

    /// Itself when the exit code was 0.
    pub fn success(self) -> anyhow::Result<Self> {
        anyhow::ensure!(self.code == Some(0), "failed: {}", self.all());
        Ok(self)
    }

    /// Checks the exit code.
    ///
    /// # Panics
    /// When it is another one.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.all());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn outputs_and_exit_code_are_kept_apart() {
        let ran = Spec::new("sh")
            .args(["-c", "read line; echo got $line; echo bad >&2; exit 3"])
            .stdin("hello\n")
            .run(SOON)
            .expect("runs");
        assert_eq!(
            (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
            (Some(3), "got hello\n", "bad\n")
        );
    }

    #[test]
    fn a_line_is_waited_for_and_a_signal_ends_the_process() {
        // A shell cannot trap what was ignored when it started, as under `nohup … &` it is.
        let mut child = Spec::new("env")
            .args([
                "--default-signal=INT",
                "sh",
                "-c",
                "trap 'echo bye; exit 0' INT; echo ready; while :; do sleep 0.05; done",
            ])
            .spawn()
            .expect("starts");
        child.wait_for_line("ready", SOON);
        child.interrupt().expect("signalled");
        let ended = child.finish(SOON).expect("ends");
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(0), "ready\nbye\n")
        );
    }

    #[test]
    fn dropping_ends_also_what_the_process_started() {
        let child = Spec::new("sh")
            .args(["-c", "sleep 600 & echo $!; wait"])
            .spawn()
            .expect("starts");
        let pid: i32 = child.wait_for("a process id", SOON, |line| line.text.parse().ok());
        drop(child);
        crate::eventually("the grandchild is gone", SOON, || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Nobody may reap it on this machine: a zombie is gone too.
            anyhow::ensure!(stat.is_empty() || stat.contains(") Z "), "{stat}");
            Ok(())
        });
    }

    #[test]
    fn a_missing_program_is_an_error() {
        assert!(Spec::new("mesh-no-such-program").spawn().is_err());
    }
}
