//! The containers of `deploy/docker-compose.yml`, by the clients that people use.
//!
//! `cargo xtask compose` starts them, runs this, and looks afterwards that `down` leaves nothing.
#![allow(clippy::print_stdout, reason = "the time of each step is printed")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::Console;
use mesh_testkit::{
    Browser, BrowserOptions, Curl, CurlReply, Finished, Line, Spec, Stream, eventually, holds_for,
};

const GATEWAY: &str = "http://localhost:8081";
const SOCKS: &str = "localhost:1080";
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];
/// Long enough for everything that has a time to live to run out.
const OUTAGE: Duration = Duration::from_secs(60);
/// After which a killed or cut-off part must be whole again.
const HEALED: Duration = Duration::from_secs(90);
/// Our programs' containers; their logs must be clean.
const OURS: [&str; 8] = [
    "bootstrap",
    "coordinator",
    "relay",
    "traffic-gateway",
    "deploy-manager",
    "worker-node-1",
    "worker-node-2",
    "worker",
];

/// The running project.
struct Project {
    file: PathBuf,
    begun: Instant,
}

impl Project {
    fn open() -> Self {
        let file = std::env::var_os("MESH_COMPOSE_FILE")
            .expect("MESH_COMPOSE_FILE names the file: run `cargo xtask compose`");
        Self {
            file: file.into(),
            begun: Instant::now(),
        }
    }

    /// Prints how long it took since the last call.
    fn lap(&mut self, step: &str) {
        println!("{step:<44} {:>6.1} s", self.begun.elapsed().as_secs_f64());
        self.begun = Instant::now();
    }

    fn compose<const N: usize>(&self, args: [&str; N]) -> anyhow::Result<Finished> {
        Spec::new("docker")
            .args(["compose", "--file"])
            .arg(&self.file)
            .args(args)
            .run(Duration::from_secs(300))
    }

    fn ok<const N: usize>(&self, args: [&str; N]) -> anyhow::Result<String> {
        let ran = self.compose(args)?;
        ensure!(
            ran.code == Some(0),
            "docker compose {}: {:?}: {}{}",
            args.join(" "),
            ran.code,
            ran.stdout,
            ran.stderr
        );
        Ok(ran.stdout)
    }

    /// What the one-shot made, read as docs/docker.md says.
    fn secret(&self, path: &str) -> String {
        let path = format!("/run/mesh/{path}");
        let args = [
            "run",
            "--rm",
            "--no-deps",
            "-T",
            "--entrypoint",
            "cat",
            "secrets",
            &path,
        ];
        let text = self.ok(args).expect("a secret");
        assert!(text.trim().len() >= 32, "{path} is too short");
        text.trim().to_owned()
    }

    /// `deploy-cli status all` with nothing else said; all of `workers` are good.
    fn status_all(&self, workers: &[&str]) -> anyhow::Result<()> {
        let args = [
            "exec",
            "-T",
            "deploy-manager",
            "deploy-cli",
            "status",
            "all",
        ];
        let answer = self.ok(args)?;
        for worker in workers {
            let line = format!("[OK] {worker} -> ");
            ensure!(answer.contains(&line), "no {line:?} in: {answer}");
        }
        ensure!(!answer.contains("[FAIL]"), "{answer}");
        ensure!(answer.lines().count() == workers.len(), "{answer}");
        Ok(())
    }

    /// Every worker's page at the gateway is Cockpit's.
    fn consoles(&self, workers: &[&str]) -> anyhow::Result<()> {
        for worker in workers {
            let page = Curl::new()
                .get(format!("{GATEWAY}/{worker}/"))
                .and_then(CurlReply::ok)?;
            ensure!(page.contains("login-user-input"), "not Cockpit: {page}");
        }
        Ok(())
    }

    /// A change that goes through coordinator and database.
    fn change(&self) -> anyhow::Result<()> {
        let token = ["exec", "-T", "deploy-manager", "mesh", "token", "create"];
        self.ok(token).map(drop)
    }

    fn container(&self, service: &str) -> anyhow::Result<String> {
        let id = self.ok(["ps", "--all", "--quiet", service])?;
        let id = id.lines().next().context("no container")?;
        Ok(id.to_owned())
    }

    fn inspect(&self, service: &str, form: &str) -> anyhow::Result<String> {
        let id = self.container(service)?;
        let ran = Spec::new("docker")
            .args(["inspect", "--format", form, &id])
            .run(Duration::from_secs(30))?;
        ensure!(ran.code == Some(0), "{}", ran.stderr);
        Ok(ran.stdout.trim().to_owned())
    }

