//! What is done to the device or lacks on the machine: it is told, what can go on does, and it ends
//! without a hand.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use integration::cli::USUAL;
use integration::{Field, Layout};
use mesh_testkit::{Finished, Host, eventually, needs};
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
    field.add_worker("other", "default", &[]);
    field.add_worker("one", "default", &["net=tun"]);
    let host = field.worker("one").host().clone();
    let other = addrs_of(&field, "other");
    wait_for_ping(&host, other[0], SOON);
    assert_eq!(trouble(&field, "one").expect("status"), None);

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
