//! One command starts it all: page, console, command, and the same again after a restart.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use integration::{Cli, MeshUp, MeshUpOptions, NodeReady, mesh_up, metrics};
use mesh_testkit::{Curl, CurlReply, Host, Lab, Need, TestUser, eventually, needs};

const NEEDED: [Need; 6] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("nft"),
    Need::Program("curl"),
    Need::Program("useradd"),
    Need::Program("setpriv"),
];
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];
const MIB: u64 = 1 << 20;
/// Console pages that are asked for, to tell their bytes from what goes on anyway.
const PAGES: u64 = 100;

/// What must be the same after a restart.
fn identity(up: &MeshUp) -> Vec<(String, String, Vec<String>, Vec<u8>)> {
    let mut nodes: Vec<_> = up
        .ready()
        .nodes
        .iter()
        .map(|node: &NodeReady| {
            let key = std::fs::read(node.state_dir.join("node.key")).expect("an identity key");
            (node.name.clone(), node.id.clone(), node.addrs.clone(), key)
        })
        .collect();
    nodes.sort();
    nodes
}

/// The WireGuard keys and SSH host keys as the coordinator knows them.
fn keys(cli: &Cli) -> Vec<(String, Vec<String>)> {
    WORKERS
        .iter()
        .map(|name| {
            let shown = cli.mesh_json(&["node", "show", name]);
            let node = shown.get("node").unwrap_or(&shown);
            let wireguard = node["wg_key"].as_str().expect("a WireGuard key").to_owned();
            let ssh: Vec<String> = node["ssh_host_keys"]
                .as_array()
                .expect("SSH host keys")
                .iter()
                .map(|key| key.as_str().expect("a line").to_owned())
                .collect();
            assert!(!ssh.is_empty(), "no SSH host key in {shown}");
            ((*wireguard).to_owned(), ssh)
        })
        .collect()
}

fn assert_ok_lines(cli: &Cli, up: &MeshUp) {
    let status = cli
        .deploy(&["status", WORKERS[0], WORKERS[1]])
        .expect_code(0);
    let lines: Vec<&str> = status.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", status.all());
    for (line, name) in lines.iter().zip(WORKERS) {
        assert!(
            line.starts_with(&format!("[OK] {name} -> hostname: ")),
            "{line}"
        );
        let v4 = &up.node(name).addrs[0];
        assert!(
            line.contains(&format!("mesh IP: {v4}")),
            "{line} lacks {v4}"
        );
    }
}

fn assert_consoles(cli: &Cli, up: &MeshUp) {
    for name in WORKERS {
        let request = format!("journey-{name}");
        let reply = Curl::new()
            .on(cli.host())
            .args(["-i", "-H", &format!("X-Request-Id: {request}")])
            .get(up.url(&format!("/{name}/")))
            .expect("curl runs");
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(
            reply.body.contains(&up.node(name).id),
            "{name} does not show its id: {reply:?}"
        );
        assert!(
            reply.body.contains(&request),
            "{name} does not echo the request: {reply:?}"
        );
        for other in WORKERS.iter().filter(|other| **other != name) {
            assert!(
                !reply.body.contains(&up.node(other).id),
                "{name} shows {other}'s id"
            );
        }
    }
}

/// Bytes that a worker has sent once they were sealed, by its own counters of its sockets: those of
/// its UDP socket, and those of its connection to the relay.
fn sealed(up: &MeshUp, worker: &str) -> u64 {
    let text = up.metrics().expect("metrics");
    let label = format!("\"{worker}\"");
    let of = |name: &str| {
        let name = format!("mesh_agent_{name}_sent_bytes_total{{");
        let sample = text
            .lines()
            .find(|line| line.starts_with(&name) && line.contains(&label));
        assert!(sample.is_some(), "no {name} of {worker} in:\n{text}");
        metrics::count(&text, &[&name, &label])
    };
    of("udp") + of("relay")
}

/// What `action` makes a worker send, and the other one meanwhile.
fn sent_during(up: &MeshUp, worker: &str, other: &str, action: impl FnOnce()) -> (u64, u64) {
    let before = (sealed(up, worker), sealed(up, other));
    action();
    (sealed(up, worker) - before.0, sealed(up, other) - before.1)
}

