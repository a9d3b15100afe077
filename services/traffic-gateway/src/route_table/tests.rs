//! Routes of two networks, asked in every way.

use mesh_types::{OverlayAddrs, Service};
use proptest::prelude::*;

use super::*;

fn network(name: &str) -> NetworkName {
    name.parse().expect("a network name")
}

fn route(network_name: &str, name: &str, host: u8) -> Route {
    let service = |name: &str, kind, port| Service {
        name: name.parse().expect("a service name"),
        kind,
        port,
    };
    Route {
        node: NodeId::from_bytes([host; 16]),
        network: network(network_name),
        name: name.parse().expect("a node name"),
        addrs: OverlayAddrs {
            v4: [100, 64, 0, host].into(),
            v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, host.into()].into(),
        },
        services: vec![
            service("console", ServiceKind::Console, 9090),
            service("ssh", ServiceKind::Ssh, 22),
            service("app", ServiceKind::Http, 3000),
            service("db", ServiceKind::Tcp, 5432),
        ],
        state: NodeState::Online,
    }
}

fn table() -> RouteTable {
    let mut table = RouteTable::default();
    table.add_network(&network("default"), NetworkSlot(0));
    table.add_network(&network("lab"), NetworkSlot(1));
    let default = vec![
        route("default", "worker-node-1", 1),
        route("default", "worker-node-10", 2),
    ];
    table.apply(&network("default"), true, default, &[]);
    table.apply(
        &network("lab"),
        true,
        vec![route("lab", "worker-node-1", 3)],
        &[],
    );
    table
}

fn word(resolved: &Resolved<'_>) -> String {
    match resolved {
        Resolved::Forward { destination, own } => {
            let upstream = if *own {
                &destination.own
            } else {
                &destination.shared
            };
            let Target { slot, addr } = upstream.target;
            format!("{}/{addr} {}", slot.0, upstream.mount.outer())
        }
        Resolved::Redirect(to) => format!("-> {to}"),
        Resolved::Fleet => "fleet".into(),
        Resolved::UnknownPath => "no path".into(),
        Resolved::UnknownNetwork(name) => format!("no network {name}"),
        Resolved::UnknownNode(name) => format!("no node {name}"),
        Resolved::UnknownService { node, service } => format!("no service {service} on {node}"),
        Resolved::NoConsole(node) => format!("no console on {node}"),
    }
}

#[test]
fn paths_lead_to_whole_segments_only() {
    let cases = [
        ("/", "fleet"),
        ("/worker-node-1/", "0/100.64.0.1:9090 /worker-node-1/"),
        (
            "/worker-node-1/cockpit/socket",
            "0/100.64.0.1:9090 /worker-node-1/",
        ),
        ("/worker-node-10/", "0/100.64.0.2:9090 /worker-node-10/"),
        ("/worker-node-1", "-> /worker-node-1/"),
        ("/worker-node", "no node worker-node"),
        ("/worker-node-100/x", "no node worker-node-100"),
        ("/Worker-Node-1/", "no node Worker-Node-1"),
        ("//worker-node-1/", "no node "),
        ("/worker-node-1/s/app", "-> /worker-node-1/s/app/"),
        (
            "/worker-node-1/s/app/x?y",
            "0/100.64.0.1:3000 /worker-node-1/s/app/",
        ),
        ("/worker-node-1/s/db/", "no service db on worker-node-1"),
        ("/worker-node-1/s/ssh/", "no service ssh on worker-node-1"),
        ("/worker-node-1/s/..", "no service .. on worker-node-1"),
        ("/worker-node-1/system", "0/100.64.0.1:9090 /worker-node-1/"),
        (
            "/n/lab/worker-node-1/",
            "1/100.64.0.3:9090 /n/lab/worker-node-1/",
        ),
        ("/n/lab/worker-node-1", "-> /n/lab/worker-node-1/"),
        (
            "/n/lab/worker-node-1/s/app/",
            "1/100.64.0.3:3000 /n/lab/worker-node-1/s/app/",
        ),
        ("/n/lab/worker-node-10/", "no node worker-node-10"),
        ("/n/other/worker-node-1/", "no network other"),
        ("/n/default/worker-node-1/", "-> /worker-node-1/"),
        ("/n/default//evil.example/", "no path"),
        ("/n/default/\\evil.example/", "no path"),
        ("/n/lab", "no path"),
        ("*", "no path"),
    ];
    for (path, wanted) in cases {
        assert_eq!(word(&table().resolve(None, path)), wanted, "{path}");
    }
}

