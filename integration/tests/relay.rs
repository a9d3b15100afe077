//! With UDP dropped everything goes on over the relay, and turns direct when it comes back.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::findings::finding;
use integration::journeys::commands::{Commands, DOWN_NODE};
use integration::journeys::consoles::Consoles;
use integration::journeys::refusals::{OTHER, Refusals};
use integration::journeys::transfers::{NODE, Transfers, download, through};
use integration::journeys::{WORKERS, commands, consoles, refusals, transfers};
use integration::server::{sha256, write_noise};
use integration::{Field, Layout, Server, metrics};
use mesh_testkit::{Blocked, CurlReply, Need, eventually, needs};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// Slow enough to be under way when the path changes, and when the relay goes.
const RATE: &str = "4M";
/// No datagram at all reaches this one, not even STUN's answers.
const SHUT_OFF: &str = WORKERS[1];
/// A node counts as offline so long after its last heartbeat, and half a minute more.
const MISSED: Duration = Duration::from_secs(45 + 60 + 30);
const MOVED: usize = 80 << 20;

/// Drops UDP among these hosts; STUN and DERP on `core` stay reachable.
fn drop_udp(field: &Field, names: &[&str]) -> Vec<Blocked> {
    let rules = names.iter().map(|name| {
        let others = names.iter().filter(|other| *other != name);
        let matches: Vec<String> = others
            .flat_map(|other| {
                let addr = field.addr(other);
                ["saddr", "daddr"].map(|end| format!("meta l4proto udp ip {end} {addr}"))
            })
            .collect();
        field.host(name).block(&matches).expect("rule")
    });
    rules.collect()
}

/// Bytes that the relay has carried.
fn carried(field: &Field) -> u64 {
    let text = field.metrics("relay").expect("metrics");
    let name = "mesh_relay_forwarded_bytes_total";
    assert!(text.contains(name), "no {name} in:\n{text}");
    metrics::count(&text, &[name])
}

/// Goes through a journey, which says how many bytes it moved at least: the relay must have carried
/// them.
fn relayed(field: &mut Field, what: &str, journey: impl FnOnce(&mut Field) -> u64) {
    let before = carried(field);
    let moved = journey(field);
    let rise = carried(field) - before;
    println!("{what}: {moved} bytes moved, {rise} carried by the relay");
    assert!(moved > 0, "{what} moved nothing");
    assert!(
        rise >= moved,
        "{what}: {moved} bytes moved, {rise} of them over the relay"
    );
}

/// How a worker reaches its peer of that role, and what it counts of it.
fn peer_of(field: &Field, worker: &str, role: &str) -> anyhow::Result<Value> {
    let status = field.worker(worker).status()?;
    let peers = status["peers"].as_array().context("peers")?;
    let peer = peers.iter().find(|peer| peer["role"] == role);
    peer.cloned()
        .with_context(|| format!("no {role}: {status}"))
}

/// Every byte between the workers and those that use them went over the relay.
fn assert_relayed_only(field: &Field) {
    for name in WORKERS {
        assert_eq!(field.path_to(name).expect("a path"), "relay", "{name}");
        for role in ["gateway", "deployer"] {
            let peer = peer_of(field, name, role).expect("a peer");
            assert_eq!(peer["path"]["kind"], "relay", "{name}: {peer}");
            for way in ["rx", "tx"] {
                let all = &peer[format!("{way}_bytes")];
                assert!(all.as_u64() > Some(0), "{name}: {peer}");
                assert_eq!(all, &peer[format!("{way}_relay_bytes")], "{name}: {peer}");
            }
        }
    }
}

/// What the worker's own status says.
fn told_by(field: &Field, worker: &str, code: &str) -> anyhow::Result<Value> {
    finding(&field.worker(worker).run("status", &["--json"]), code)
}

/// Whom no datagram reaches says so, and the coordinator with it; who hears STUN does not.
fn assert_udp_is_told_blocked(field: &Field) {
    eventually("it is told that UDP is blocked", SOON, || {
        let told = told_by(field, SHUT_OFF, "udp-blocked")?;
        ensure!(told["severity"] == "warning", "{told}");
        let shown = ["--json", "node", "show", SHUT_OFF];
        finding(&field.operator().mesh(&shown), "udp-blocked")?;
        finding(&field.operator().mesh(&["--json", "status"]), "udp-blocked")
    });
    assert!(told_by(field, NODE, "udp-blocked").is_err());
}

fn wait_until_direct(field: &Field) {
    eventually("all paths turn direct", SOON, || {
        // What nobody uses stays as it is.
        let words = [&["--timeout", "5s", "status"], &WORKERS[..]].concat();
        field.operator().deploy(&words).success()?;
        for name in WORKERS {
            field.curl(&format!("/{name}/ping"))?.ok()?;
            let path = field.path_to(name)?;
            ensure!(path == "direct", "{name} and the gateway: {path}");
            let deployer = peer_of(field, name, "deployer")?;
            let kind = &deployer["path"]["kind"];
            ensure!(kind == "direct", "{name} and the deploy-manager: {kind}");
        }
        Ok(())
    });
}

/// Console, status, command and SOCKS once each, without a second try.
fn assert_all_works_at_once(field: &Field, port: u16) {
    for name in WORKERS {
        let page = field.curl(&format!("/{name}/")).expect("curl runs");
        assert_eq!(page.status, 200, "{page:?}");
    }
    for via in ["socks", "grpc"] {
        let deploy = |verb: &[&str]| {
            let words = [&["--via", via], verb, &WORKERS].concat();
            field.operator().deploy(&words).expect_code(0)
        };
        let status = deploy(&["status"]);
        let oks = status.stdout.matches("[OK] ").count();
        assert_eq!(oks, 2, "{}", status.all());
        let ran = deploy(&["exec", "uname -n"]);
        assert!(
            WORKERS.iter().all(|name| ran.stdout.contains(name)),
            "{}",
            ran.all()
        );
    }
    let body = through(field, "default")
        .get(format!("http://{NODE}:{port}/over-socks"))
        .and_then(CurlReply::ok);
    assert!(body.expect("the service").contains("/over-socks"));
}

