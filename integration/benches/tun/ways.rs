//! The ways from the first machine to the second: ours, wireguard-go, and none but the wire.

use std::net::IpAddr;

use anyhow::Context as _;
use integration::Field;
use mesh_testkit::{Child, Host, eventually};

use super::LIMIT;

/// A way to the second machine.
pub(super) struct Way {
    pub(super) name: &'static str,
    /// For the report.
    pub(super) what: String,
    /// The second machine's addresses on it: IPv4, IPv6.
    pub(super) to: [IpAddr; 2],
    /// The programs that carry it.
    pids: Vec<i32>,
    /// Those that were started for it.
    _programs: Vec<Child>,
}

/// Clock ticks a second (`sysconf(_SC_CLK_TCK)`), the same on every Linux of today.
const TICKS: f64 = 100.0;

impl Way {
    /// Whether programs carry it, and not the kernel alone.
    pub(super) fn is_measured(&self) -> bool {
        !self.pids.is_empty()
    }

    /// Seconds that its programs have used so far, within themselves and in the kernel.
    pub(super) fn processor_time(&self) -> anyhow::Result<f64> {
        let mut ticks = 0;
        for pid in &self.pids {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // Behind the program's name, which may hold anything (proc_pid_stat(5)).
            let (_, rest) = stat.rsplit_once(')').context("no stat")?;
            let fields: Vec<&str> = rest.split_whitespace().collect();
            for at in [11, 12] {
                ticks += fields.get(at).context("too short")?.parse::<u64>()?;
            }
        }
        Ok(ticks as f64 / TICKS)
    }
}

/// Ours first.
pub(super) fn all(field: &Field) -> anyhow::Result<Vec<Way>> {
    Ok(vec![mesh(field)?, wireguard_go(field)?, wire(field)?])
}

fn mesh(field: &Field) -> anyhow::Result<Way> {
    let status = field.worker("two").status()?;
    let addr = |family: &str| -> anyhow::Result<IpAddr> {
        let addr = status["addrs"][family].as_str().context("an address")?;
        Ok(addr.parse()?)
    };
    let pids = ["one", "two"].map(|name| field.worker(name).child().pid());
    Ok(Way {
        name: "mesh",
        what: "worker-agent --net tun, MTU 1280".into(),
        to: [addr("v4")?, addr("v6")?],
        pids: pids.into(),
        _programs: Vec::new(),
    })
}

/// The same protocol by its reference implementation in user space.
fn wireguard_go(field: &Field) -> anyhow::Result<Way> {
    let version = field
        .host("core")
        .spec("wireguard-go")
        .arg("--version")
        .run(LIMIT)?;
    let version = version.stdout.lines().next().unwrap_or_default().to_owned();
    let hosts = ["one", "two"].map(|name| field.worker(name).host());
    let mut programs = Vec::new();
    let mut keys = Vec::new();
    for (host, device) in hosts.into_iter().zip(DEVICES) {
        let program = host
            .spec("wireguard-go")
            .args(["--foreground", device])
            .spawn()?;
        programs.push(program);
        eventually("wireguard-go is there", LIMIT, || {
            run(host, &["wg", "show", device], "")
        });
        let private = run(host, &["wg", "genkey"], "")?;
        let public = run(host, &["wg", "pubkey"], &private)?;
        keys.push((private, public.trim().to_owned()));
    }
    for at in 0..2 {
        let (host, device, other) = (hosts[at], DEVICES[at], 1 - at);
        let endpoint = format!("{}:{WG_PORT}", field.addr(["one", "two"][other]));
        let port = WG_PORT.to_string();
        let set = [
            "wg",
            "set",
            device,
            "listen-port",
            &port,
            "private-key",
            "/dev/stdin",
            "peer",
            &keys[other].1,
            "allowed-ips",
            "0.0.0.0/0,::/0",
            "endpoint",
            &endpoint,
        ];
        run(host, &set, &keys[at].0)?;
        run(
            host,
            &["ip", "link", "set", device, "mtu", "1280", "up"],
            "",
        )?;
        let own = [
            format!("10.99.0.{}/24", at + 1),
            format!("fd00:99::{}/64", at + 1),
        ];
        for addr in &own {
            let mut words = vec!["ip", "addr", "add", addr, "dev", device];
            words.extend(addr.contains(':').then_some("nodad"));
            run(host, &words, "")?;
        }
    }
    Ok(Way {
        name: "wireguard-go",
        what: format!("{version}, MTU 1280"),
        to: ["10.99.0.2".parse()?, "fd00:99::2".parse()?],
        pids: programs.iter().map(Child::pid).collect(),
        _programs: programs,
    })
}

/// Their control sockets are in one directory, so their names differ.
const DEVICES: [&str; 2] = ["bench-wg1", "bench-wg2"];
const WG_PORT: u16 = 51_999;

/// What carries the others: the most that is to be had here.
fn wire(field: &Field) -> anyhow::Result<Way> {
    for (at, name) in ["one", "two"].into_iter().enumerate() {
        let addr = format!("fd00:90::{}/64", at + 1);
        let words = ["ip", "addr", "add", &addr, "dev", "eth0", "nodad"];
        run(field.worker(name).host(), &words, "")?;
    }
    Ok(Way {
        name: "no tunnel",
        what: "virtual Ethernet, MTU 1500, nothing encrypted".into(),
        to: [field.addr("two").into(), "fd00:90::2".parse()?],
        pids: Vec::new(),
        _programs: Vec::new(),
    })
}

fn run(host: &Host, words: &[&str], input: &str) -> anyhow::Result<String> {
    let spec = host.spec(words[0]).args(&words[1..]).stdin(input);
    Ok(spec.run(LIMIT)?.success()?.stdout)
}
