//! The containers of `deploy/docker-compose.yml`, by the clients that people use.
//!
//! `cargo xtask compose` starts them, runs this by its name, and looks afterwards that `down` leaves
//! nothing; `cargo test` alone leaves this target out (`test = false`).
#![allow(clippy::print_stdout, reason = "the time of each step is printed")]

use std::time::Duration;

use integration::Console;
use mesh_testkit::{Browser, BrowserOptions, Curl, eventually};

mod faults;
mod project;

use project::Project;

const GATEWAY: &str = "http://localhost:8081";
const SOCKS: &str = "localhost:1080";
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];
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

#[test]
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
    let more = ["up", "--detach", "--wait", "--scale", "worker=1"];
    project.ok(more).expect("a third worker");
    eventually("the third worker is there", Duration::from_secs(20), || {
        project.consoles(&three)?;
        project.status_all(&three)
    });
    project.lap("a third worker by --scale");
    project.expect_clean_logs(&[]);

    faults::publish_ticker(&project, &socks_user);
    project.lap("a service of a worker by SOCKS5");
    for service in [
        "relay",
        "coordinator",
        "traffic-gateway",
        "deploy-manager",
        "worker-node-1",
        "worker",
        "postgres",
        "redis",
        // The last one, since the ticker does not come back with it.
        "worker-node-2",
    ] {
        faults::kill(&mut project, service, &three, &socks_user);
    }
    for databases in [&["postgres"][..], &["redis"], &["postgres", "redis"]] {
        faults::outage(&mut project, databases, &three, &socks_user);
    }
    faults::flush(&mut project, &three);

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
        let label = "{{index .Config.Labels \"org.opencontainers.image.revision\"}}";
        let revision = project.inspect(service, label).expect("inspected");
        let version = ["exec", "-T", service, service, "--version"];
        let version = project.ok(version).expect("a version");
        assert!(
            !revision.is_empty() && version.contains(&format!("commit: {revision}")),
            "{service} is of another commit than its image says, {revision:?}: {version}"
        );
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
        "coordinator/master.key",
        "tokens/relay/token",
        "tokens/gateway/token",
        "tokens/deployer/token",
        "tokens/worker/token",
    ];
    for path in paths {
        let secret = project.secret(path);
        assert!(!logs.contains(&secret), "{path} was logged");
    }
    assert!(!logs.contains("mesh1."), "a join token was logged");
    assert!(!logs.contains("PRIVATE KEY"), "a key was logged");
}