#[test]
fn everything_passes_over_the_relay_and_turns_direct_without_loss() {
    let needed = [
        &consoles::NEEDED[..],
        &commands::NEEDED,
        &transfers::NEEDED,
        &refusals::NEEDED,
        &[Need::Program("nft")],
    ];
    if !needs(&needed.concat()) {
        return;
    }
    let mut field = Field::with_networks(Layout::Spread, None, &[OTHER]);
    let workers = [WORKERS[0], WORKERS[1], DOWN_NODE, "foreign"];
    for name in workers {
        field.prepare_host(name).expect("host");
    }
    let rules = drop_udp(&field, &[&["edge"], &workers[..]].concat());
    let core = field.addr("core");
    let shut = field.host(SHUT_OFF).block_udp(core).expect("rule");
    let mut consoles = Consoles::install(&mut field);
    let mut commands = Commands::install(&mut field);
    let transfers = Transfers::install(&mut field);
    commands.join(&mut field);
    transfers.publish(&field);

    // Two minutes, while everything else is tried.
    let long = commands.start_long(&field);
    relayed(&mut field, "consoles", |field| {
        consoles.use_both(field, "relay-")
    });
    relayed(&mut field, "commands", |field| commands.use_all(field));
    relayed(&mut field, "transfers", |field| {
        transfers.large_beside_ten(field)
    });
    let refusals = Refusals::install(&mut field, NODE, transfers.port());
    refusals.refuse_all(&field);
    long.finish();
    assert_udp_is_told_blocked(&field);
    commands.change_host_key(&field);
    assert_relayed_only(&field);
    for (rule, name) in rules.iter().zip([&["edge"], &workers[..]].concat()) {
        let dropped = rule.dropped().expect("counter");
        assert!(dropped > 0, "nobody ever tried a direct path at {name}");
    }

    shut.lift().expect("rule lifted");
    turn_direct_during_a_transfer(&mut field, rules);

    // And when it comes back, so do they: gateway and deploy-manager in both networks, three
    // workers.
    field.start_relay().expect("the relay starts again");
    eventually("all are on the relay again", SOON, || {
        let clients = metrics::count(&field.metrics("relay")?, &["mesh_relay_clients"]);
        ensure!(clients >= 7, "{clients} clients");
        Ok(())
    });
    eventually("nothing is wrong any more", SOON, || {
        for code in ["relay-down", "udp-blocked"] {
            let told = told_by(&field, SHUT_OFF, code);
            ensure!(told.is_err(), "{told:?}");
        }
        Ok(())
    });
    // It was ended while commands were tried.
    let asked = Instant::now();
    eventually("who was ended is missed", MISSED, || {
        let shown = ["--json", "node", "show", DOWN_NODE];
        let told = finding(&field.operator().mesh(&shown), "node-offline")?;
        ensure!(told["severity"] == "error", "{told}");
        Ok(())
    });
    println!(
        "{DOWN_NODE} is told to be missed after another {:?}",
        asked.elapsed()
    );
    field.assert_logs_clean(&[]);
}

fn turn_direct_during_a_transfer(field: &mut Field, rules: Vec<Blocked>) {
    let source = write_noise(field.operator().work("moved-noise"), MOVED).expect("file");
    let server = Server::start(Some(field.host(NODE)), NODE, Some(&source)).expect("server");
    field.worker(NODE).publish("moved", server.port());
    transfers::wait_for_service(field, "default", NODE, NODE, server.port());

    let before = carried(field);
    let into = field.operator().work("moved");
    let mut transfer = download(field, server.port(), &into, RATE)
        .name("transfer")
        .spawn()
        .expect("starts");
    let size = || anyhow::Ok(std::fs::metadata(&into)?.len());
    let begun = eventually("the transfer is under way", SOON, || {
        let size = size()?;
        ensure!(size > 4 << 20, "{size} bytes");
        Ok(size)
    });
    let rise = carried(field) - before;
    assert!(rise >= begun, "{begun} bytes moved, {rise} over the relay");
    for rule in rules {
        rule.lift().expect("rule lifted");
    }
    wait_until_direct(field);

    // What moves from here on does so without the relay.
    let (before, moved) = (carried(field), size().expect("size"));
    eventually("the transfer goes on", SOON, || {
        let size = size()?;
        ensure!(size > moved + (8 << 20), "{size} bytes after {moved}");
        Ok(())
    });
    let rise = carried(field) - before;
    assert!(rise < 1 << 20, "{rise} bytes still go over the relay");
    assert!(
        transfer.is_running(),
        "the transfer was over before the relay was killed"
    );

    // Killed, as a crash does: whoever is direct does not notice.
    let mut relay = field.take_service("relay");
    relay.kill().expect("killed");
    relay.assert_log_clean(&[]);
    assert_all_works_at_once(field, server.port());
    eventually("a worker says that its relay is gone", SOON, || {
        let told = told_by(field, NODE, "relay-down")?;
        ensure!(told["severity"] == "warning", "{told}");
        Ok(())
    });
    for name in WORKERS {
        assert_eq!(field.path_to(name).expect("a path"), "direct", "{name}");
    }
    transfer
        .finish(Duration::from_secs(60))
        .expect("ends")
        .expect_code(0);
    assert_eq!(sha256(&into).expect("sum"), sha256(&source).expect("sum"));
}
