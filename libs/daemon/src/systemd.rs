//! Telling systemd how the process is doing (`Type=notify`, `WatchdogSec=`; sd_notify(3)).
//!
//! The protocol is one datagram with lines of `NAME=value`; it needs no library. Outside of systemd
//! there is no `NOTIFY_SOCKET`, and nothing happens.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::readiness::Readiness;
use crate::shutdown::Shutdown;
use crate::task::Task;

/// How often the status line is brought up to date when no watchdog asks for more.
const REFRESH: Duration = Duration::from_secs(5);

/// systemd's end of the conversation.
#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// The manager that listens at `address`: a path, or a name in the abstract namespace after `@`.
    fn at(address: &OsStr) -> io::Result<Self> {
        let to = match address.as_bytes().split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&to)?;
        // A manager that does not read must not hold the service up.
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    fn tell(&self, lines: &str) {
        if let Err(error) = self.socket.send(lines.as_bytes()) {
            tracing::debug!(%error, "systemd was not told");
        }
    }
}

/// What the manager wants of this process.
#[derive(Debug, Default)]
struct Wishes {
    notify_socket: Option<OsString>,
    watchdog_usec: Option<String>,
    watchdog_pid: Option<String>,
}

impl Wishes {
    fn of_environment() -> Self {
        Self {
            notify_socket: std::env::var_os("NOTIFY_SOCKET"),
            watchdog_usec: std::env::var("WATCHDOG_USEC").ok(),
            watchdog_pid: std::env::var("WATCHDOG_PID").ok(),
        }
    }

    /// The longest silence that the watchdog of process `pid` bears; `None` without one.
    fn watchdog(&self, pid: u32) -> Option<Duration> {
        let ours = self
            .watchdog_pid
            .as_ref()
            .is_none_or(|wanted| wanted.parse() == Ok(pid));
        let usec = self.watchdog_usec.as_ref()?.parse().ok()?;
        (ours && usec > 0).then(|| Duration::from_micros(usec))
    }
}

/// Tells systemd, if it started this process, that the service is up, what it waits for, that it is
/// alive and that it stops. Ends when the task is dropped.
///
/// "Up" is "serves", not "ready": a service whose peers are away has started all the same, and
/// starting it again would not bring them back. What it waits for stands in its status line.
pub(crate) fn announce(readiness: Readiness, shutdown: Shutdown) -> Option<Task> {
    announce_to(&Wishes::of_environment(), readiness, shutdown)
}

fn announce_to(wishes: &Wishes, readiness: Readiness, shutdown: Shutdown) -> Option<Task> {
    let manager = match Manager::at(wishes.notify_socket.as_deref()?) {
        Ok(manager) => manager,
        Err(error) => {
            tracing::info!(%error, "systemd cannot be told that the service is up");
            return None;
        }
    };
    let watchdog = wishes.watchdog(std::process::id());
    let task = Task::spawn("systemd", converse(manager, watchdog, readiness, shutdown));
    Some(task)
}

async fn converse(
    manager: Manager,
    watchdog: Option<Duration>,
    readiness: Readiness,
    shutdown: Shutdown,
) {
    let pause = watchdog.map_or(REFRESH, |limit| REFRESH.min(limit / 3));
    let mut ticks = tokio::time::interval(pause.max(Duration::from_millis(1)));
    let mut told = status(&readiness);
    manager.tell(&format!("READY=1\nSTATUS={told}"));
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.draining() => break,
        }
        if watchdog.is_some() {
            manager.tell("WATCHDOG=1");
        }
        let now = status(&readiness);
        if now != told {
            manager.tell(&format!("STATUS={now}"));
            told = now;
        }
    }
    manager.tell("STOPPING=1\nSTATUS=shutting down");
}

/// One line for `systemctl status`.
fn status(readiness: &Readiness) -> String {
    let waiting: Vec<String> = readiness
        .report()
        .iter()
        .map(|part| format!("{}: {}", part.name, part.reason))
        .collect();
    if waiting.is_empty() {
        return "ready".to_owned();
    }
    format!("not ready; {}", waiting.join("; ")).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::ShutdownTrigger;

    fn wishes(socket: &OsStr, watchdog: Option<&str>) -> Wishes {
        Wishes {
            notify_socket: Some(socket.to_owned()),
            watchdog_usec: watchdog.map(str::to_owned),
            watchdog_pid: None,
        }
    }

    async fn heard(socket: &tokio::net::UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let received = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer));
        let length = received.await.expect("in time").expect("a datagram");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    async fn heard_until(socket: &tokio::net::UnixDatagram, wanted: &str) {
        while heard(socket).await != wanted {}
    }

    #[tokio::test]
    async fn systemd_hears_of_the_start_the_state_and_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let socket = tokio::net::UnixDatagram::bind(&path).expect("bound");
        let readiness = Readiness::default();
        let latch = readiness.latch("store", "opening");
        let (trigger, shutdown) = ShutdownTrigger::new(Duration::from_secs(1));
        let wishes = wishes(path.as_os_str(), Some("30000"));
        let task = announce_to(&wishes, readiness, shutdown).expect("a manager");

        assert_eq!(
            heard(&socket).await,
            "READY=1\nSTATUS=not ready; store: opening"
        );
        heard_until(&socket, "WATCHDOG=1").await;
        latch.ready();
        heard_until(&socket, "STATUS=ready").await;
        trigger.trigger("test");
        heard_until(&socket, "STOPPING=1\nSTATUS=shutting down").await;
        drop(task);
    }

    #[tokio::test]
    async fn an_abstract_socket_is_found_and_a_missing_one_is_no_fault() {
        let name = format!("mesh-systemd-test-{}", std::process::id());
        let addr = SocketAddr::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&addr).expect("bound");
        socket.set_nonblocking(true).expect("set");
        let socket = tokio::net::UnixDatagram::from_std(socket).expect("taken over");
        let (_trigger, shutdown) = ShutdownTrigger::new(Duration::from_secs(1));
        let at = OsString::from(format!("@{name}"));
        let task = announce_to(&wishes(&at, None), Readiness::default(), shutdown.clone());
        assert!(task.is_some());
        assert_eq!(heard(&socket).await, "READY=1\nSTATUS=ready");

        let gone = wishes(OsStr::new("/nowhere/notify"), None);
        assert!(announce_to(&gone, Readiness::default(), shutdown.clone()).is_none());
        assert!(announce_to(&Wishes::default(), Readiness::default(), shutdown).is_none());
    }

    #[test]
    fn the_watchdog_is_another_process_s_when_it_says_so() {
        let with = |usec: &str, pid: Option<&str>| Wishes {
            watchdog_usec: Some(usec.to_owned()),
            watchdog_pid: pid.map(str::to_owned),
            ..Wishes::default()
        };
        assert_eq!(
            with("30000000", None).watchdog(7),
            Some(Duration::from_secs(30))
        );
        assert!(with("1000", Some("7")).watchdog(7).is_some());
        for other in [with("1000", Some("8")), with("0", None), with("soon", None)] {
            assert_eq!(other.watchdog(7), None);
        }
        assert_eq!(Wishes::default().watchdog(7), None);
    }
}
