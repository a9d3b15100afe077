//! Workers with a TUN device: what the machine looks like before, meanwhile and after; what goes
//! through; and what holds when the coordinator, the process or the machine's address goes.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::cli::USUAL;
use integration::field::overlay_addr_of_role;
use integration::{Field, Layout};
use mesh_testkit::{Host, Need, eventually, needs};
use serde_json::Value;

mod machine;
mod traffic;
mod troubles;

use machine::{assert_same, device, look, settled, without_device};
use traffic::{
    WHILE, assert_bytes_come_back, finish_iperf, lost, ping, serve_iperf, start_iperf, times,
    wait_for_ping,
};

const NEEDED: [Need; 6] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("nft"),
    Need::Program("curl"),
    Need::Program("ping"),
    Need::Program("iperf3"),
];
const SOON: Duration = Duration::from_secs(30);
/// What the acceptance gives a worker that comes back.
const BACK: Duration = Duration::from_secs(5);
const DEVICE: &str = "mesh0";
/// Where a router's NAT moves to, and the ports that it gives.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 201);
const PORTS: RangeInclusive<u16> = 30_000..=30_999;

/// What may be done to a device behind the agent's back, each with the one line it may write.
const HARM: [(&[&str], &str); 3] = [
    (&["link", "delete", DEVICE], "somebody removed it"),
    (&["link", "set", DEVICE, "down"], "somebody set it down"),
    (
        &["-4", "addr", "flush", "dev", DEVICE],
        "somebody took an address from it",
    ),
];

/// Both overlay addresses of a worker, IPv4 first.
fn addrs_of(field: &Field, worker: &str) -> [IpAddr; 2] {
    let status = field.worker(worker).status().expect("status");
    ["v4", "v6"].map(|family| {
        let addr = status["addrs"][family].as_str().expect("an address");
        addr.parse().expect("an address")
    })
}

/// The index that the system gave the device; `None` while it has none.
fn index_of(host: &Host) -> Option<u64> {
    let shown = host.spec("ip").args(["-j", "link", "show", DEVICE]);
    let links: Value = serde_json::from_str(&shown.run(USUAL).expect("ip runs").stdout).ok()?;
    links[0]["ifindex"].as_u64()
}

fn stop(field: &mut Field, worker: &str, allowed: &[&str]) {
    let mut child = field.worker_mut(worker).take_child();
    child.terminate().expect("signalled");
    child.finish(SOON).expect("ends").expect_code(0);
    child.assert_log_clean(allowed);
}