#[test]
fn a_host_name_leads_to_its_node_and_no_other() {
    let host = |node: &str, network: Option<&str>| NodeHost {
        node: node.into(),
        network: network.map(Into::into),
    };
    let cases = [
        (host("worker-node-1", None), "/", "0/100.64.0.1:9090 /"),
        (host("worker-node-1", None), "/x", "0/100.64.0.1:9090 /"),
        (
            host("worker-node-1", None),
            "/worker-node-1",
            "-> /worker-node-1/",
        ),
        (
            host("worker-node-1", None),
            "/worker-node-1/x",
            "0/100.64.0.1:9090 /worker-node-1/",
        ),
        (
            host("worker-node-1", None),
            "/worker-node-10/x",
            "0/100.64.0.1:9090 /",
        ),
        (
            host("worker-node-1", None),
            "/worker-node-1/s/app/",
            "0/100.64.0.1:3000 /worker-node-1/s/app/",
        ),
        (
            host("worker-node-1", Some("lab")),
            "/",
            "1/100.64.0.3:9090 /",
        ),
        (host("nobody", None), "/", "no node nobody"),
        (host("worker-node-1", Some("x")), "/", "no network x"),
    ];
    for (host, path, wanted) in cases {
        assert_eq!(
            word(&table().resolve(Some(&host), path)),
            wanted,
            "{host:?} {path}"
        );
    }
}

#[test]
fn changes_apply_to_their_own_network_only() {
    let mut table = table();
    // A coordinator that names another network in this one's stream is not believed.
    table.apply(
        &network("lab"),
        false,
        vec![route("default", "intruder", 9)],
        &[],
    );
    assert_eq!(word(&table.resolve(None, "/intruder/")), "no node intruder");
    assert_eq!(
        word(&table.resolve(None, "/n/lab/intruder/")),
        "no node intruder"
    );
    // Renamed: the old name is gone at once.
    table.apply(
        &network("default"),
        false,
        vec![route("default", "renamed", 1)],
        &[],
    );
    assert_eq!(
        word(&table.resolve(None, "/worker-node-1/")),
        "no node worker-node-1"
    );
    assert!(word(&table.resolve(None, "/renamed/")).starts_with("0/100.64.0.1"));
    table.apply(
        &network("default"),
        false,
        vec![],
        &[NodeId::from_bytes([1; 16])],
    );
    assert_eq!(word(&table.resolve(None, "/renamed/")), "no node renamed");
    table.apply(&network("default"), true, vec![], &[]);
    let names: Vec<_> = table.entries().iter().map(|e| e.prefix.clone()).collect();
    assert_eq!(names, ["/n/lab/worker-node-1/"]);
}

#[test]
fn a_node_without_a_console_says_so() {
    let mut table = table();
    let mut bare = route("default", "bare", 7);
    bare.services.clear();
    table.apply(&network("default"), false, vec![bare], &[]);
    assert_eq!(word(&table.resolve(None, "/bare/")), "no console on bare");
}

proptest! {
    #[test]
    fn no_path_leads_anywhere_but_to_an_address_of_the_table(
        path in "(/|n/|lab/|worker-node-1|worker-node-10|s/|app|\\.\\.|%2e|[a-z0-9:@.]{0,6}){0,8}"
    ) {
        let table = table();
        if let Resolved::Forward { destination, own } = table.resolve(None, &path) {
            prop_assert!(!own);
            prop_assert!(table.leads_to(&destination.shared.target));
            prop_assert!(path.starts_with(destination.shared.mount.outer()));
        }
    }
}
