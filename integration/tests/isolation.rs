//! Two networks: nothing crosses from one to the other.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use integration::derp::{DerpClient, relay_of};
use integration::field::overlay_addr;
use integration::journeys::transfers::{through, wait_for_service};
use integration::overlay_echo::overlay_v4;
use integration::raw::{Applicant, RawNode};
use integration::socks::{Reply, Wanted, connect};
use integration::wireguard::RawTunnel;
use integration::{Field, Layout, Server};
use mesh_testkit::{Need, eventually, needs};
use mesh_types::{JoinToken, WgPublicKey};
use serde_json::Value;

const NEEDED: [Need; 3] = [Need::Root, Need::Program("ip"), Need::Program("curl")];
const SOON: Duration = Duration::from_secs(30);
/// How long somebody who must not be heard is given: several times what an answer takes.
const SILENCE: Duration = Duration::from_millis(600);
/// A node of this name is in both networks.
const TWIN: &str = "twin";

/// One network, what is in it, and how it is reached.
#[derive(Debug)]
struct Side {
    network: &'static str,
    /// The host of its [`TWIN`], which goes by this name in the field.
    twin: &'static str,
    /// A node whose name is in no other network, and its host.
    only: &'static str,
    server: Server,
    /// The ids of twin and the other one.
    ids: [String; 2],
    addr: Ipv4Addr,
}

impl Side {
    fn join(
        field: &mut Field,
        network: &'static str,
        twin: &'static str,
        only: &'static str,
    ) -> Self {
        let host = field.prepare_host(twin).expect("host");
        let server = Server::start(Some(&host), twin, None).expect("server");
        field
            .add_worker_named(twin, TWIN, network)
            .publish("web", server.port());
        field.add_worker(only, network, &[]);
        let id = |worker: &str| {
            let status = field.worker(worker).status().expect("a status");
            let id = status["enrolled"]["node"].as_str();
            id.unwrap_or_else(|| panic!("no id in {status}")).to_owned()
        };
        Self {
            ids: [id(twin), id(only)],
            addr: overlay_addr(field.operator(), network, TWIN),
            network,
            twin,
            only,
            server,
        }
    }

    /// The console's path of one of its nodes at the gateway.
    fn console(&self, node: &str) -> String {
        match self.network {
            "default" => format!("/{node}/"),
            other => format!("/n/{other}/{node}/"),
        }
    }

    fn connect(&self, field: &Field, wanted: &Wanted) -> Reply {
        let (reply, _) = connect(field.socks(self.network), wanted).expect("the proxy answers");
        reply
    }
}

/// Tries both at the same time: who is inside gets through, and who is outside has not, in the same
/// second.
fn in_the_same_second(what: &str, inside: impl FnOnce() + Send, outside: impl FnOnce() + Send) {
    let (passed, failed) = thread::scope(|scope| {
        let passed = scope.spawn(move || {
            inside();
            Instant::now()
        });
        outside();
        let failed = Instant::now();
        let passed = passed
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (passed, failed)
    });
    let apart = if passed > failed {
        passed - failed
    } else {
        failed - passed
    };
    assert!(
        apart < Duration::from_secs(1),
        "{what}: inside and outside were {apart:?} apart"
    );
}

#[test]
fn each_network_answers_inside_and_is_silent_outside() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::with_networks(Layout::Spread, None, &["other"]);
    let sides = [
        Side::join(&mut field, "default", "twin-default", "only-default"),
        Side::join(&mut field, "other", "twin-other", "only-other"),
    ];
    for side in &sides {
        for node in [TWIN, side.only] {
            field.wait_for_console(&side.console(node), SOON);
        }
        // The deploy-manager hears of a worker's user with the worker's report.
        let words = ["--network", side.network, "--via", "grpc", "exec", "true"];
        eventually("commands run", SOON, || {
            let ran = field
                .operator()
                .deploy(&[&words[..], &[TWIN, side.only]].concat());
            ran.success()
        });
        let port = side.server.port();
        wait_for_service(&field, side.network, TWIN, side.twin, port);
    }
    for (own, other) in [(&sides[0], &sides[1]), (&sides[1], &sides[0])] {
        socks_stays_inside(&field, own, other);
        ssh_stays_inside(&field, own, other);
        gateway_stays_inside(&field, own, other);
        each_list_shows_only_its_own(&field, own, other);
    }
    let addrs: BTreeSet<_> = sides.iter().map(|side| side.addr).collect();
    assert_eq!(addrs.len(), 2, "overlay addresses are unique over all");
    raw_packets_stay_in_their_network(&field, &sides);
    field.assert_logs_clean(&[]);
}