    fn is_healthy(&self, service: &str) -> anyhow::Result<()> {
        let health = self.inspect(service, "{{.State.Health.Status}}")?;
        ensure!(health == "healthy", "{service} is {health}");
        Ok(())
    }

    /// Kills the container's first process, as a fault would; the engine is to start it again.
    fn kill(&self, service: &str) {
        let restarts = |form| -> u32 {
            let count = self.inspect(service, form).expect("inspected");
            count.parse().expect("a number")
        };
        let before = restarts("{{.RestartCount}}");
        let pid = self.inspect(service, "{{.State.Pid}}").expect("inspected");
        let killed = Spec::new("kill")
            .args(["-KILL", &pid])
            .run(Duration::from_secs(5))
            .expect("kill runs");
        assert_eq!(killed.code, Some(0), "{}", killed.stderr);
        eventually("it is started again", HEALED, || {
            ensure!(restarts("{{.RestartCount}}") > before, "not yet");
            Ok(())
        });
    }

    fn logs(&self, service: &str) -> String {
        self.ok(["logs", "--no-color", "--no-log-prefix", service])
            .expect("logs")
    }

    /// No WARN, ERROR or panic but those `expected`.
    fn expect_clean_logs(&self, expected: &[&str]) {
        let mut alarms = Vec::new();
        for service in OURS {
            for text in self.logs(service).lines() {
                let line = Line {
                    at: Instant::now(),
                    stream: Stream::Stdout,
                    text: text.to_owned(),
                };
                if line.alarm().is_some() && !expected.iter().any(|part| text.contains(part)) {
                    alarms.push(format!("{service}: {text}"));
                }
            }
        }
        assert!(alarms.is_empty(), "in the logs:\n{}", alarms.join("\n"));
    }
}

#[test]
#[ignore = "needs the running containers: cargo xtask compose"]
fn the_containers_serve_people_and_heal_by_themselves() {
    let mut project = Project::open();

    // Nothing is waited for: `up --wait` has come back, so it works.
    project.consoles(&WORKERS).expect("Cockpit of both");
    project.status_all(&WORKERS).expect("both workers");
    project.lap("consoles and deploy-cli status all");

    expect_confined(&project);
    project.lap("confinement");

    let password = project.secret("console/password");
    use_consoles(&password);
    project.lap("two Cockpits in Chromium, with terminals");

    let socks_user = project.secret("socks/auth");
    use_socks(&socks_user);
    project.lap("SOCKS5");

    let three = ["worker-node-1", "worker-node-2", "worker-1"];
    let more = [
        "up",
        "--no-build",
        "--detach",
        "--wait",
        "--scale",
        "worker=1",
    ];
    project.ok(more).expect("a third worker");
    eventually("the third worker is there", Duration::from_secs(20), || {
        project.consoles(&three)?;
        project.status_all(&three)
    });
    project.lap("a third worker by --scale");
    project.expect_clean_logs(&[]);

    for service in [
        "relay",
        "coordinator",
        "traffic-gateway",
        "deploy-manager",
        "worker-node-1",
        "postgres",
        "redis",
    ] {
        project.kill(service);
        eventually("everything works again", HEALED, || {
            project.is_healthy(service)?;
            project.consoles(&three)?;
            project.status_all(&three)?;
            project.change()
        });
        project.lap(&format!("{service} killed, and healed"));
    }

    for databases in [&["postgres"][..], &["redis"], &["postgres", "redis"]] {
        outage(&mut project, databases, &three, &socks_user);
    }

    // What was kept in Redis is written again by those who need it.
    let flush = r#"REDISCLI_AUTH="$(cat /run/mesh/redis/password)" \
        redis-cli --tls --cacert /run/mesh/redis/ca.crt -h redis flushall"#;
    let flushed = project.ok(["exec", "-T", "redis", "sh", "-c", flush]);
    assert_eq!(flushed.expect("flushed").trim(), "OK");
    eventually("everything works again", HEALED, || {
        project.consoles(&three)?;
        project.status_all(&three)?;
        project.change()
    });
    project.lap("redis flushed");

    project.expect_clean_logs(&[
        "the bus is down; everything goes on without it",
        "the store takes no changes until it heals; connections go on",
    ]);
    expect_no_secret_in_logs(&project);
    project.lap("logs");
}

