//! What a service does when it is told to end, seen from outside.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Service {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Service {
    fn start(grace_millis: u32) -> Self {
        let tests = std::env::current_exe().expect("a test knows its file");
        let dir = tests
            .parent()
            .and_then(|deps| deps.parent())
            .expect("target/debug/deps");
        let mut child = Command::new(dir.join("examples/drain"))
            .arg(grace_millis.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`cargo test -p mesh-daemon`, without --test, builds the example");
        let output = child.stdout.take().expect("it is piped");
        let mut service = Self {
            child,
            lines: BufReader::new(output).lines(),
        };
        assert_eq!(service.line(), "ready");
        service
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("it still runs").expect("text")
    }

    fn send(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("process ids are small");
        kill(Pid::from_raw(id), signal).expect("it still runs");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A test that failed must not leave it behind.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn the_first_signal_drains_and_the_second_ends_at_once() {
    for (first, second) in [
        (Signal::SIGTERM, Signal::SIGTERM),
        (Signal::SIGINT, Signal::SIGTERM),
    ] {
        let mut service = Service::start(60_000);
        service.send(first);
        assert_eq!(service.line(), "draining");
        let asked = Instant::now();
        service.send(second);
        let status = service.child.wait().expect("it ends");
        assert_eq!(status.code(), Some(1));
        assert!(
            asked.elapsed() < Duration::from_secs(10),
            "it did not wait for its drain"
        );
    }
}

#[test]
fn a_drain_that_takes_too_long_is_given_up() {
    let mut service = Service::start(50);
    service.send(Signal::SIGTERM);
    assert_eq!(service.line(), "draining");
    assert_eq!(service.line(), "gave up");
    assert!(service.child.wait().expect("it ends").success());
}
