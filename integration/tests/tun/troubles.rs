//! What is done to the device or lacks on the machine: it is told, what can go on does, and it ends
//! without a hand.

use std::net::{IpAddr, UdpSocket};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use integration::cli::USUAL;
use integration::field::DERP_PORT;
use integration::findings::finding;
use integration::{Field, Layout, metrics};
use mesh_testkit::{Curl, Finished, Host, eventually, needs};
use serde_json::Value;

use super::machine::device;
use super::traffic::{ping, wait_for_ping};
use super::{DEVICE, NEEDED, SOON, addrs_of, index_of};

/// The device as the agent's status has it, and its line for people.
fn shell(field: &Field, worker: &str) -> anyhow::Result<(Value, String)> {
    let status = field.worker(worker).status()?;
    let shown = field.worker(worker).run("status", &[]).stdout;
    let line = shown
        .lines()
        .find(|line| line.trim_start().starts_with("network "));
    Ok((
        status["shell"].clone(),
        line.context("a line")?.trim().to_owned(),
    ))
}

/// What the status says is wrong with the device.
fn trouble(field: &Field, worker: &str) -> anyhow::Result<Option<String>> {
    let status = field.worker(worker).status()?;
    let findings = status["findings"].as_array().context("findings")?;
    let of_device = findings.iter().find(|one| one["code"] == "tun-trouble");
    Ok(of_device.map(|one| one["what"].to_string()))
}

/// A counter of the agent on this host.
fn counted(host: &Host, name: &str) -> anyhow::Result<u64> {
    let own = Curl::new().on(Some(host));
    let figures = own.get("http://127.0.0.1:9467/metrics")?.ok()?;
    ensure!(figures.contains(name), "{figures}");
    Ok(metrics::count(&figures, &[name]))
}

/// The relay hangs, and more is sent to `to` than all buffers on the way to it hold.
fn assert_counts_what_the_relay_does_not_take(field: &Field, to: IpAddr) {
    const DROPPED: &str = "mesh_agent_relay_tx_dropped_total";

    let host = field.worker("one").host();
    let before = counted(host, DROPPED).expect("metrics");
    let relay = field.service("relay");
    relay.freeze().expect("held");
    let socket = host.enter(|| UdpSocket::bind("0.0.0.0:0")).expect("binds");
    eventually("the rest is dropped and counted", SOON, || {
        for _ in 0..2000 {
            // The device's own queue may be full too.
            let _maybe = socket.send_to(&[0; 1200], (to, 9));
        }
        let now = counted(host, DROPPED)?;
        ensure!(now > before, "{now} after {before}");
        Ok(())
    });
    relay.thaw().expect("let go");
    wait_for_ping(host, to, SOON);
}

/// Who is reached by relay only loses that, and the coordinator still hears of it.
fn assert_told_that_no_path_leads_to_it(field: &Field, one: IpAddr, other: IpAddr) {
    let host = field.worker("one").host();
    let peer = field.worker("other").host();
    let told = || {
        let status = field.worker("other").run("status", &["--json"]);
        finding(&status, "peer-unreached")
    };
    // Ends what is open and lets nothing new begin; the relay hears of the end.
    let to_relay = format!("tcp dport {DERP_PORT} tcp flags & rst != rst");
    for words in [
        "add table inet cut",
        "add chain inet cut out { type filter hook output priority 0; }",
        &format!("add rule inet cut out {to_relay} reject with tcp reset"),
    ] {
        run(host, &["nft", words]);
    }
    let told_of = eventually("who wants something of it tells", SOON, || {
        ping(peer, one, &["-c", "1", "-W", "1"]);
        told()
    });
    let what = told_of["what"].to_string();
    assert!(what.contains("no path leads to one"), "{told_of}");
    run(host, &["nft", "delete table inet cut"]);
    wait_for_ping(peer, one, SOON);
    wait_for_ping(host, other, SOON);
    eventually("and no more", SOON, || {
        let told = told();
        ensure!(told.is_err(), "{told:?}");
        Ok(())
    });
}

fn run(host: &Host, words: &[&str]) -> Finished {
    let spec = host.spec(words[0]).args(&words[1..]);
    spec.run(USUAL).expect("runs").expect_code(0)
}