/// Our services run as nobody in particular, write nowhere but to their volume, and hold no shell.
fn expect_confined(project: &Project) {
    for service in ["coordinator", "relay", "traffic-gateway", "deploy-manager"] {
        let form = "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} \
                    {{.HostConfig.CapAdd}} {{.HostConfig.SecurityOpt}}";
        let found = project.inspect(service, form).expect("inspected");
        let wanted = "65532:65532 true [ALL] [] [no-new-privileges:true]";
        assert_eq!(found, wanted, "{service}");
        let shell = project.compose(["exec", "-T", service, "/bin/sh", "-c", "true"]);
        assert_ne!(
            shell.expect("docker runs").code,
            Some(0),
            "{service} has a shell"
        );
    }
    // A machine has a shell; its keys and password are its own, not the image's.
    let keys = [
        "exec",
        "-T",
        "worker-node-1",
        "sh",
        "-c",
        "ls /etc/ssh/ssh_host_* 2>/dev/null",
    ];
    let keys = project.compose(keys).expect("docker runs").stdout;
    assert!(keys.is_empty(), "host keys in the image: {keys}");
}

/// Stops databases for a while: what runs goes on, and changes work again afterwards.
fn outage(project: &mut Project, databases: &[&str], workers: &[&str], socks_user: &str) {
    for database in databases {
        project.ok(["stop", database]).expect("stopped");
    }
    let has_store = !databases.contains(&"postgres");
    holds_for("the data plane", OUTAGE, || {
        project.consoles(workers)?;
        ensure!(
            fetch(Some(socks_user))?.contains("cockpit"),
            "another answer by SOCKS5"
        );
        // A command needs a certificate, whose issue is written down.
        if has_store {
            project.status_all(workers)
        } else {
            project
                .ok(["exec", "-T", "deploy-manager", "mesh", "node", "list"])
                .map(drop)
        }
    });
    if has_store {
        project.change().expect("changes need no Redis");
    } else {
        assert!(project.change().is_err(), "changed without a database");
    }
    for database in databases {
        project.ok(["start", database]).expect("started");
    }
    let begun = Instant::now();
    eventually("changes work again", HEALED, || project.change());
    eventually("everything is ready again", HEALED, || {
        project.is_healthy("coordinator")
    });
    println!("  healed after {:.1} s", begun.elapsed().as_secs_f64());
    project.lap(&format!(
        "{} away for {} s",
        databases.join(" and "),
        OUTAGE.as_secs()
    ));
}

fn use_consoles(password: &str) {
    let browser = Browser::start(&BrowserOptions::default()).expect("Chromium");
    for worker in WORKERS {
        let console = Console::new(GATEWAY, worker);
        console.log_in(&browser, "mesh", password);
        console.use_terminal(&browser);
    }
    Console::new(GATEWAY, WORKERS[0]).open_session(&browser);
}

/// What a worker's Cockpit answers by SOCKS5 to somebody with this `--proxy-user`.
fn fetch(user: Option<&str>) -> anyhow::Result<String> {
    let ping = format!("http://{0}:9090/{0}/ping", WORKERS[0]);
    let mut curl = Curl::new().args(["--socks5-hostname", SOCKS]);
    if let Some(user) = user {
        curl = curl.args(["--proxy-user", user]);
    }
    curl.get(&ping)?.ok()
}

fn use_socks(user: &str) {
    let page = fetch(Some(user)).expect("an answer");
    assert!(page.contains("cockpit"), "{page}");
    assert!(
        fetch(Some("mesh:wrong")).is_err(),
        "a wrong password was taken"
    );
    assert!(fetch(None).is_err(), "a stranger was served");
}

/// Every secret of the installation, looked for in everything that was logged.
fn expect_no_secret_in_logs(project: &Project) {
    let mut logs = String::new();
    for service in OURS.into_iter().chain(["secrets", "postgres", "redis"]) {
        logs.push_str(&project.logs(service));
    }
    assert!(logs.lines().count() > 50, "hardly any logs:\n{logs}");
    let paths = [
        "console/password",
        "socks/password",
        "coordinator/postgres-password",
        "coordinator/redis-password",
    ];
    for path in paths {
        let secret = project.secret(path);
        assert!(!logs.contains(&secret), "{path} was logged");
    }
    assert!(!logs.contains("mesh1."), "a join token was logged");
    assert!(!logs.contains("PRIVATE KEY"), "a key was logged");
}