fn socks_stays_inside(field: &Field, own: &Side, other: &Side) {
    let ports = [own.server.port(), other.server.port()];
    let target = Wanted::Addr((other.addr, ports[1]).into());
    let edge = field.host("edge");
    let inside = || {
        edge.enter(|| assert_eq!(other.connect(field, &target), Reply::GRANTED, "inside"));
    };
    let outside = || {
        edge.enter(|| {
            for port in [ports[1], 22, 9090] {
                let wanted = Wanted::Addr((other.addr, port).into());
                assert_eq!(own.connect(field, &wanted), Reply::NOT_ALLOWED);
            }
            for name in [
                format!("{TWIN}.{}", other.network),
                format!("{TWIN}.{}.mesh.local", other.network),
                other.only.to_owned(),
            ] {
                let wanted = Wanted::Name(name, ports[1]);
                let reply = own.connect(field, &wanted);
                assert_eq!(reply, Reply::HOST_UNREACHABLE, "{wanted:?}");
            }
        });
    };
    in_the_same_second("SOCKS5", inside, outside);
    // The same name means each network's own node.
    let url = format!("http://{TWIN}:{}/", ports[0]);
    let body = through(field, own.network)
        .get(url)
        .expect("curl runs")
        .ok();
    assert_eq!(
        body.expect("the service"),
        format!("hello from {}: /\n", own.twin)
    );
}

fn ssh_stays_inside(field: &Field, own: &Side, other: &Side) {
    let addr = other.addr.to_string();
    for via in ["socks", "grpc"] {
        let exec = |network: &str, target: &str| {
            let words = ["--network", network, "--via", via, "exec", "uname -n"];
            field.operator().deploy(&[&words[..], &[target]].concat())
        };
        for (target, host) in [(other.only, other.only), (addr.as_str(), other.twin)] {
            let inside = || {
                let ran = exec(other.network, target).expect_code(0);
                assert!(ran.stdout.contains(host), "{}", ran.all());
            };
            let outside = || {
                let refused = exec(own.network, target);
                assert_eq!(refused.code, Some(255), "{}", refused.all());
                assert!(!refused.stdout.contains(host), "{}", refused.all());
            };
            in_the_same_second("SSH", inside, outside);
        }
    }
    let all = ["--network", own.network, "exec", "uname -n", "all"];
    let all = field.operator().deploy(&all).expect_code(0);
    for (name, is_there) in [
        (own.twin, true),
        (own.only, true),
        (other.twin, false),
        (other.only, false),
    ] {
        assert_eq!(all.stdout.contains(name), is_there, "{}", all.all());
    }
}

fn gateway_stays_inside(field: &Field, own: &Side, other: &Side) {
    let inside = || {
        let page = field.curl(&other.console(other.only)).expect("curl runs");
        assert_eq!(page.status, 200, "{page:?}");
        assert!(page.body.contains(&other.ids[1]), "{page:?}");
    };
    let outside = || {
        let page = field.curl(&own.console(other.only)).expect("curl runs");
        assert_eq!(page.status, 404, "{page:?}");
    };
    in_the_same_second("the gateway", inside, outside);
    let page = field.curl(&own.console(TWIN)).expect("curl runs");
    assert_eq!(page.status, 200, "{page:?}");
    assert!(page.body.contains(&own.ids[0]), "{page:?}");
    for id in &other.ids {
        assert!(!page.body.contains(id), "{page:?}");
    }
}

/// The node list, the gateway's, the hosts for plain ssh, and what the workers themselves see.
fn each_list_shows_only_its_own(field: &Field, own: &Side, other: &Side) {
    let nodes = |list: &Value| -> BTreeSet<(String, String)> {
        let nodes = list["nodes"].as_array().expect("nodes");
        let of = |node: &Value, key: &str| node[key].as_str().expect("text").to_owned();
        nodes
            .iter()
            .filter(|node| node["role"].as_str().is_none_or(|role| role == "worker"))
            .filter(|node| node["network"] == own.network)
            .map(|node| {
                let id = node.get("id").or_else(|| node.get("node"));
                let id = id.and_then(Value::as_str).expect("an id");
                (of(node, "name"), id.to_owned())
            })
            .collect()
    };
    let expected: BTreeSet<(String, String)> = [TWIN, own.only]
        .map(str::to_owned)
        .into_iter()
        .zip(own.ids.clone())
        .collect();

    let cli = field.operator();
    let listed = cli.mesh_json(&["node", "list", "--network", own.network]);
    assert_eq!(nodes(&listed), expected);
    for id in &other.ids {
        assert!(!listed.to_string().contains(id), "{listed}");
    }

    let page = field
        .client_curl()
        .args(["-H", "Accept: application/json"])
        .get(field.url("/"))
        .expect("curl runs");
    let page: Value = serde_json::from_str(&page.ok().expect("the list")).expect("JSON");
    assert_eq!(nodes(&page), expected);
    for node in page["nodes"].as_array().expect("nodes") {
        if own.ids.iter().any(|id| node["node"] == **id) {
            let name = node["name"].as_str().expect("a name");
            assert_eq!(node["network"], own.network, "{node}");
            assert_eq!(node["url"], own.console(name), "{node}");
        }
    }

    let config = cli
        .mesh_ok(&["ssh-config", "--network", own.network])
        .stdout;
    let hosts: BTreeSet<&str> = config
        .lines()
        .filter_map(|line| line.strip_prefix("Host "))
        .flat_map(str::split_whitespace)
        .map(|host| host.split('.').next().unwrap_or(host))
        .filter(|host| [TWIN, own.only, other.only].contains(host))
        .collect();
    assert_eq!(hosts, BTreeSet::from([TWIN, own.only]), "{config}");

    for worker in [own.twin, own.only] {
        let status = field.worker(worker).status().expect("a status").to_string();
        for id in &own.ids {
            assert!(status.contains(id), "{worker} does not see {id}: {status}");
        }
        for id in &other.ids {
            assert!(!status.contains(id), "{worker} sees {id}: {status}");
        }
    }
}

