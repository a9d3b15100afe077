//! With UDP dropped everything goes on over the relay, and turns direct when it comes back.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::server::{sha256, write_noise};
use integration::{Field, Layout, Server, metrics};
use mesh_testkit::{Blocked, Curl, CurlReply, Need, eventually, needs};

const NEEDED: [Need; 5] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("nft"),
    Need::Program("curl"),
    Need::Program("sha256sum"),
];
const SOON: Duration = Duration::from_secs(30);
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];

/// Drops UDP among the mesh hosts; STUN and DERP on `core` stay reachable.
fn drop_udp(field: &Field) -> Vec<Blocked> {
    let addrs = |except: &str| -> Vec<Ipv4Addr> {
        ["edge", WORKERS[0], WORKERS[1]]
            .into_iter()
            .filter(|name| *name != except)
            .map(|name| field.addr(name))
            .collect()
    };
    let mut rules = Vec::new();
    for name in ["edge", WORKERS[0], WORKERS[1]] {
        for other in addrs(name) {
            rules.push(field.host(name).block_udp(other).expect("rule"));
        }
    }
    rules
}

/// Bytes and packets that the relay has carried.
fn carried(field: &Field) -> f64 {
    let text = field.metrics("relay").expect("metrics");
    let total = metrics::sum(&text, &["mesh_relay", "forwarded"]);
    assert!(
        text.contains("forwarded"),
        "no counter of forwarded packets in:\n{text}"
    );
    total
}

/// How the gateway reaches a worker, as its page for programs tells it.
fn path_of(field: &Field, worker: &str) -> anyhow::Result<String> {
    let page = field
        .client_curl()
        .args(["-H", "Accept: application/json"])
        .get(field.url("/"))?;
    let page: serde_json::Value = serde_json::from_str(&page.ok()?)?;
    let nodes = page["nodes"].as_array().context("nodes")?;
    let node = nodes
        .iter()
        .find(|node| node["name"] == worker)
        .context("the worker")?;
    Ok(node["path"].as_str().unwrap_or_default().to_owned())
}

fn assert_all_works(field: &Field, port: u16) {
    for name in WORKERS {
        field.wait_for_console(&format!("/{name}/"), SOON);
    }
    let status = field
        .operator()
        .deploy(&["status", WORKERS[0], WORKERS[1]])
        .expect_code(0);
    assert_eq!(
        status.stdout.matches("[OK] ").count(),
        2,
        "{}",
        status.all()
    );
    for via in ["socks", "grpc"] {
        let ran = field
            .operator()
            .deploy(&["--via", via, "exec", "uname -n", "all"]);
        let ran = ran.expect_code(0);
        assert!(
            WORKERS.iter().all(|name| ran.stdout.contains(name)),
            "{}",
            ran.all()
        );
    }
    let body = Curl::new()
        .on(Some(field.host("edge")))
        .args(["--socks5-hostname", &field.socks("default").to_string()])
        .get(format!("http://{}:{port}/over-socks", WORKERS[0]))
        .and_then(CurlReply::ok);
    assert!(body.expect("the service").contains("/over-socks"));
}

#[test]
fn traffic_moves_between_relay_and_direct_path_without_loss() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    let source = write_noise(field.operator().work("noise"), 48 << 20).expect("file");
    let host = field.prepare_host(WORKERS[0]).expect("host");
    let server = Server::start(Some(&host), WORKERS[0], Some(&source)).expect("server");
    let port = server.port();
    field.prepare_host(WORKERS[1]).expect("host");
    let rules = drop_udp(&field);
    field
        .add_worker(WORKERS[0], "default", &[])
        .publish("files", port);
    field.add_worker(WORKERS[1], "default", &[]);

    assert_all_works(&field, port);
    let before = carried(&field);
    assert!(before > 0.0, "the relay carried nothing");
    assert_eq!(path_of(&field, WORKERS[0]).expect("a path"), "relay");
    let dropped: u64 = rules
        .iter()
        .map(|rule| rule.dropped().expect("counter"))
        .sum();
    assert!(dropped > 0, "no direct path was ever tried");

    // Slow enough to be under way when the rule goes.
    let into = field.operator().work("moved");
    let mut transfer = Curl::new()
        .on(Some(field.host("edge")))
        .args(["--socks5-hostname", &field.socks("default").to_string()])
        .args(["--limit-rate", "6M", "--max-time", "120", "-o"])
        .arg(&into)
        .arg(format!("http://{}:{port}/file", WORKERS[0]))
        .into_spec()
        .name("transfer")
        .spawn()
        .expect("starts");
    eventually("the transfer is under way over the relay", SOON, || {
        let size = std::fs::metadata(&into)?.len();
        ensure!(size > 1 << 20, "{size} bytes");
        Ok(())
    });
    assert!(
        carried(&field) > before,
        "the transfer does not pass the relay"
    );
    for rule in rules {
        rule.lift().expect("rule lifted");
    }
    eventually("the gateway's path turns direct", SOON, || {
        field.curl(&format!("/{}/", WORKERS[0]))?.ok()?;
        let path = path_of(&field, WORKERS[0])?;
        ensure!(path == "direct", "{path}");
        Ok(())
    });
    eventually("the deploy-manager's path turns direct", SOON, || {
        let status = field.worker(WORKERS[0]).status()?;
        let peers = status["peers"].as_array().context("peers")?;
        let peer = peers
            .iter()
            .find(|peer| peer["role"] == "deployer")
            .context("a deployer")?;
        let path = peer["path"].to_string();
        ensure!(path.contains("direct"), "{path}");
        Ok(())
    });
    assert!(
        transfer.is_running(),
        "the transfer was over before the path changed"
    );

    // Killed, as a crash does: whoever is direct does not notice.
    let mut relay = field.take_service("relay");
    relay.kill().expect("killed");
    transfer
        .finish(Duration::from_secs(60))
        .expect("ends")
        .expect_code(0);
    assert_eq!(sha256(&into).expect("sum"), sha256(&source).expect("sum"));
    assert_all_works(&field, port);

    // And when it comes back, so do they.
    field.start_relay().expect("the relay starts again");
    eventually("somebody is on the relay again", SOON, || {
        let text = field.metrics("relay")?;
        let clients = metrics::sum(&text, &["mesh_relay", "clients"]);
        ensure!(clients >= 4.0, "{clients} clients in:\n{text}");
        Ok(())
    });
    field.assert_logs_clean(&[]);
}
