//! What people send is nowhere to be read between the hosts.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::{Field, Layout, Server, metrics};
use mesh_testkit::cockpit::COCKPIT_WS;
use mesh_testkit::{Cockpit, Curl, Need, eventually, needs};

const NEEDED: [Need; 5] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("curl"),
    Need::Program("tcpdump"),
    Need::Program(COCKPIT_WS),
];
const SOON: Duration = Duration::from_secs(30);
const NODE: &str = "worker-node-1";
/// Sent over the segment as it is.
const CLEAR: &str = "MARKER-in-clear-8d1f";

/// Sends each marker its own way; all of them end up on the worker's loopback.
fn send(field: &Field, port: u16, round: &str) -> Vec<String> {
    let marker = |way: &str| format!("MARKER-{way}-{round}-8d1f");
    let (console, exec, grpc, socks) = (
        marker("console"),
        marker("exec"),
        marker("grpc"),
        marker("socks"),
    );
    field
        .client_curl()
        .args(["-H", &format!("X-Marker: {console}")])
        .get(field.url(&format!("/{NODE}/ping?{console}")))
        .expect("curl runs")
        .ok()
        .expect("the console");
    for (via, marker) in [("socks", &exec), ("grpc", &grpc)] {
        let command = format!("curl -s http://127.0.0.1:{port}/{marker}");
        let ran = field
            .operator()
            .deploy(&["--via", via, "exec", &command, NODE])
            .expect_code(0);
        assert!(ran.stdout.contains(marker.as_str()), "{}", ran.all());
    }
    let body = Curl::new()
        .on(Some(field.host("edge")))
        .args(["--socks5-hostname", &field.socks("default").to_string()])
        .get(format!("http://{NODE}:{port}/{socks}"))
        .and_then(mesh_testkit::CurlReply::ok);
    assert!(body.expect("the service").contains(&socks));
    vec![console, exec, grpc, socks]
}

#[test]
fn no_marker_is_readable_between_the_hosts() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    let host = field.prepare_host(NODE).expect("host");
    let _cockpit = Cockpit::start(&host, &format!("/{NODE}/")).expect("Cockpit");
    let server = Server::start(Some(&host), NODE, None).expect("server");
    let port = server.port();
    field.add_worker(NODE, "default", &[]).publish("web", port);
    field.wait_for_cockpit(&format!("/{NODE}/"), SOON);
    eventually("the service is reached", SOON, || {
        Curl::new()
            .on(Some(field.host("edge")))
            .args(["--socks5-hostname", &field.socks("default").to_string()])
            .get(format!("http://{NODE}:{port}/"))?
            .ok()
    });

    let between = field
        .lab()
        .capture(field.mesh_segment(), "")
        .expect("capture");
    let loopback = host.capture("lo", "").expect("capture");
    // The control: what crosses the segment in clear is found there.
    let core = field.addr("core");
    field.host("edge").enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
        socket.send_to(CLEAR.as_bytes(), (core, 9)).expect("sent");
    });
    wait_for_path(&field, "direct");
    let before = relayed_bytes(&field);
    let mut markers = send(&field, port, "direct");
    assert_eq!(relayed_bytes(&field), before, "the direct round is direct");

    let blocked = host.block_udp(field.addr("edge")).expect("rule");
    // Direct paths die first; then the same over the relay.
    wait_for_path(&field, "relay");
    let before = (relayed_bytes(&field), carried(&field));
    let relayed = send(&field, port, "relayed");
    let moved: u64 = relayed.iter().map(|marker| marker.len() as u64).sum();
    // A worker's status is a tenth of a second old.
    eventually("the relayed round is relayed", SOON, || {
        let rise = (relayed_bytes(&field) - before.0, carried(&field) - before.1);
        ensure!(
            rise.0 >= moved && rise.1 >= moved,
            "{moved} bytes of markers, {rise:?} by relay"
        );
        Ok(())
    });
    markers.extend(relayed);
    assert!(blocked.dropped().expect("counter") > 0);

    let (between, loopback) = (
        between.finish().expect("capture"),
        loopback.finish().expect("capture"),
    );
    assert!(
        between.contains(CLEAR.as_bytes()),
        "{between:?} does not show what is sent in clear"
    );
    for marker in &markers {
        assert!(
            loopback.contains(marker.as_bytes()),
            "the search does not find {marker}"
        );
        assert!(
            !between.contains(marker.as_bytes()),
            "{marker} is readable between the hosts"
        );
    }
    // Nor does any log keep a marker.
    let services = ["coordinator", "relay", "gateway", "deploy-manager"];
    let logs = services.map(|name| (name, field.service(name).log()));
    for (name, log) in logs
        .into_iter()
        .chain([(NODE, field.worker(NODE).child().log())])
    {
        for line in log.lines() {
            let found = markers
                .iter()
                .find(|marker| line.text.contains(marker.as_str()));
            assert!(found.is_none(), "{name} logged {found:?}: {}", line.text);
        }
    }
    field.assert_logs_clean(&[]);
}

/// Waits until gateway and deploy-manager reach the worker that way.
fn wait_for_path(field: &Field, wanted: &str) {
    eventually(&format!("the paths are {wanted}"), SOON, || {
        let console = field.client_curl().args(["--max-time", "5"]);
        let status = console.get(field.url(&format!("/{NODE}/ping")))?.status;
        ensure!(status == 200, "status {status}");
        let exec = field
            .operator()
            .deploy(&["--timeout", "5s", "exec", "true", NODE]);
        ensure!(exec.code == Some(0), "{}", exec.all());
        for role in ["gateway", "deployer"] {
            let status = field.worker(NODE).status()?;
            let peers = status["peers"].as_array().context("peers")?;
            let peer = peers.iter().find(|peer| peer["role"] == role);
            let kind = &peer.context("a peer")?["path"]["kind"];
            ensure!(kind == wanted, "{role}: {kind}");
        }
        Ok(())
    });
}

/// Bytes of packets that the worker has sent and received by relay.
fn relayed_bytes(field: &Field) -> u64 {
    let status = field.worker(NODE).status().expect("a status");
    let peers = status["peers"].as_array().expect("peers");
    let ways = ["rx_relay_bytes", "tx_relay_bytes"];
    let bytes = peers
        .iter()
        .flat_map(|peer| ways.map(|way| peer[way].as_u64().expect("a counter")));
    bytes.sum()
}

/// Bytes that the relay has carried.
fn carried(field: &Field) -> u64 {
    let text = field.metrics("relay").expect("metrics");
    metrics::count(&text, &["mesh_relay_forwarded_bytes_total"])
}