#[test]
fn the_machine_is_as_it_was_after_a_stop_and_after_a_crash() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    field.add_worker("other", "default", &[]);
    field.join_worker("one", "default", &["net=tun"]);
    let host = field.worker("one").host().clone();
    assert_refusals_name_the_next_command(&field, &host);
    let before = settled(&host);
    // The one right that it needs, and no other.
    let only = [
        "setpriv",
        "--bounding-set=-all,+net_admin",
        "--inh-caps=-all",
        "--",
    ];
    let run = field
        .worker("one")
        .behind(&only, "run")
        .name("only-net-admin");
    let mut run = run.spawn().expect("starts");
    run.wait_for_line(": ready ", SOON);
    run.terminate().expect("signalled");
    run.finish(SOON).expect("ends").expect_code(0);
    assert_same("after SIGTERM, with one right", &before, &look(&host));

    field.worker_mut("one").start();
    let own = addrs_of(&field, "one");
    let other = addrs_of(&field, "other");
    let core = field.addr("core");
    // The gateway and the deploy-manager are peers, and so is a worker of the same owner.
    let roles = ["gateway", "deployer"]
        .map(|role| IpAddr::from(overlay_addr_of_role(field.operator(), "default", role)));
    let during = eventually("the device has its addresses and routes", SOON, || {
        let (mtu, addrs, routes) = device(&host)?;
        ensure!(mtu == 1280 && addrs == own, "{mtu} {addrs:?}");
        let wanted = other.iter().chain(&roles).all(|ip| routes.contains(ip));
        ensure!(wanted && routes.len() == 6, "{routes:?}");
        Ok(settled(&host))
    });
    for (command, shown) in &before {
        match during.get(command) {
            Some(now) if command.starts_with("ip -j") => {
                let (was, is) = (without_device(shown, ""), without_device(now, DEVICE));
                assert_eq!(was, is, "{command}");
            }
            Some(now) if command.starts_with("sysctl") => {
                let foreign = |line: &&str| !line.contains(DEVICE);
                let is: Vec<&str> = now.lines().filter(foreign).collect();
                assert_eq!(shown.lines().collect::<Vec<_>>(), is);
            }
            now => assert_eq!(now, Some(shown), "{command}"),
        }
    }
    let route = host.spec("ip").args(["route", "get", &core.to_string()]);
    let route = route.run(USUAL).expect("runs").expect_code(0);
    assert!(route.stdout.contains("dev eth0"), "{}", route.stdout);
    let status = field.worker("one").run("status", &[]);
    assert!(
        status.stdout.contains("by mesh0 (6 routes)"),
        "{}",
        status.stdout
    );
    wait_for_ping(&host, other[0], SOON);

    assert_mended(&host, other);
    stop(&mut field, "one", &HARM.map(|(_, told)| told));
    assert_same("after SIGTERM", &before, &look(&host));

    field.worker_mut("one").start();
    wait_for_ping(&host, other[0], SOON);
    let mut killed = field.worker_mut("one").take_child();
    killed.kill().expect("killed");
    let begun = Instant::now();
    // At once: what the killed one had may still be there.
    field.worker_mut("one").start();
    println!("ready {:?} after SIGKILL", begun.elapsed());
    wait_for_ping(&host, other[0], SOON);
    stop(&mut field, "one", &[]);
    assert_same("after SIGKILL, a start and a stop", &before, &look(&host));

    // And without any start: the device was the process's own.
    field.worker_mut("one").start();
    wait_for_ping(&host, other[0], SOON);
    field.worker_mut("one").take_child().kill().expect("killed");
    let begun = Instant::now();
    eventually("the device goes with its process", BACK, || {
        let now = look(&host);
        ensure!(before == now, "{now:?}");
        Ok(())
    });
    println!("nothing is left {:?} after SIGKILL", begun.elapsed());
    field.assert_logs_clean(&[]);
}

/// Whatever somebody does to the device: it is made again, with what it had, or set back.
fn assert_mended(host: &Host, other: [IpAddr; 2]) {
    for (harm, told) in HARM {
        let index = index_of(host);
        let done = host.spec("ip").args(harm);
        done.run(USUAL).expect("runs").expect_code(0);
        eventually("another device is there", SOON, || {
            let now = index_of(host);
            ensure!(now.is_some() && now != index, "not made again: {told}");
            Ok(())
        });
        println!(
            "{told}: it is back and pings after {:?}",
            wait_for_ping(host, other[1], SOON)
        );
        wait_for_ping(host, other[0], SOON);
    }
    let longer = ["link", "set", DEVICE, "mtu", "1500"];
    let done = host.spec("ip").args(longer).run(USUAL);
    done.expect("runs").expect_code(0);
    eventually("the MTU is set back", SOON, || {
        let (mtu, ..) = device(host)?;
        ensure!(mtu == 1280, "{mtu}");
        Ok(())
    });
}

/// Without rights, without /dev/net/tun, with the name taken.
fn assert_refusals_name_the_next_command(field: &Field, host: &Host) {
    let refused = |name: &str, wrapper: &[&str], words: &str| {
        let run = field.worker("one").behind(wrapper, "run");
        let begun = Instant::now();
        let ran = run.name(name).run(USUAL).expect("runs");
        assert_eq!(ran.code, Some(1), "{}", ran.all());
        assert!(ran.stderr.contains(words), "{}", ran.all());
        println!("{name}, after {:?}: {}", begun.elapsed(), ran.stderr.trim());
    };
    let no_rights = ["setpriv", "--bounding-set=-net_admin", "--"];
    refused("no-rights", &no_rights, "setcap cap_net_admin+ep");
    let hide = r#"mount -t tmpfs none /dev/net && exec "$@""#;
    let no_device = ["unshare", "--mount", "sh", "-c", hide, "sh"];
    refused("no-device", &no_device, "modprobe tun");
    let ip = |words: &[&str]| {
        let ran = host.spec("ip").args(words).run(USUAL);
        ran.expect("runs").expect_code(0);
    };
    ip(&["link", "add", DEVICE, "type", "bridge"]);
    refused("taken", &["env"], "ip link delete mesh0");
    // It was not ours to remove.
    ip(&["link", "delete", DEVICE]);
}

