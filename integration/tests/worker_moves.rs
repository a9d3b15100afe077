//! A worker moves: it is killed and comes back at another address and port; its machine's address
//! changes while it runs; or its NAT changes under it. It is used again within seconds, and what was
//! open meanwhile stays open where it can.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::cli::USUAL;
use integration::journeys::WORKERS;
use integration::journeys::transfers::{download, wait_for_service};
use integration::server::{sha256, write_noise};
use integration::{Field, Layout, Server, metrics};
use mesh_testkit::{Curl, CurlReply, Host, Need, eventually, needs};
use serde_json::Value;

const NEEDED: [Need; 5] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("nft"),
    Need::Program("curl"),
    Need::Program("sha256sum"),
];
/// It is behind a NAT, and serves a file.
const INSIDE: &str = WORKERS[0];
/// It has an address of its own, and gets another.
const MOVER: &str = WORKERS[1];
const SOON: Duration = Duration::from_secs(30);
/// What the acceptance gives a worker that moved.
const BACK: Duration = Duration::from_secs(5);
/// More than all buffers on the way together.
const FILE: usize = 80 << 20;
/// Slow enough to be under way during all that happens to it.
const RATE: &str = "4M";
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 200);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 201);
const NEW_ADDR: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 77);
const OTHER_NEW_ADDR: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 78);
const THIRD_ADDR: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 79);
const PORTS: RangeInclusive<u16> = 30_000..=30_999;
const OTHER_PORTS: RangeInclusive<u16> = 41_000..=41_999;