#[test]
fn one_command_starts_it_all() {
    if !needs(&NEEDED) {
        return;
    }
    let lab = Lab::new().expect("lab");
    let laptop = lab.host("laptop").expect("host");
    let user = Arc::new(TestUser::create().expect("user"));
    let cli = Cli::new()
        .expect("folders")
        .on(&laptop)
        .run_by(&user)
        .expect("handed over");
    let options = MeshUpOptions {
        free_ports: false,
        ..MeshUpOptions::default()
    };
    let mut up = MeshUp::start(&cli, options.clone());
    assert!(
        up.took() < Duration::from_secs(10),
        "ready after {:?}",
        up.took()
    );

    let page = Curl::new()
        .on(Some(&laptop))
        .get("localhost:8081/")
        .expect("curl runs");
    let page = page.ok().expect("the list of workers");
    for name in WORKERS {
        assert!(page.contains(name), "{name} is not on the page:\n{page}");
    }
    assert!(!page.contains('<'), "curl gets plain text, not:\n{page}");
    let health = up.curl("/health").and_then(CurlReply::ok).expect("health");
    assert_eq!(health.trim(), "OK");
    assert_consoles(&cli, &up);
    assert_ok_lines(&cli, &up);

    let ran = cli.deploy(&["exec", "uname -n", "all"]).expect_code(0);
    for name in WORKERS {
        let line = ran.stdout.lines().find(|line| line.contains(name));
        assert!(
            line.is_some_and(|line| line.contains("laptop")),
            "{}",
            ran.all()
        );
    }
    assert_eq!(up.curl("/no-such-worker/").expect("curl runs").status, 404);

    mesh_up::is_private(&up.ready().state_dir).expect("a private state directory");
    let context = cli.contexts().path(&up.ready().context);
    mesh_up::is_private(&context).expect("a private context");

    let before = (identity(&up), keys(&cli));
    let took = up.stop().expect("Ctrl-C");
    assert!(took < Duration::from_secs(5), "Ctrl-C took {took:?}");
    up.child().assert_log_clean(&[]);

    let up = MeshUp::start(&cli, options);
    assert_eq!((identity(&up), keys(&cli)), before);
    assert_consoles(&cli, &up);
    assert_ok_lines(&cli, &up);
    up.child().assert_log_clean(&[]);
}

/// Commands and pages of one worker leave that worker sealed, once, and the other has no part in it.
fn bytes_are_the_workers_own(cli: &Cli, up: &MeshUp, worker: &str, other: &str) {
    let print = format!("head -c {MIB} /dev/zero | tr '\\0' x");
    let (own, others) = sent_during(up, worker, other, || {
        let ran = cli.deploy(&["exec", &print, worker]).expect_code(0);
        assert!(
            ran.stdout.len() as u64 >= MIB,
            "{} bytes arrived",
            ran.stdout.len()
        );
    });
    assert!(
        (MIB..MIB * 3 / 2).contains(&own),
        "{worker} sent {own} bytes for {MIB}"
    );
    assert!(
        others < MIB / 8,
        "{other} sent {others} bytes of {worker}'s"
    );

    let browser = || Curl::new().on(cli.host()).args(["-H", "Accept: text/html"]);
    let page = browser().get(up.url(&format!("/{worker}/")));
    let page = page.and_then(CurlReply::ok).expect("a page").len() as u64;
    let shown = page * PAGES;
    let (own, others) = sent_during(up, worker, other, || {
        let many = up.url(&format!("/{worker}/?[1-{PAGES}]"));
        let pages = browser().get(many).and_then(CurlReply::ok).expect("pages");
        assert!(pages.len() as u64 >= shown, "{} bytes shown", pages.len());
    });
    assert!(
        (shown..shown * 2).contains(&own),
        "{worker}'s console showed {shown} bytes, and {own} were sent"
    );
    assert!(
        others < shown / 4,
        "{other} sent {others} bytes of {worker}'s console"
    );
}