#[test]
fn pings_and_connections_go_on_without_coordinator_and_over_a_move() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    for name in ["one", "two"] {
        field.add_worker(name, "default", &["net=tun"]);
    }
    field.add_worker("plain", "default", &[]);
    let hosts = ["one", "two"].map(|name| field.worker(name).host().clone());
    let [one, two] = &hosts;
    let (to_one, to_two) = (addrs_of(&field, "one"), addrs_of(&field, "two"));
    let to_plain = addrs_of(&field, "plain");
    let server = serve_iperf(&field, "two");

    // The kernel answers for a machine with a device, the agent for one without.
    for to in to_two.iter().chain(&to_plain) {
        wait_for_ping(one, *to, SOON);
        let ran = ping(one, *to, &["-c", "20", "-i", "0.05"]).expect_code(0);
        assert!(lost(&ran) <= 1, "{}", ran.stdout);
        println!("ping {to}: {}", times(&ran));
    }
    // Larger than what fits one packet of the overlay, in fragments.
    ping(one, to_two[0], &["-c", "2", "-s", "4000"]).expect_code(0);
    for to in to_two {
        for way in [&[][..], &["--reverse"]] {
            let (all, _) = finish_iperf(start_iperf(one, to, 2, way));
            println!("iperf3 {to} {way:?}: {all:.0} Mbit/s");
            assert!(all > 1.0, "{all} Mbit/s to {to}");
        }
    }
    assert_bytes_come_back(&field, one, to_two);
    assert_published_is_served(&field, one, to_two[0]);

    // The coordinator is killed; pings and a connection that runs notice nothing.
    let running = start_iperf(one, to_two[0], WHILE, &["--bitrate", "20M"]);
    ping(one, to_two[0], &["-c", "10", "-i", "0.1"]).expect_code(0);
    let pings = one
        .spec("ping")
        .args(["-n", "-i", "0.1", "-c", "40", "-W", "2"]);
    let mut pings = pings.arg(to_two[1].to_string()).spawn().expect("starts");
    field.take_service("coordinator").kill().expect("killed");
    let ran = pings.finish(USUAL).expect("ends").expect_code(0);
    assert!(lost(&ran) <= 1, "{}", ran.stdout);
    let (all, last) = finish_iperf(running);
    println!(
        "coordinator killed: {}; iperf3 {all:.0} Mbit/s, {last:.0} at last",
        times(&ran)
    );
    assert!(last > 10.0, "{last} Mbit/s in the last seconds");

    // One of them moves, and its worker with it, to another address and port, the coordinator
    // being away: it knows its peers from its stored netmap, and they learn from what it sends.
    let mut killed = field.worker_mut("two").take_child();
    killed.kill().expect("killed");
    let former = format!("{}/24", field.addr("two"));
    for words in [
        ["addr", "del", &former, "dev", "eth0"],
        ["addr", "add", "10.90.0.77/24", "dev", "eth0"],
    ] {
        two.spec("ip")
            .args(words)
            .run(USUAL)
            .expect("runs")
            .expect_code(0);
    }
    let moved = "wireguard.listen=0.0.0.0:41820".to_owned();
    field.worker_mut("two").add_settings(&[moved]);
    let begun = Instant::now();
    field.worker_mut("two").start();
    let ready = begun.elapsed();
    let back = to_two.map(|to| {
        wait_for_ping(one, to, BACK);
        begun.elapsed()
    });
    println!("moved without a coordinator: ready {ready:?} after its start, pings again {back:?}");
    let in_time = back.iter().all(|back| *back < BACK);
    assert!(in_time, "pings again {back:?} after its start");
    for to in to_one {
        ping(two, to, &["-c", "3", "-i", "0.1"]).expect_code(0);
    }
    let (all, _) = finish_iperf(start_iperf(one, to_two[1], 1, &[]));
    println!("iperf3 after the move: {all:.0} Mbit/s");
    drop(server);
    field.assert_logs_clean(&[]);
}

