//! Every port of every program: any free one, a given one, one that somebody else has.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::ensure;
use integration::{Agent, Cli, MeshUp, MeshUpOptions};
use mesh_testkit::{Child, Finished, Spec, eventually, free_tcp_port, free_udp_port};

const SOON: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
}

use Kind::{Tcp, Udp};

impl Kind {
    fn free(self) -> u16 {
        match self {
            Tcp => free_tcp_port(),
            Udp => free_udp_port(),
        }
    }
}

/// A free TCP port that nobody is given who asks for any, nor anybody who connects: it is still
/// free when a program that had it has stopped.
fn quiet_tcp_port() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("range");
    let lowest = range.split_whitespace().next().expect("two numbers");
    let lowest: u16 = lowest.parse().expect("a port");
    // Others who look for one at the same time begin elsewhere.
    let ports = 10_000..lowest;
    let skipped = std::process::id() as usize * 97 % ports.len();
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let found = ports.cycle().skip(skipped).take(1000).find(is_free);
    found.expect("one of a thousand is free")
}

/// A port that somebody else has, until it is dropped.
struct Taken {
    port: u16,
    _tcp: Option<TcpListener>,
    _udp: Option<UdpSocket>,
}

impl Taken {
    fn new(kind: Kind) -> Self {
        let any = (Ipv4Addr::LOCALHOST, 0);
        let tcp = (kind == Tcp).then(|| TcpListener::bind(any).expect("binds"));
        let udp = (kind == Udp).then(|| UdpSocket::bind(any).expect("binds"));
        let bound = match (&tcp, &udp) {
            (Some(tcp), _) => tcp.local_addr(),
            (_, Some(udp)) => udp.local_addr(),
            _ => unreachable!("one of them"),
        };
        Self {
            port: bound.expect("bound").port(),
            _tcp: tcp,
            _udp: udp,
        }
    }
}

/// The ports that a process has: TCP that it listens on, and UDP.
fn ports_of(pid: i32) -> anyhow::Result<BTreeSet<(bool, u16)>> {
    let mut sockets = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may be closed by now.
        let Ok(target) = std::fs::read_link(entry?.path()) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        let inode = target.strip_prefix("socket:[");
        sockets.extend(inode.map(|inode| inode.trim_end_matches(']').to_owned()));
    }
    let mut ports = BTreeSet::new();
    for (table, is_tcp) in [
        ("tcp", true),
        ("tcp6", true),
        ("udp", false),
        ("udp6", false),
    ] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
        for line in text.lines().skip(1) {
            // proc(5): sl, local address, remote address, state, …, inode.
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) =
                (words.get(1), words.get(3), words.get(9))
            else {
                continue;
            };
            let waits = !is_tcp || *state == "0A";
            if waits
                && sockets.contains(*inode)
                && let Some((_, port)) = local.rsplit_once(':')
            {
                ports.insert((is_tcp, u16::from_str_radix(port, 16)?));
            }
        }
    }
    Ok(ports)
}

fn has(child: &Child, kind: Kind, port: u16) -> anyhow::Result<()> {
    let ports = ports_of(child.pid())?;
    ensure!(
        ports.contains(&(kind == Tcp, port)),
        "{port} is not among {ports:?}"
    );
    Ok(())
}

#[track_caller]
fn assert_says(ran: &Finished, parts: &[&str]) {
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    assert!(!ran.all().contains("panicked"), "{}", ran.all());
    // Not in what was typed: only what it complained about counts.
    let last = ran.stderr.lines().rev().find(|line| !line.is_empty());
    let last = last.unwrap_or_default();
    for part in parts {
        assert!(
            last.contains(part),
            "{part:?} is not in {last:?} of {}",
            ran.all()
        );
    }
}

const UP: [(&str, Kind); 8] = [
    ("--coordinator-port", Tcp),
    ("--gateway-port", Tcp),
    ("--deploy-port", Tcp),
    ("--socks-port", Tcp),
    ("--relay-port", Tcp),
    ("--stun-port", Udp),
    ("--wg-port", Udp),
    ("--admin-port", Tcp),
];

