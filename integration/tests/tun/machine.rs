//! What a machine's network looks like, and whether two looks are the same.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use integration::cli::USUAL;
use mesh_testkit::{Host, eventually};
use serde_json::Value;

use super::{DEVICE, SOON};

/// Everything of a machine's network that could be left changed, by the command that shows it.
pub(super) type Machine = BTreeMap<&'static str, String>;

pub(super) fn look(host: &Host) -> Machine {
    [
        "ip -j -d link",
        "ip -j addr",
        "ip -j -4 route show table all",
        "ip -j -6 route show table all",
        "ip -j -4 rule",
        "ip -j -6 rule",
        "nft list ruleset",
        "sysctl -a -r ^net\\.ipv[46]\\.(conf|ip_forward)",
        "cat /etc/resolv.conf",
    ]
    .into_iter()
    .map(|command| {
        let mut words = command.split(' ');
        let program = words.next().expect("a word");
        let shown = host.spec(program).args(words).run(USUAL);
        (command, shown.expect("runs").expect_code(0).stdout)
    })
    .collect()
}

/// The machine once its own addresses are settled.
pub(super) fn settled(host: &Host) -> Machine {
    eventually("no address is tentative", SOON, || {
        let machine = look(host);
        ensure!(!machine["ip -j addr"].contains("tentative"), "{machine:?}");
        Ok(machine)
    })
}

pub(super) fn assert_same(what: &str, before: &Machine, now: &Machine) {
    for (command, shown) in before {
        assert_eq!(shown, &now[command], "{what}: {command}");
    }
}

/// Lists that `ip -j` prints, without what belongs to the device.
pub(super) fn without_device(shown: &str, own: &str) -> Vec<Value> {
    let list: Vec<Value> = serde_json::from_str(shown).expect("JSON");
    let is_own = |entry: &Value| entry["dev"] == own || entry["ifname"] == own;
    list.into_iter().filter(|entry| !is_own(entry)).collect()
}

/// What the device has: MTU, addresses, destinations of routes in the main table.
pub(super) fn device(host: &Host) -> anyhow::Result<(u64, Vec<IpAddr>, Vec<IpAddr>)> {
    let machine = look(host);
    let list: Vec<Value> = serde_json::from_str(&machine["ip -j addr"])?;
    let device = list.iter().find(|link| link["ifname"] == DEVICE);
    let device = device.context("no device")?;
    let ip = |text: &Value| -> anyhow::Result<IpAddr> {
        Ok(text.as_str().context("an address")?.parse()?)
    };
    let addrs = device["addr_info"].as_array().context("addresses")?;
    let addrs = addrs
        .iter()
        .map(|addr| ip(&addr["local"]))
        .collect::<Result<_, _>>()?;
    let mut routes = Vec::new();
    for command in [
        "ip -j -4 route show table all",
        "ip -j -6 route show table all",
    ] {
        let list: Vec<Value> = serde_json::from_str(&machine[command])?;
        for route in list.iter().filter(|route| route["dev"] == DEVICE) {
            // The kernel's own entries for addresses and multicast are in the table `local`.
            if route["table"] != "local" {
                routes.push(ip(&route["dst"])?);
            }
        }
    }
    Ok((device["mtu"].as_u64().context("an MTU")?, addrs, routes))
}
