//! What a mesh of two workers shows, however it was started: in one process or from binaries.

use std::time::Duration;

use anyhow::ensure;
use mesh_testkit::{Curl, Host, eventually};

use crate::Cli;

/// How a mesh is reached.
pub struct Reached<'a> {
    /// An operator of it.
    pub cli: &'a Cli,
    /// A call of curl from where its gateway is seen.
    pub curl: &'a dyn Fn() -> Curl,
    /// The gateway's URL of a path.
    pub url: &'a dyn Fn(&str) -> String,
}

impl std::fmt::Debug for Reached<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reached").finish_non_exhaustive()
    }
}

/// One worker, as somebody sees it who is about to cut it off.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its name.
    pub name: &'a str,
    /// The host where it runs.
    pub host: &'a Host,
    /// Its UDP port there.
    pub wg_port: u16,
    /// The relay's TCP port.
    pub derp_port: u16,
}

impl Reached<'_> {
    fn status_of(&self, name: &str) -> u16 {
        let patient = (self.curl)().within(Duration::from_secs(8));
        let reply = patient.get((self.url)(&format!("/{name}/")));
        reply.expect("curl runs").status
    }

    /// Each console shows its own node id and echoes the request's id. `nodes` are names and ids.
    ///
    /// # Panics
    /// When one does not; so do all of these when something is not as it must be.
    #[track_caller]
    pub fn assert_consoles(&self, nodes: &[(String, String)]) {
        for (name, id) in nodes {
            let request = format!("journey-{name}");
            let reply = (self.curl)()
                .args(["-i", "-H", &format!("X-Request-Id: {request}")])
                .get((self.url)(&format!("/{name}/")))
                .expect("curl runs");
            assert_eq!(reply.status, 200, "{reply:?}");
            assert!(
                reply.body.contains(id),
                "{name} does not show its id: {reply:?}"
            );
            assert!(
                reply.body.contains(&request),
                "{name} does not echo the request: {reply:?}"
            );
            for (other, id) in nodes.iter().filter(|(other, _)| other != name) {
                assert!(!reply.body.contains(id), "{name} shows {other}'s id");
            }
        }
    }

    /// With one worker's packets dropped, its console, its status and its commands fail, and the
    /// other's do not; when they are let through again, it is back.
    #[track_caller]
    pub fn assert_fails_alone(&self, target: Target<'_>, other: &str) {
        let Target {
            name,
            wg_port,
            derp_port,
            ..
        } = target;
        // The worker's own socket, and the relay as the way around it.
        let blocked = target
            .host
            .block(&[
                format!("udp sport {wg_port}"),
                format!("udp dport {wg_port}"),
                format!("tcp sport {derp_port}"),
                format!("tcp dport {derp_port}"),
            ])
            .expect("rule");
        // The first one goes into a connection from before, which nobody answers on any more: that
        // is given up here sooner than at the gateway.
        let fails = format!("the console of {name} fails");
        eventually(&fails, Duration::from_secs(40), || {
            let status = self.status_of(name);
            ensure!(matches!(status, 502..=504), "status {status}");
            Ok(())
        });
        assert_eq!(self.status_of(other), 200);
        let words = ["--timeout", "5s", "status", name, other];
        let status = self.cli.deploy(&words).expect_code(1);
        let lines: Vec<&str> = status.stdout.lines().collect();
        assert_eq!(lines.len(), 2, "{}", status.all());
        let failed = format!("[FAIL] {name}: ");
        assert!(lines[0].starts_with(&failed), "{}", status.all());
        let fine = format!("[OK] {other} -> ");
        assert!(lines[1].starts_with(&fine), "{}", status.all());
        for via in ["socks", "grpc"] {
            let options = ["--via", via, "--timeout", "5s", "exec"];
            let exec = |target: &str| {
                let words = [&options[..], &["echo it-$((6*7))", target]].concat();
                self.cli.deploy(&words)
            };
            let exec = (exec(name), exec(other).expect_code(0));
            assert_eq!(exec.0.code, Some(255), "{}", exec.0.all());
            assert!(exec.1.stdout.contains("it-42"), "{}", exec.1.all());
        }
        assert_eq!(self.status_of(other), 200);
        assert!(blocked.dropped().expect("counter") > 0);

        blocked.lift().expect("rule lifted");
        eventually("the worker is back", Duration::from_secs(30), || {
            let status = self.status_of(name);
            ensure!(status == 200, "status {status}");
            Ok(())
        });
        self.cli.deploy(&["exec", "true", name]).expect_code(0);
    }
}