#[test]
fn mesh_up_takes_the_ports_it_is_given() {
    let cli = Cli::new().expect("folders");
    let ports = UP.map(|(flag, kind)| (flag, kind, kind.free()));
    let args = ports
        .iter()
        .flat_map(|(flag, _, port)| [(*flag).to_owned(), port.to_string()])
        .collect();
    let mut up = MeshUp::start(
        &cli,
        MeshUpOptions {
            demo: false,
            args,
            ..MeshUpOptions::default()
        },
    );
    for (flag, kind, port) in ports {
        has(up.child(), kind, port).expect(flag);
    }
    let ready = up.ready().clone();
    let port = |addr: &str| addr.parse::<SocketAddr>().expect(addr).port();
    let said = [
        port(&ready.coordinator.addr),
        up.gateway_port(),
        port(&ready.deploy_manager.grpc),
        up.socks("default").port(),
        port(&ready.relay.derp),
        port(&ready.relay.stun),
        up.nodes_port("traffic-gateway"),
        ready.admin.port(),
    ];
    assert_eq!(said, ports.map(|(_, _, port)| port));
    up.stop().expect("stopped");

    // And any free ones, all at once; none of them is one of the usual ports.
    let up = MeshUp::start(
        &cli,
        MeshUpOptions {
            demo: false,
            ..MeshUpOptions::default()
        },
    );
    let found = ports_of(up.child().pid()).expect("ports");
    for (usual, is_tcp) in [
        (8080, true),
        (8081, true),
        (8082, true),
        (1080, true),
        (8443, true),
        (3478, false),
        (51820, false),
        (9464, true),
    ] {
        assert!(!found.contains(&(is_tcp, usual)), "{usual} in {found:?}");
    }
    assert!(found.iter().all(|(_, port)| *port != 0));
    assert!(found.len() >= UP.len(), "{found:?}");
}

fn port_of(up: &MeshUp) -> u16 {
    let addr = up.ready().coordinator.addr.parse::<SocketAddr>();
    addr.expect("an address").port()
}

#[test]
fn a_coordinator_on_any_free_port_is_found_again_after_a_restart() {
    let cli = Cli::new().expect("folders");
    let start = |args: &[&str]| {
        let options = MeshUpOptions {
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            ..MeshUpOptions::default()
        };
        MeshUp::start(&cli, options)
    };
    let online = |names: &[&str]| {
        eventually(&format!("{names:?} are online"), SOON, || {
            let listed = cli.mesh_json(&["node", "list"]);
            let nodes = listed["nodes"].as_array().expect("nodes");
            let is_online = |name: &&str| {
                let mut nodes = nodes.iter();
                nodes.any(|node| node["name"] == *name && node["state"] == "online")
            };
            ensure!(names.iter().all(is_online), "{listed}");
            Ok(())
        });
    };
    // Any free one, which is kept in mind.
    let mut up = start(&[]);
    let chosen = port_of(&up);
    assert_ne!(chosen, 0);
    let kept = || {
        let text = std::fs::read_to_string(cli.work("state").join("coordinator.port"));
        text.expect("kept").trim().parse::<u16>().expect("a port")
    };
    assert_eq!(kept(), chosen);
    up.stop().expect("stopped");

    // From here on one that nobody takes by chance while the coordinator is stopped.
    let port = quiet_tcp_port();
    let mut up = start(&["--coordinator-port", &port.to_string()]);
    assert_eq!((port_of(&up), kept()), (port, port));
    let mut outside = Agent::new(&cli, "outside").joined(&cli, "default");
    outside.stop();
    up.stop().expect("stopped");

    // Nodes of the process and of other machines look for it where it was.
    let mut up = start(&[]);
    assert_eq!(port_of(&up), port);
    outside.start();
    online(&["outside", "worker-node-1"]);
    up.child().assert_log_clean(&[]);
    outside.stop();
    up.stop().expect("stopped");

    // When somebody else has that port, that is said, with the flag that chooses another.
    let somebody = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("free again");
    let mut args = vec!["up", "--demo", "--state-dir"];
    let state = cli.work("state").display().to_string();
    args.push(&state);
    for (flag, _) in UP {
        args.extend([flag, "0"]);
    }
    let said = &[
        &*port.to_string(),
        "nodes that have joined",
        "--coordinator-port",
    ];
    assert_says(&cli.mesh(&args), said);

    // And then the nodes of the process follow.
    let other = quiet_tcp_port();
    let up = start(&["--coordinator-port", &other.to_string()]);
    assert_eq!(port_of(&up), other);
    online(&[
        "traffic-gateway",
        "deploy-manager",
        "worker-node-1",
        "worker-node-2",
    ]);
    up.child().assert_log_clean(&[]);
    drop(somebody);
}

#[test]
fn a_port_of_mesh_up_that_is_taken_is_named_with_its_flag() {
    let cli = Cli::new().expect("folders");
    for (flag, kind) in UP {
        let taken = Taken::new(kind);
        let port = taken.port.to_string();
        let mut args = vec!["up", "--state-dir"];
        let state = cli.work("state").display().to_string();
        args.push(&state);
        for (other, _) in UP {
            args.extend([other, if other == flag { port.as_str() } else { "0" }]);
        }
        assert_says(&cli.mesh(&args), &[&port, flag]);
    }
}

