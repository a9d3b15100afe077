//! One command starts it all: page, console, command, and the same again after a restart.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use integration::{Cli, MeshUp, MeshUpOptions, NodeReady, mesh_up, metrics};
use mesh_testkit::{Curl, Lab, Need, TestUser, eventually, needs};

const NEEDED: [Need; 6] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("nft"),
    Need::Program("curl"),
    Need::Program("useradd"),
    Need::Program("setpriv"),
];
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];
const MIB: u32 = 1 << 20;

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

/// The WireGuard keys as the coordinator knows them.
fn wireguard_keys(cli: &Cli) -> Vec<(String, String)> {
    WORKERS
        .iter()
        .map(|name| {
            let shown = cli.mesh_json(&["node", "show", name]);
            let key = shown
                .pointer("/node/wg_key")
                .or_else(|| shown.get("wg_key"));
            let key = key.and_then(|key| key.as_str()).expect("a WireGuard key");
            ((*name).to_owned(), key.to_owned())
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

/// Overlay bytes that a worker has sent, by its own counters.
fn sent(up: &MeshUp, worker: &str) -> f64 {
    let text = up.metrics().expect("metrics");
    let total = metrics::sum(&text, &["tx_bytes", &format!("\"{worker}\"")]);
    assert!(total > 0.0, "no tx_bytes of {worker} in:\n{text}");
    total
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
    let health = up
        .curl("/health")
        .and_then(mesh_testkit::CurlReply::ok)
        .expect("health");
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

    let before = (identity(&up), wireguard_keys(&cli));
    let took = up.stop().expect("Ctrl-C");
    assert!(took < Duration::from_secs(5), "Ctrl-C took {took:?}");
    up.child().assert_log_clean(&[]);

    let up = MeshUp::start(&cli, options);
    assert_eq!((identity(&up), wireguard_keys(&cli)), before);
    assert_consoles(&cli, &up);
    assert_ok_lines(&cli, &up);
    up.child().assert_log_clean(&[]);
}

#[test]
fn bytes_go_through_the_tunnel_and_a_dropped_worker_fails_alone() {
    if !needs(&NEEDED) {
        return;
    }
    let lab = Lab::new().expect("lab");
    let laptop = lab.host("laptop").expect("host");
    let cli = Cli::new().expect("folders").on(&laptop);
    let up = MeshUp::demo(&cli);
    let [one, two] = WORKERS;
    assert_ok_lines(&cli, &up);

    // What a command prints on one worker leaves that worker through its tunnel, once.
    let (one_before, two_before) = (sent(&up, one), sent(&up, two));
    let print = format!("head -c {MIB} /dev/zero | tr '\\0' x");
    let ran = cli.deploy(&["exec", &print, one]).expect_code(0);
    assert!(
        ran.stdout.len() >= MIB as usize,
        "{} bytes arrived",
        ran.stdout.len()
    );
    let (one_moved, two_moved) = (sent(&up, one) - one_before, sent(&up, two) - two_before);
    let mib = f64::from(MIB);
    assert!(
        (mib..mib * 1.5).contains(&one_moved),
        "{one} sent {one_moved} bytes for {mib}"
    );
    assert!(
        two_moved < mib / 4.0,
        "{two} sent {two_moved} bytes of {one}'s"
    );

    // The worker's own socket, and the relay as the way around it.
    let derp = up
        .ready()
        .relay
        .derp
        .rsplit_once(':')
        .expect("host and port")
        .1
        .to_owned();
    let wg = up.node(one).wg_port;
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
            let status = console(one);
            ensure!(matches!(status, 502..=504), "status {status}");
            Ok(())
        },
    );
    let status = cli
        .deploy(&["--timeout", "8s", "status", one, two])
        .expect_code(1);
    let lines: Vec<&str> = status.stdout.lines().collect();
    assert!(
        lines[0].starts_with(&format!("[FAIL] {one}: ")),
        "{}",
        status.all()
    );
    assert!(
        lines[1].starts_with(&format!("[OK] {two} -> ")),
        "{}",
        status.all()
    );
    let exec = cli.deploy(&["--timeout", "8s", "exec", "true", one]);
    assert_eq!(exec.code, Some(255), "{}", exec.all());
    cli.deploy(&["exec", "true", two]).expect_code(0);
    assert_eq!(console(two), 200);
    assert!(blocked.dropped().expect("counter") > 0);

    blocked.lift().expect("rule lifted");
    eventually("the worker is back", Duration::from_secs(30), || {
        let status = console(one);
        ensure!(status == 200, "status {status}");
        Ok(())
    });
    cli.deploy(&["exec", "true", one]).expect_code(0);
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