#[test]
fn a_device_that_is_gone_is_told_and_made_again() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    field.add_worker("other", "default", &["net=tun"]);
    field.add_worker("one", "default", &["net=tun", "wireguard.relay=only"]);
    let host = field.worker("one").host().clone();
    let peer = field.worker("other").host().clone();
    let (one, other) = (addrs_of(&field, "one"), addrs_of(&field, "other"));
    wait_for_ping(&host, other[0], SOON);
    wait_for_ping(&peer, one[0], SOON);
    assert_eq!(trouble(&field, "one").expect("status"), None);
    assert_counts_what_the_relay_does_not_take(&field, other[0]);
    assert_told_that_no_path_leads_to_it(&field, one[0], other[0]);
    let refused = "mesh_agent_device_refused_packets_total";
    let before = counted(&host, refused).expect("metrics");

    // Somebody removes it and takes its name before the agent can have it again.
    field.worker("one").child().freeze().expect("held");
    run(&host, &["ip", "link", "delete", DEVICE]);
    run(&host, &["ip", "link", "add", DEVICE, "type", "bridge"]);
    field.worker("one").child().thaw().expect("let go");
    let told = eventually("the status says so", SOON, || {
        let told = trouble(&field, "one")?.context("nothing is wrong")?;
        ensure!(told.contains("is there already"), "{told}");
        Ok(told)
    });
    for words in [
        "mesh0 is gone",
        "ip link delete mesh0",
        "made again by itself",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let (status, line) = shell(&field, "one").expect("status");
    assert_eq!(
        (&status["present"], &status["routes"]),
        (&false.into(), &0.into())
    );
    assert!(line.contains("mesh0 is gone, to be made again"), "{line}");
    let ran = ping(&host, other[0], &["-c", "1", "-W", "1"]);
    assert_ne!(ran.code, Some(0), "by which way? {}", ran.all());
    // What comes for the machine meanwhile has nowhere to go, and is counted.
    eventually("packets for the machine are counted", SOON, || {
        let ran = ping(&peer, one[0], &["-c", "1", "-W", "1"]);
        assert_ne!(ran.code, Some(0), "by which way? {}", ran.all());
        let now = counted(&host, refused)?;
        ensure!(now > before, "{now} after {before}");
        Ok(())
    });
    field.wait_for_console("/one/", SOON);

    let begun = Instant::now();
    run(&host, &["ip", "link", "delete", DEVICE]);
    for to in other {
        wait_for_ping(&host, to, SOON);
    }
    println!("made again {:?} after its name was free", begun.elapsed());
    eventually("nothing is wrong any more", SOON, || {
        ensure!(trouble(&field, "one")?.is_none(), "still told");
        let (status, line) = shell(&field, "one")?;
        ensure!(status["present"] == true, "{status}");
        ensure!(line.contains("by mesh0 (6 routes)"), "{line}");
        Ok(())
    });

    // A node that is removed from its network has no device, and its agent, which stays to say
    // what happened, does not claim one.
    let words = ["node", "remove", "--yes", "one"];
    field.operator().mesh(&words).expect_code(0);
    eventually(
        "the removed node's device is gone, and it says so",
        SOON,
        || {
            ensure!(index_of(&host).is_none(), "the device is there");
            let (status, line) = shell(&field, "one")?;
            ensure!(status["present"] == false, "{status}");
            ensure!(line.contains("mesh0 is gone"), "{line}");
            Ok(())
        },
    );
    field.assert_logs_clean(&["somebody removed it", "is there already"]);
}

#[test]
fn a_machine_without_ipv6_is_on_the_mesh_by_ipv4_until_it_has_it() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    field.add_worker("other", "default", &["net=tun"]);
    let host = field.prepare_host("old").expect("host");
    let ipv6 = |off: u8| {
        for of in ["default", "all"] {
            let set = format!("net.ipv6.conf.{of}.disable_ipv6={off}");
            run(&host, &["sysctl", "-q", "-w", &set]);
        }
    };
    ipv6(1);
    field.add_worker("old", "default", &["net=tun"]);
    let (old, other) = (addrs_of(&field, "old"), addrs_of(&field, "other"));
    let peer = field.worker("other").host().clone();
    // Gateway, deploy-manager and the other worker.
    let has = |wanted: &[IpAddr], routes: usize, line: &str| {
        eventually(line, SOON, || {
            let (_, addrs, to) = device(&host)?;
            ensure!(addrs == wanted && to.len() == routes, "{addrs:?} {to:?}");
            let (status, told) = shell(&field, "old")?;
            ensure!(status["ipv6"] == (wanted.len() == 2), "{status}");
            ensure!(told.ends_with(line), "{told}");
            Ok(())
        });
    };
    has(&old[..1], 3, "by mesh0 (3 routes, without IPv6)");
    assert_eq!(trouble(&field, "old").expect("status"), None);
    wait_for_ping(&host, other[0], SOON);
    wait_for_ping(&peer, old[0], SOON);
    // What the agent itself serves needs no IPv6 of the machine's.
    let console = format!("http://[{}]:9090/old/", old[1]);
    let curl = peer
        .spec("curl")
        .args(["--silent", "--show-error", "--max-time", "5"]);
    let curl = curl.arg(&console).run(USUAL).expect("curl runs");
    curl.expect_code(0);

    ipv6(0);
    has(&old, 6, "by mesh0 (6 routes)");
    wait_for_ping(&host, other[1], SOON);
    wait_for_ping(&peer, old[1], SOON);

    ipv6(1);
    has(&old[..1], 3, "by mesh0 (3 routes, without IPv6)");
    wait_for_ping(&host, other[0], SOON);
    let lines = field.worker("old").child().log().lines();
    let told = lines
        .iter()
        .filter(|line| line.text.contains("without IPv6, as this machine"));
    assert_eq!(told.count(), 2, "once each time");
    field.assert_logs_clean(&["somebody took an address from it"]);
}