/// Nodes made by hand, one of each network, that speak to sockets and to the relay as no agent does.
fn raw_packets_stay_in_their_network(field: &Field, sides: &[Side; 2]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let tokens = ["default", "default", "other"].map(|network| {
        let text = field.operator().token(&["--network", network]);
        text.parse::<JoinToken>().expect("a join token")
    });
    field.host("edge").enter(|| {
        let nodes: Vec<RawNode> = runtime.block_on(async {
            let mut nodes = Vec::new();
            for (n, token) in tokens.iter().enumerate() {
                let applicant = Applicant::new(&format!("raw-{n}")).expect("keys");
                nodes.push(applicant.join(token).await.expect("joins"));
            }
            nodes
        });
        for (node, own, other) in [
            (&nodes[0], &sides[0], &sides[1]),
            (&nodes[2], &sides[1], &sides[0]),
        ] {
            handshakes_stay_inside(field, node, own, other);
        }
        runtime.block_on(relay_frames_stay_inside(field, &nodes));
    });
}

/// A WireGuard initiation sent straight to a node's UDP socket, with that node's public key: the
/// one of the same network answers it and takes a packet, the other one does not say a word.
fn handshakes_stay_inside(field: &Field, node: &RawNode, own: &Side, other: &Side) {
    let target = |side: &Side| {
        let status = field.worker(side.twin).status().expect("a status");
        let port = status["wg_port"]
            .as_u64()
            .and_then(|port| port.try_into().ok());
        let at = SocketAddr::from((field.addr(side.twin), port.expect("a port")));
        let args = [TWIN, "--network", side.network];
        let shown = field.operator().node_shown(&args);
        let key = shown["wg_key"].as_str();
        let key: WgPublicKey = key.expect("a key").parse().expect("a key");
        (at, key)
    };
    let dropped = |side: &Side, reason: &str| {
        let status = field.worker(side.twin).status().expect("a status");
        status["drops"][reason].as_u64().unwrap_or(0)
    };
    let ((own_at, own_key), (other_at, other_key)) = (target(own), target(other));
    assert_ne!(own_key, other_key);
    let before = [dropped(own, "unknown_peer"), dropped(other, "unknown_peer")];
    let edge = field.host("edge");
    let applicant = &node.applicant;
    let inside = || {
        edge.enter(|| {
            let mut tunnel = RawTunnel::new(applicant, &own_key);
            let established = tunnel.handshake(own_at, SOON).expect("a proper answer");
            assert!(established, "{} does not answer its own network", own.twin);
        });
    };
    let outside = || {
        edge.enter(|| {
            let mut tunnel = RawTunnel::new(applicant, &other_key);
            let established = tunnel.handshake(other_at, SILENCE).expect("silence");
            assert!(!established, "{} answers {}", other.twin, own.network);
        });
    };
    in_the_same_second("raw WireGuard", inside, outside);
    // They did arrive, and were dropped for this reason.
    assert_eq!(dropped(own, "unknown_peer"), before[0]);
    assert!(dropped(other, "unknown_peer") > before[1]);
    let addr = overlay_v4(node).expect("an address").to_string();
    for (side, is_there) in [(own, true), (other, false)] {
        let status = field.worker(side.twin).status().expect("a status");
        let peers = status["peers"].as_array().expect("peers");
        let session = peers
            .iter()
            .filter(|peer| peer["addrs"].to_string().contains(&addr))
            .any(|peer| !peer["last_handshake"].is_null());
        assert_eq!(session, is_there, "a session at {}: {status}", side.twin);
    }
}

/// Frames for the relay, from one node to one of its own network and to one of another.
async fn relay_frames_stay_inside(field: &Field, nodes: &[RawNode]) {
    let context = field.operator().context().expect("a context");
    let relay = relay_of(&context).await.expect("a relay");
    let mut clients = Vec::new();
    for node in nodes {
        let client = DerpClient::connect(node, &relay, SOON).await;
        clients.push(client.expect("admitted"));
    }
    let keys: Vec<WgPublicKey> = nodes
        .iter()
        .map(|node| WgPublicKey::from_bytes(node.applicant.wg_public()))
        .collect();
    let [mut sender, mut inside, mut outside] =
        <[DerpClient; 3]>::try_from(clients).expect("three clients");
    // The one across goes first, so that it has had its time when the other arrives.
    sender.send(&keys[2], b"across").await.expect("sent");
    sender.send(&keys[1], b"within").await.expect("sent");
    let heard = inside.receive(SOON).await.expect("received");
    assert_eq!(heard, Some((keys[0], b"within".to_vec())));
    let heard = outside.receive(SILENCE).await.expect("still connected");
    assert_eq!(heard, None, "a packet crossed from one network to another");
}