/// Waits until console and commands, by both ways, work; all of it in time, counted from `since`.
/// Says how long each took.
#[track_caller]
fn wait_until_used(field: &Field, worker: &str, since: Instant) {
    // Each on its own: one that works does not lend its time to another.
    let took = std::thread::scope(|scope| {
        let console = scope.spawn(|| {
            eventually("its console answers", BACK, || {
                let curl = field.client_curl().within(Duration::from_secs(2));
                curl.get(field.url(&format!("/{worker}/")))?.ok()
            });
            since.elapsed()
        });
        let execs = ["socks", "grpc"].map(|via| {
            scope.spawn(move || {
                eventually(&format!("commands run by {via}"), BACK, || {
                    let words = ["--via", via, "--timeout", "2s", "exec", "uname -n", worker];
                    let ran = field.operator().deploy(&words).success()?;
                    ensure!(ran.stdout.trim() == worker, "{}", ran.all());
                    Ok(())
                });
                since.elapsed()
            })
        });
        let mut took = vec![console.join()];
        took.extend(execs.map(|exec| exec.join()));
        took.into_iter()
            .map(|took| took.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    println!("{worker}: console, command by SOCKS5 and by gRPC after {took:?}");
    let in_time = took.iter().all(|took| *took < BACK);
    assert!(in_time, "{worker} is used again after {took:?}");
}

#[track_caller]
fn wait_until_direct(field: &Field, worker: &str) {
    eventually("the path is direct", SOON, || {
        field.curl(&format!("/{worker}/"))?.ok()?;
        let path = field.path_to(worker)?;
        ensure!(path == "direct", "{path}");
        Ok(())
    });
}

/// Waits until worker and deploy-manager keep no path to each other warm; the gateway always does.
#[track_caller]
fn wait_until_idle(field: &Field, worker: &str) {
    eventually("the deploy-manager lets it be", 2 * SOON, || {
        let status = field.worker(worker).status()?;
        let peers = status["peers"].as_array().context("peers")?;
        let deployer = peers.iter().find(|peer| peer["role"] == "deployer");
        let active = &deployer.context("the peer")?["active"];
        ensure!(active == false, "{peers:?}");
        Ok(())
    });
}

/// Waits until the worker's connection to its relay comes from this address.
#[track_caller]
fn wait_until_relayed_from(field: &Field, worker: &str, addr: Ipv4Addr, since: Instant) {
    eventually("the relay is asked from the new address", BACK, || {
        let status = field.worker(worker).status()?;
        let relay = &status["relays"][0];
        let local = relay["local_addr"].as_str().unwrap_or_default();
        let is_new = local.starts_with(&format!("{addr}:"));
        ensure!(is_new && relay["connected"] == true, "{relay}");
        Ok(())
    });
    let took = since.elapsed();
    println!("{worker}: its relay from {addr} after {took:?}");
    assert!(took < BACK, "{took:?}");
}

/// Waits until a worker's file names those that use it, to be greeted after a start.
#[track_caller]
fn wait_until_remembered(field: &Field, worker: &str) {
    let file = field.worker(worker).state_dir().join("netmap");
    eventually("gateway and deploy-manager are remembered", SOON, || {
        let text = std::fs::read_to_string(&file)?;
        let (_, content) = text.split_once('\n').context("two parts")?;
        let stored: Value = serde_json::from_str(content)?;
        let greeted = stored["active"].as_array().map_or(0, Vec::len);
        ensure!(greeted >= 2, "{greeted} are");
        Ok(())
    });
}

/// The machine's address is another one.
fn change_addr(host: &Host, former: Ipv4Addr, new: Ipv4Addr) {
    for (verb, addr) in [("del", former), ("add", new)] {
        let words = ["addr", verb, &format!("{addr}/24"), "dev", "eth0"];
        let ran = host.spec("ip").args(words).run(USUAL);
        ran.expect("runs").expect_code(0);
    }
}

/// How often the worker's paths to its peers changed, by its own metrics.
#[track_caller]
fn path_changes(field: &Field, worker: &str) -> u64 {
    let own = Curl::new().on(Some(field.host(worker)));
    let figures = own.get("http://127.0.0.1:9467/metrics");
    let figures = figures.and_then(CurlReply::ok).expect("metrics");
    let name = "mesh_agent_path_changes_total";
    assert!(figures.contains(name), "{figures}");
    metrics::count(&figures, &[name])
}

fn arrived(into: &Path) -> u64 {
    std::fs::metadata(into).map_or(0, |file| file.len())
}

#[track_caller]
fn wait_for_more(into: &Path) {
    let before = arrived(into);
    eventually("the transfer goes on", SOON, || {
        let now = arrived(into);
        ensure!(now > before + (4 << 20), "{now} bytes after {before}");
        Ok(())
    });
}

/// Killed, and started again with another address of its machine and another port; says when it was
/// started.
fn move_worker(field: &mut Field) -> Instant {
    let mut killed = field.worker_mut(MOVER).take_child();
    killed.kill().expect("killed");
    killed.assert_log_clean(&[]);
    let former = field.addr(MOVER);
    change_addr(field.host(MOVER), former, NEW_ADDR);
    let port = "wireguard.listen=0.0.0.0:41820".to_owned();
    let worker = field.worker_mut(MOVER);
    worker.add_settings(&[port]);
    let begun = Instant::now();
    worker.start();
    println!("{MOVER} was ready {:?} after its start", begun.elapsed());
    begun
}

/// Both workers, used by direct paths; the one inside serves a file.
fn start_workers(field: &mut Field, host: &Host) -> (PathBuf, Server) {
    for worker in WORKERS {
        field.add_worker(worker, "default", &[]);
    }
    let source = write_noise(field.operator().work("noise"), FILE).expect("file");
    let server = Server::start(Some(host), INSIDE, Some(&source)).expect("server");
    field.worker(INSIDE).publish("files", server.port());
    wait_for_service(field, "default", INSIDE, INSIDE, server.port());
    for worker in WORKERS {
        wait_until_direct(field, worker);
        wait_until_used(field, worker, Instant::now());
        // From nowhere to there, at the least.
        assert!(path_changes(field, worker) > 0, "{worker} counts none");
    }
    (source, server)
}

#[test]
fn a_worker_that_moves_is_used_again_within_seconds() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    let host = field.prepare_host(INSIDE).expect("host");
    let mut router = field.put_behind_router(&host, PORTS).expect("a router");
    let (source, server) = start_workers(&mut field, &host);

    let into = field.operator().work("copy");
    let transfer = download(&field, server.port(), &into, RATE).name("transfer");
    let mut transfer = transfer.spawn().expect("starts");
    wait_for_more(&into);
    let connections = server.connections();

    // Other ports at the same address, then another address.
    for addr in [OUTSIDE, ELSEWHERE] {
        let changed = Instant::now();
        router.map_to(addr, OTHER_PORTS).expect("rules");
        println!("NAT changed to {addr}, {} bytes had come", arrived(&into));
        wait_until_used(&field, INSIDE, changed);
        wait_for_more(&into);
        assert!(
            router.mapped().expect("counter") > 0,
            "it still has its old mapping"
        );
        assert!(transfer.is_running(), "the transfer was over before");
    }
    wait_until_remembered(&field, MOVER);
    let started = move_worker(&mut field);
    wait_until_used(&field, MOVER, started);

    transfer.finish(USUAL).expect("ends").expect_code(0);
    assert_eq!(server.connections(), connections, "in one go");
    assert_eq!(sha256(&into).expect("sum"), sha256(&source).expect("sum"));
    for worker in WORKERS {
        wait_until_direct(&field, worker);
    }
    field.assert_logs_clean(&[]);
}

/// As a laptop does that takes its network along: the process knows nothing of it beforehand.
#[test]
fn a_running_worker_whose_address_changes_is_used_again_and_keeps_what_is_open() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    let host = field.prepare_host(INSIDE).expect("host");
    let (source, server) = start_workers(&mut field, &host);
    let into = field.operator().work("copy");
    let transfer = download(&field, server.port(), &into, RATE).name("transfer");
    let mut transfer = transfer.spawn().expect("starts");
    wait_for_more(&into);
    let connections = server.connections();

    // One that something is open through; and one that nobody uses at that moment, which must find
    // out by itself.
    for (worker, new) in [(INSIDE, NEW_ADDR), (MOVER, OTHER_NEW_ADDR)] {
        let former = field.addr(worker);
        let changed = Instant::now();
        change_addr(field.host(worker), former, new);
        wait_until_relayed_from(&field, worker, new, changed);
        wait_until_used(&field, worker, changed);
        wait_for_more(&into);
        assert!(transfer.is_running(), "the transfer was over before");
    }
    transfer.finish(USUAL).expect("ends").expect_code(0);
    assert_eq!(server.connections(), connections, "in one go");
    assert_eq!(sha256(&into).expect("sum"), sha256(&source).expect("sum"));
    for worker in WORKERS {
        wait_until_direct(&field, worker);
    }
    // And when nothing was on the way between it and who asks next, for a while.
    wait_until_idle(&field, MOVER);
    let changed = Instant::now();
    change_addr(field.host(MOVER), OTHER_NEW_ADDR, THIRD_ADDR);
    wait_until_used(&field, MOVER, changed);
    wait_until_direct(&field, MOVER);
    field.assert_logs_clean(&[]);
}
