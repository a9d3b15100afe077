//! Two networks: nothing crosses from one to the other.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use integration::derp::{DerpClient, relay_of};
use integration::field::overlay_addr;
use integration::raw::{Applicant, RawNode};
use integration::socks::{Wanted, connect};
use integration::{Field, Layout, Server};
use mesh_testkit::{Curl, Need, eventually, needs};
use mesh_types::JoinToken;

const NEEDED: [Need; 3] = [Need::Root, Need::Program("ip"), Need::Program("curl")];
const SOON: Duration = Duration::from_secs(30);
const NETWORKS: [&str; 2] = ["default", "other"];

fn prefix(network: &str, node: &str) -> String {
    match network {
        "default" => format!("/{node}/"),
        other => format!("/n/{other}/{node}/"),
    }
}

#[test]
fn each_network_answers_inside_and_is_silent_outside() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::with_networks(Layout::Spread, None, &[NETWORKS[1]]);
    // The same node name in both: only the network tells them apart.
    let mut servers = Vec::new();
    for network in NETWORKS {
        let name = format!("in-{network}");
        let host = field.prepare_host(&name).expect("host");
        let server = Server::start(Some(&host), &name, None).expect("server");
        field
            .add_worker(&name, network, &[])
            .publish("web", server.port());
        servers.push(server);
    }
    let edge = field.host("edge").clone();
    let addrs =
        NETWORKS.map(|network| overlay_addr(field.operator(), network, &format!("in-{network}")));
    for (at, network) in NETWORKS.iter().enumerate() {
        let (name, port) = (format!("in-{network}"), servers[at].port());
        field.wait_for_console(&prefix(network, &name), SOON);
        eventually("the service answers inside", SOON, || {
            Curl::new()
                .on(Some(&edge))
                .args(["--socks5-hostname", &field.socks(network).to_string()])
                .get(format!("http://{name}:{port}/"))?
                .ok()
        });
    }

    for (at, network) in NETWORKS.iter().enumerate() {
        let other = NETWORKS[1 - at];
        let (target, port) = (format!("in-{other}"), servers[1 - at].port());
        let own = Wanted::Name(format!("in-{network}"), servers[at].port());
        edge.enter(|| {
            let proxy = field.socks(network);
            assert!(connect(proxy, &own).expect("the proxy answers").0.granted());
            for wanted in [
                Wanted::Name(target.clone(), port),
                Wanted::Name(format!("{target}.{other}"), port),
                Wanted::Name(format!("{target}.{other}.mesh.local"), port),
                Wanted::Addr(SocketAddr::from((addrs[1 - at], port))),
                Wanted::Addr(SocketAddr::from((addrs[1 - at], 22))),
                Wanted::Addr(SocketAddr::from((addrs[1 - at], 9090))),
            ] {
                let (reply, _) = connect(proxy, &wanted).expect("the proxy answers");
                assert!(!reply.granted(), "{network} reached {wanted:?}");
            }
        });
        let inside = [
            "--network",
            network,
            "exec",
            "uname -n",
            &format!("in-{network}"),
        ];
        field.operator().deploy(&inside).expect_code(0);
        for via in ["socks", "grpc"] {
            let outside = ["--network", network, "--via", via, "exec", "true", &target];
            let refused = field.operator().deploy(&outside);
            assert!(
                refused.code.is_some_and(|code| code != 0),
                "{}",
                refused.all()
            );
        }
        let status = field
            .curl(&prefix(network, &target))
            .expect("curl runs")
            .status;
        assert_eq!(status, 404, "{target} under {network}'s prefix");
        let listed = field
            .operator()
            .mesh_ok(&["node", "list", "--network", network])
            .stdout;
        assert!(listed.contains(&format!("in-{network}")), "{listed}");
        assert!(
            !listed.contains(&target),
            "{network}'s list shows {target}:\n{listed}"
        );
        let all = field
            .operator()
            .deploy(&["--network", network, "exec", "uname -n", "all"]);
        let all = all.expect_code(0);
        assert!(!all.stdout.contains(&target), "{}", all.all());
    }
    let seen: BTreeSet<_> = addrs.into_iter().collect();
    assert_eq!(
        seen.len(),
        2,
        "overlay addresses are unique over all networks"
    );
    raw_packets_stay_in_their_network(&field);
    field.assert_logs_clean(&[]);
}

/// Three nodes speak to the relay by hand: two of one network, one of another.
fn raw_packets_stay_in_their_network(field: &Field) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let joins = ["default", "default", "other"].map(|network| {
        let text = field.operator().token(&["--network", network]);
        text.parse::<JoinToken>().expect("a join token")
    });
    field.host("edge").clone().enter(|| {
        runtime.block_on(async {
            let mut nodes: Vec<RawNode> = Vec::new();
            for (n, token) in joins.iter().enumerate() {
                let applicant = Applicant::new(&format!("raw-{n}")).expect("keys");
                nodes.push(applicant.join(token).await.expect("joins"));
            }
            let context = field.operator().context().expect("a context");
            let relay = relay_of(&context).await.expect("a relay");
            let mut clients = Vec::new();
            for node in &nodes {
                clients.push(
                    DerpClient::connect(node, &relay, SOON)
                        .await
                        .expect("admitted"),
                );
            }
            let [mut sender, mut inside, mut outside] =
                <[DerpClient; 3]>::try_from(clients).expect("three clients");
            // The one across goes first, so that it has had its time when the other arrives.
            sender.send(&nodes[2], b"across").await.expect("sent");
            sender.send(&nodes[1], b"within").await.expect("sent");
            let heard = inside.receive(SOON).await.expect("received");
            assert_eq!(heard.as_deref(), Some(&b"within"[..]));
            let heard = outside
                .receive(Duration::from_secs(1))
                .await
                .expect("still connected");
            assert_eq!(heard, None, "a packet crossed from one network to another");
        });
    });
}