/// A service as a program of its own: how it starts, and its ports by what sets each.
struct Service {
    program: &'static str,
    verb: &'static [&'static str],
    role: Option<&'static str>,
    /// How it is set, and whether that is a flag; what people are told to use instead.
    ports: &'static [(&'static str, Kind, &'static str)],
}

const SERVICES: [Service; 5] = [
    Service {
        program: "coordinator",
        verb: &[],
        role: None,
        ports: &[
            ("server.listen", Tcp, "--listen"),
            ("admin.listen", Tcp, "admin.listen"),
        ],
    },
    Service {
        program: "relay",
        verb: &[],
        role: Some("relay"),
        ports: &[
            ("server.listen", Tcp, "--listen"),
            ("stun.listen", Udp, "--stun-listen"),
            ("admin.listen", Tcp, "admin.listen"),
        ],
    },
    Service {
        program: "traffic-gateway",
        verb: &[],
        role: Some("gateway"),
        ports: &[
            ("server.listen", Tcp, "--listen"),
            ("wireguard.listen", Udp, "wireguard.listen"),
            ("admin.listen", Tcp, "admin.listen"),
        ],
    },
    Service {
        program: "deploy-manager",
        verb: &[],
        role: Some("deployer"),
        ports: &[
            ("server.listen", Tcp, "server.listen"),
            ("socks.listen", Tcp, "socks.listen"),
            ("wireguard.listen", Udp, "wireguard.listen"),
            ("admin.listen", Tcp, "admin.listen"),
        ],
    },
    Service {
        program: "worker-agent",
        verb: &["run"],
        role: Some("worker"),
        ports: &[
            ("wireguard.listen", Udp, "wireguard.listen"),
            ("admin.listen", Tcp, "admin.listen"),
        ],
    },
];

impl Service {
    fn spec(&self, cli: &Cli, ports: &[u16]) -> Spec {
        let state = cli.work(&format!("state-{}", self.program));
        let mut spec = cli
            .product(self.program)
            .args(self.verb)
            .arg("--set")
            .arg(format!("state_dir={}", state.display()));
        let token = cli.work(&format!("{}.token", self.program));
        if self.role.is_some() {
            spec = spec.arg("--token-file").arg(token);
        }
        for ((key, ..), port) in self.ports.iter().zip(ports) {
            spec = spec.args(["--set", &format!("{key}=127.0.0.1:{port}")]);
        }
        spec
    }

    fn started(&self, cli: &Cli, ports: &[u16]) -> Child {
        let mut child = self.spec(cli, ports).spawn().expect("starts");
        let name = self.program;
        eventually(&format!("{name} has its ports"), SOON, || {
            assert!(child.is_running(), "{name} ended: {}", child.log().tail(20));
            let found = ports_of(child.pid())?;
            for ((key, kind, _), port) in self.ports.iter().zip(ports) {
                if *port != 0 {
                    let wanted = (*kind == Tcp, *port);
                    ensure!(found.contains(&wanted), "{key}: {port} not in {found:?}");
                }
            }
            let count = |kind: Kind, all: &[(&str, Kind, &str)]| {
                all.iter().filter(|(_, other, _)| *other == kind).count()
            };
            for kind in [Tcp, Udp] {
                let there = found
                    .iter()
                    .filter(|(tcp, _)| *tcp == (kind == Tcp))
                    .count();
                ensure!(there >= count(kind, self.ports), "{kind:?}: {found:?}");
            }
            Ok(())
        });
        child
    }
}

#[test]
fn each_service_takes_the_ports_it_is_given_and_names_one_that_is_taken() {
    let cli = Cli::new().expect("folders");
    let _up = MeshUp::start(
        &cli,
        MeshUpOptions {
            demo: false,
            ..MeshUpOptions::default()
        },
    );
    for service in &SERVICES {
        if let Some(role) = service.role {
            let token = cli.token(&["--role", role]);
            cli.file(&format!("{}.token", service.program), &token)
                .expect("file");
        }
        let zeros = vec![0; service.ports.len()];
        let given: Vec<u16> = service
            .ports
            .iter()
            .map(|(_, kind, _)| kind.free())
            .collect();
        for ports in [&given, &zeros] {
            let mut child = service.started(&cli, ports);
            child.terminate().expect("signalled");
            child.finish(SOON).expect("ends").expect_code(0);
            child.assert_log_clean(&[]);
        }
        for (at, (key, kind, told)) in service.ports.iter().enumerate() {
            let taken = Taken::new(*kind);
            let mut ports = zeros.clone();
            ports[at] = taken.port;
            let ran = service.spec(&cli, &ports).run(SOON);
            let ran = ran.unwrap_or_else(|error| panic!("{} {key}: {error:#}", service.program));
            assert_says(&ran, &[&taken.port.to_string(), told]);
        }
    }
}
