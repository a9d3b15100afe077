//! A router with NAT between one host and the segment of the mesh hosts.
//!
//! ```text
//!  mesh hosts 10.90.0.0/24 ── 10.90.0.200 router 10.92.0.1 ── 10.92.0.2 host
//! ```

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use anyhow::Context as _;
use mesh_testkit::Host;

use super::Field;
use crate::cli::USUAL;

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 200);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 92, 0, 1);
const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 92, 0, 2);

/// The router: each connection from inside gets an address and a port of its own outside, and
/// nothing that did not begin inside gets in, nor is it told so.
#[derive(Debug)]
pub struct Router {
    host: Host,
    addr: Ipv4Addr,
}

impl Field {
    /// Takes a host off the mesh hosts' segment and puts it behind a router that is on it.
    pub fn put_behind_router(
        &self,
        inside: &Host,
        ports: RangeInclusive<u16>,
    ) -> anyhow::Result<Router> {
        let host = self.lab.host_on("router", &self.mesh, OUTSIDE)?;
        let segment = self.lab.segment(24)?;
        for (host, addr) in [(&host, GATEWAY), (inside, INSIDE)] {
            self.lab.attach(host, &segment, addr)?;
        }
        sh(
            inside,
            &format!(
                "ip addr flush dev eth0 && ip link set eth0 down && ip route add default via {GATEWAY}"
            ),
        )?;
        sh(&host, "sysctl -q -w net.ipv4.ip_forward=1")?;
        host.nft(
            "table ip router {\n\
               chain outgoing { type nat hook postrouting priority 100; }\n\
               chain own { type filter hook input priority 0; iifname \"eth0\" drop; }\n\
             }\n",
        )?;
        let mut router = Router {
            host,
            addr: OUTSIDE,
        };
        router.map_to(OUTSIDE, ports)?;
        Ok(router)
    }
}

impl Router {
    /// From now on what comes from inside leaves from this address and these ports. What was
    /// there before is forgotten.
    pub fn map_to(&mut self, addr: Ipv4Addr, ports: RangeInclusive<u16>) -> anyhow::Result<()> {
        if addr != self.addr {
            let former = self.addr;
            sh(
                &self.host,
                &format!("ip addr del {former}/24 dev eth0 && ip addr add {addr}/24 dev eth0"),
            )?;
            self.addr = addr;
        }
        let (first, last) = (ports.start(), ports.end());
        self.host.nft(&format!(
            "flush chain ip router outgoing\n\
             add rule ip router outgoing oifname \"eth0\" meta l4proto {{ tcp, udp }} \
             counter snat to {addr}:{first}-{last}\n"
        ))?;
        self.host.forget_connections()
    }

    /// How many connections were mapped since [`Router::map_to`].
    pub fn mapped(&self) -> anyhow::Result<u64> {
        let list = ["list", "chain", "ip", "router", "outgoing"];
        let ran = self.host.spec("nft").args(list).run(USUAL)?.success()?;
        let mut words = ran.stdout.split_whitespace();
        words.find(|word| *word == "packets");
        let count = words.next().context("a counter")?;
        Ok(count.parse()?)
    }
}

fn sh(host: &Host, script: &str) -> anyhow::Result<()> {
    let ran = host.spec("sh").args(["-c", script]).run(USUAL)?;
    ran.success()?;
    Ok(())
}