/// With one worker's packets dropped, its console, its status and its commands fail, and the
/// other's do not.
fn a_dropped_worker_fails_alone(laptop: &Host, cli: &Cli, up: &MeshUp, worker: &str, other: &str) {
    // The worker's own socket, and the relay as the way around it.
    let derp = &up.ready().relay.derp;
    let derp = derp.rsplit_once(':').expect("host and port").1;
    let wg = up.node(worker).wg_port;
    let blocked = laptop
        .block(&[
            format!("udp sport {wg}"),
            format!("udp dport {wg}"),
            format!("tcp sport {derp}"),
            format!("tcp dport {derp}"),
        ])
        .expect("rule");
    // The first one goes into a connection from before, which nobody answers on any more: that is
    // given up here sooner than at the gateway.
    let console = |name: &str| {
        let patient = Curl::new().on(cli.host()).within(Duration::from_secs(8));
        patient
            .get(up.url(&format!("/{name}/")))
            .expect("curl runs")
            .status
    };
    eventually(
        "the dropped worker's console fails",
        Duration::from_secs(40),
        || {
            let status = console(worker);
            ensure!(matches!(status, 502..=504), "status {status}");
            Ok(())
        },
    );
    assert_eq!(console(other), 200);
    let status = cli
        .deploy(&["--timeout", "5s", "status", worker, other])
        .expect_code(1);
    let lines: Vec<&str> = status.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", status.all());
    assert!(
        lines[0].starts_with(&format!("[FAIL] {worker}: ")),
        "{}",
        status.all()
    );
    assert!(
        lines[1].starts_with(&format!("[OK] {other} -> ")),
        "{}",
        status.all()
    );
    for via in ["socks", "grpc"] {
        let options = ["--via", via, "--timeout", "5s", "exec"];
        let exec = cli.deploy(&[&options[..], &["true", worker]].concat());
        assert_eq!(exec.code, Some(255), "{}", exec.all());
        let exec = cli.deploy(&[&options[..], &["uname -n", other]].concat());
        let exec = exec.expect_code(0);
        assert!(exec.stdout.contains("laptop"), "{}", exec.all());
    }
    assert_eq!(console(other), 200);
    assert!(blocked.dropped().expect("counter") > 0);

    blocked.lift().expect("rule lifted");
    eventually("the worker is back", Duration::from_secs(30), || {
        let status = console(worker);
        ensure!(status == 200, "status {status}");
        Ok(())
    });
    cli.deploy(&["exec", "true", worker]).expect_code(0);
}

#[test]
fn bytes_go_through_the_tunnel_and_a_dropped_worker_fails_alone() {
    if !needs(&NEEDED) {
        return;
    }
    let lab = Lab::new().expect("lab");
    let laptop = lab.host("laptop").expect("host");
    let cli = Cli::new().expect("folders").on(&laptop);
    let mut up = MeshUp::demo(&cli);
    assert_ok_lines(&cli, &up);
    let [one, two] = WORKERS;
    for (worker, other) in [(one, two), (two, one)] {
        bytes_are_the_workers_own(&cli, &up, worker, other);
    }
    for (worker, other) in [(one, two), (two, one)] {
        a_dropped_worker_fails_alone(&laptop, &cli, &up, worker, other);
    }
    // Also with all these connections behind it.
    let took = up.stop().expect("Ctrl-C");
    assert!(took < Duration::from_secs(5), "Ctrl-C took {took:?}");
    up.child().assert_log_clean(&[]);
}

#[test]
fn a_person_without_any_rights_needs_no_setup() {
    if !needs(&[Need::Program("curl")]) {
        return;
    }
    // On this machine itself, as whoever runs the test, beside whatever else listens here.
    let cli = Cli::new().expect("folders");
    let mut up = MeshUp::demo(&cli);
    assert_consoles(&cli, &up);
    assert_ok_lines(&cli, &up);
    assert_eq!(up.ready().schema, "mesh.up/1");
    assert!(Path::new(&up.ready().state_dir).is_dir());
    let on_loopback = |addr: &str| addr.starts_with(&Ipv4Addr::LOCALHOST.to_string());
    assert!(
        on_loopback(&up.ready().deploy_manager.grpc),
        "{:?}",
        up.ready()
    );
    let took = up.stop().expect("Ctrl-C");
    assert!(took < Duration::from_secs(5), "Ctrl-C took {took:?}");
    up.child().assert_log_clean(&[]);
}
