//! What people send is nowhere to be read between the hosts.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use integration::{Field, Layout, Server};
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
    let mut markers = send(&field, port, "direct");
    let edge = field.addr("edge");
    let blocked = host.block_udp(edge).expect("rule");
    // Direct paths die first; then the same over the relay.
    eventually("the console over the relay", SOON, || {
        let reply = field.client_curl().args(["--max-time", "5"]);
        let status = reply.get(field.url(&format!("/{NODE}/ping")))?.status;
        ensure!(status == 200, "status {status}");
        Ok(())
    });
    markers.extend(send(&field, port, "relayed"));
    assert!(blocked.dropped().expect("counter") > 0);

    let (between, loopback) = (
        between.finish().expect("capture"),
        loopback.finish().expect("capture"),
    );
    let relay = SocketAddr::from((field.addr("core"), 8443));
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
    assert!(
        between.len() > 10_000,
        "{between:?} with a relay at {relay} is hardly all of it"
    );
    // Nor do the addresses inside the tunnel show, nor does any log keep a marker.
    for service in ["coordinator", "relay", "gateway", "deploy-manager"] {
        for line in field.service(service).log().lines() {
            let found = markers
                .iter()
                .find(|marker| line.text.contains(marker.as_str()));
            assert!(found.is_none(), "{service} logged {found:?}: {}", line.text);
        }
    }
    field.assert_logs_clean(&[]);
}