/// A worker behind a router whose address changes, and with it every mapping of its NAT.
#[test]
fn a_connection_survives_that_the_nat_in_between_changes() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    field.add_worker("one", "default", &["net=tun"]);
    let inside = field.prepare_host("inside").expect("host");
    let mut router = field.put_behind_router(&inside, PORTS).expect("a router");
    field.add_worker("inside", "default", &["net=tun"]);
    let one = field.worker("one").host().clone();
    let (to_one, to_inside) = (addrs_of(&field, "one"), addrs_of(&field, "inside"));
    let server = serve_iperf(&field, "one");
    wait_for_ping(&inside, to_one[0], SOON);
    let path = |field: &Field| -> anyhow::Result<String> {
        let status = field.worker("one").status()?;
        let peers = status["peers"].as_array().context("peers")?;
        let peer = peers.iter().find(|peer| peer["name"] == "inside");
        Ok(peer.context("the peer")?["path"].to_string())
    };
    let before = eventually("the path is direct", SOON, || {
        ping(&inside, to_one[0], &["-c", "1"]).success()?;
        let path = path(&field)?;
        ensure!(path.contains("10.90.0.200:"), "{path}");
        Ok(path)
    });

    let running = start_iperf(&inside, to_one[0], WHILE, &["--bitrate", "20M"]);
    ping(&inside, to_one[1], &["-c", "10", "-i", "0.1"]).expect_code(0);
    router.map_to(ELSEWHERE, PORTS).expect("rules");
    let back = wait_for_ping(&one, to_inside[0], BACK);
    let after = eventually("the path is direct again", SOON, || {
        let path = path(&field)?;
        ensure!(path.contains("10.90.0.201:"), "{path}");
        Ok(path)
    });
    let (all, last) = finish_iperf(running);
    println!(
        "NAT changed from {before} to {after}: pings again after {back:?}; the connection moved \
         {all:.0} Mbit/s, {last:.0} at last"
    );
    assert!(last > 10.0, "{last} Mbit/s in the last seconds");
    drop(server);
    field.assert_logs_clean(&[]);
}

/// What the agent itself serves on a machine with a device: console, SSH, a service of its
/// loopback; and a port that is not published is closed, although the machine listens there.
fn assert_published_is_served(field: &Field, one: &Host, to_two: IpAddr) {
    field.wait_for_console("/two/", SOON);
    let ran = field.operator().deploy(&["exec", "uname -n", "two"]);
    assert_eq!(ran.expect_code(0).stdout.trim(), "two");
    let curl = |port: u16| {
        let url = format!("http://{to_two}:{port}/");
        let spec = one.spec("curl").args(["--silent", "--max-time", "3", &url]);
        spec.run(USUAL).expect("curl runs")
    };
    let host = field.worker("two").host();
    let web = integration::Server::start(Some(host), "web", None).expect("server");
    let before = curl(web.port());
    assert_ne!(before.code, Some(0), "not published yet: {}", before.all());
    field.worker("two").publish("web", web.port());
    eventually("the service of the loopback answers", SOON, || {
        curl(web.port()).success()
    });
    let listening = host
        .spec("iperf3")
        .args(["--server", "--forceflush", "--port", "5999"]);
    let listening = listening.spawn().expect("starts");
    listening.wait_for_line("Server listening", SOON);
    let closed = one.spec("iperf3").args(["--client", &to_two.to_string()]);
    let closed = closed.args(["--port", "5999", "--connect-timeout", "1500", "--time", "1"]);
    let closed = closed.run(USUAL).expect("runs");
    assert_ne!(
        closed.code,
        Some(0),
        "the filter let it in: {}",
        closed.all()
    );
}
