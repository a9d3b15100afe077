//! One command starts it all: page, console, command, and the same again after a restart.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use integration::journeys::fleet::{Reached, Target};
use integration::{Cli, MeshUp, MeshUpOptions, NodeReady, mesh_up, metrics};
use mesh_testkit::{Curl, CurlReply, Lab, Need, TestUser, eventually, needs};

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
/// Bytes of a header in each of these requests.
const PADDING: usize = 2000;

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
            let node = cli.node_shown(&[name]);
            let wireguard = node["wg_key"].as_str().expect("a WireGuard key").to_owned();
            let ssh: Vec<String> = node["ssh_host_keys"]
                .as_array()
                .expect("SSH host keys")
                .iter()
                .map(|key| key.as_str().expect("a line").to_owned())
                .collect();
            assert!(!ssh.is_empty(), "no SSH host key in {node}");
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
    let nodes = WORKERS.map(|name| (name.to_owned(), up.node(name).id.clone()));
    reached(cli, up, |mesh| mesh.assert_consoles(&nodes));
}

fn reached(cli: &Cli, up: &MeshUp, action: impl FnOnce(&Reached<'_>)) {
    action(&Reached {
        cli,
        curl: &|| Curl::new().on(cli.host()),
        url: &|path| up.url(path),
    });
}

/// Bytes that a worker has sent and received.
#[derive(Debug, Clone, Copy)]
struct Counted {
    sent: u64,
    received: u64,
}

impl Counted {
    fn since(self, before: Self) -> Self {
        Self {
            sent: self.sent - before.sent,
            received: self.received - before.received,
        }
    }
}

/// Sealed bytes, by the worker's own counters of its sockets: those of its UDP socket, and those of
/// its connection to the relay.
fn sealed(up: &MeshUp, worker: &str) -> Counted {
    let text = up.metrics().expect("metrics");
    let label = format!("\"{worker}\"");
    let of = |name: &str| {
        let name = format!("mesh_agent_{name}_bytes_total{{");
        let sample = text
            .lines()
            .find(|line| line.starts_with(&name) && line.contains(&label));
        assert!(sample.is_some(), "no {name} of {worker} in:\n{text}");
        metrics::count(&text, &[&name, &label])
    };
    Counted {
        sent: of("udp_sent") + of("relay_sent"),
        received: of("udp_received") + of("relay_received"),
    }
}

/// Bytes inside the tunnel to and from the peer of that role, as the worker's status tells them, a
/// tenth of a second late.
fn tunnelled(cli: &Cli, up: &MeshUp, worker: &str, role: &str) -> Counted {
    let state = format!("state_dir={}", up.node(worker).state_dir.display());
    let ran = cli
        .product("worker-agent")
        .args(["status", "--json", "--set", &state])
        .run(Duration::from_secs(20))
        .expect("runs")
        .expect_code(0);
    let status: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let peers = status["peers"].as_array().expect("peers");
    let peer = peers.iter().find(|peer| peer["role"] == role);
    let peer = peer.unwrap_or_else(|| panic!("no {role} in {status}"));
    Counted {
        sent: peer["tx_bytes"].as_u64().expect("a counter"),
        received: peer["rx_bytes"].as_u64().expect("a counter"),
    }
}

/// What an action moved, as one worker counts it.
#[derive(Debug)]
struct Moved {
    /// Sealed, by the worker itself.
    own: Counted,
    /// Sealed, by the other one meanwhile.
    other: Counted,
    /// In the worker's tunnel to the peer that uses it.
    tunnel: Counted,
    /// In the same of the other one.
    other_tunnel: Counted,
}

/// What `action` moves, whose user is the node of that role, as soon as the worker's status tells
/// of at least `least` in its tunnel.
fn moved_by(
    (cli, up): (&Cli, &MeshUp),
    [worker, other]: [&str; 2],
    (role, least): (&str, Counted),
    action: impl FnOnce(),
) -> Moved {
    let tunnel = || tunnelled(cli, up, worker, role);
    let all = || Moved {
        own: sealed(up, worker),
        other: sealed(up, other),
        tunnel: tunnel(),
        other_tunnel: tunnelled(cli, up, other, role),
    };
    let before = all();
    action();
    eventually("the status tells of it", Duration::from_secs(5), || {
        let told = tunnel().since(before.tunnel);
        let all = told.sent >= least.sent && told.received >= least.received;
        anyhow::ensure!(all, "{told:?}, and at least {least:?} moved");
        Ok(())
    });
    let after = all();
    Moved {
        own: after.own.since(before.own),
        other: after.other.since(before.other),
        tunnel: after.tunnel.since(before.tunnel),
        other_tunnel: after.other_tunnel.since(before.other_tunnel),
    }
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
fn bytes_are_the_workers_own(cli: &Cli, up: &MeshUp, workers: [&str; 2]) {
    let [worker, _] = workers;
    let print = format!("head -c {MIB} /dev/zero | tr '\\0' x");
    let least = Counted {
        sent: MIB,
        received: 1,
    };
    let moved = moved_by((cli, up), workers, ("deployer", least), || {
        let ran = cli.deploy(&["exec", &print, worker]).expect_code(0);
        let arrived = ran.stdout.len() as u64;
        assert!(arrived >= MIB, "{arrived} bytes arrived");
    });
    for sent in [moved.own.sent, moved.tunnel.sent] {
        assert!((MIB..MIB * 3 / 2).contains(&sent), "{worker}: {moved:?}");
    }
    assert!(moved.own.sent > moved.tunnel.sent, "sealed: {moved:?}");
    assert!(moved.own.received > 0, "{worker}: {moved:?}");
    assert!(moved.tunnel.received > 0, "{worker}: {moved:?}");
    assert!(moved.other.sent < MIB / 8, "{worker}: {moved:?}");
    assert!(moved.other_tunnel.sent < MIB / 8, "{worker}: {moved:?}");

    // Pages one way, and as much in the requests' headers the other way.
    let padding = format!("X-Padding: {}", "x".repeat(PADDING));
    let browser = || {
        let curl = Curl::new().on(cli.host());
        curl.args(["-H", "Accept: text/html", "-H", &padding])
    };
    let page = browser().get(up.url(&format!("/{worker}/")));
    let page = page.and_then(CurlReply::ok).expect("a page").len() as u64;
    let (shown, asked) = (page * PAGES, PADDING as u64 * PAGES);
    let least = Counted {
        sent: shown,
        received: asked,
    };
    let moved = moved_by((cli, up), workers, ("gateway", least), || {
        let many = up.url(&format!("/{worker}/?[1-{PAGES}]"));
        let pages = browser().get(many).and_then(CurlReply::ok).expect("pages");
        assert!(pages.len() as u64 >= shown, "{} bytes shown", pages.len());
    });
    for counted in [moved.own, moved.tunnel] {
        assert!(
            (shown..shown * 2).contains(&counted.sent)
                && (asked..asked * 2).contains(&counted.received),
            "{worker}'s console showed {shown} bytes and was asked {asked}: {moved:?}"
        );
    }
    let others = [moved.other.sent, moved.other.received];
    assert!(
        others.into_iter().all(|bytes| bytes < shown / 4),
        "{worker}: {moved:?}"
    );
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
    for workers in [[one, two], [two, one]] {
        bytes_are_the_workers_own(&cli, &up, workers);
    }
    let derp = up.ready().relay.derp.rsplit_once(':');
    let derp_port = derp.and_then(|(_, port)| port.parse().ok());
    for (name, other) in [(one, two), (two, one)] {
        let target = Target {
            name,
            host: &laptop,
            wg_port: up.node(name).wg_port,
            derp_port: derp_port.expect("the relay's port"),
        };
        reached(&cli, &up, |mesh| mesh.assert_fails_alone(target, other));
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
