//! Labs: hosts in network namespaces, joined by bridges.
//!
//! Every bridge lies in a namespace of the lab's own, since bridged frames of the root namespace
//! may be subject to its firewall. Names are unique per process, nothing of the root namespace is
//! touched, and all of it is removed when the [`Lab`] is dropped.

mod conntrack;

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::capture::Capture;
use crate::child::Spec;

const TOOL_TIMEOUT: Duration = Duration::from_secs(20);
const NAMESPACES: &str = "/run/netns";
const PREFIX: &str = "mt";

/// A set of hosts and segments; removed with everything that runs in it when dropped.
#[derive(Debug)]
pub struct Lab {
    id: String,
    switch: String,
    namespaces: Mutex<Vec<String>>,
    ports: AtomicU32,
    segments: AtomicU32,
}

/// An Ethernet segment (a bridge) that hosts attach to.
#[derive(Debug, Clone)]
pub struct Segment {
    bridge: String,
    switch: String,
    prefix_len: u8,
}

/// A host: a network namespace and a host name. Clones mean the same host.
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    namespace: String,
}

/// Packets dropped at a host until this is lifted or dropped.
#[derive(Debug)]
#[must_use = "the rule is lifted when this is dropped"]
pub struct Blocked {
    host: Host,
    table: String,
    lifted: bool,
}

impl Lab {
    /// An empty lab. Needs root, `ip`, `nft`, `tcpdump`.
    pub fn new() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{PREFIX}{}n{count}", std::process::id());
        let lab = Self {
            switch: format!("{id}-switch"),
            id,
            namespaces: Mutex::default(),
            ports: AtomicU32::new(0),
            segments: AtomicU32::new(0),
        };
        lab.namespace(&lab.switch)?;
        Ok(lab)
    }

    fn namespace(&self, name: &str) -> anyhow::Result<()> {
        ip(&["netns", "add", name])?;
        self.namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(name.to_owned());
        ip(&["-n", name, "link", "set", "lo", "up"])
    }

    /// A new segment, to which hosts attach with addresses of `prefix_len` bits.
    pub fn segment(&self, prefix_len: u8) -> anyhow::Result<Segment> {
        let bridge = format!("br{}", self.segments.fetch_add(1, Ordering::Relaxed));
        // Without forward delay: a port forwards as soon as it is up.
        ip(&[
            "-n",
            &self.switch,
            "link",
            "add",
            &bridge,
            "type",
            "bridge",
            "forward_delay",
            "0",
        ])?;
        ip(&["-n", &self.switch, "link", "set", &bridge, "up"])?;
        Ok(Segment {
            bridge,
            switch: self.switch.clone(),
            prefix_len,
        })
    }

    /// A new host with loopback only. Processes on it see `name` as their host name.
    pub fn host(&self, name: &str) -> anyhow::Result<Host> {
        let namespace = format!("{}-{name}", self.id);
        self.namespace(&namespace)?;
        Ok(Host {
            name: name.to_owned(),
            namespace,
        })
    }

    /// Attaches `host` to `segment` by a new interface, `eth0` for its first one. Returns the
    /// interface's name.
    pub fn attach(&self, host: &Host, segment: &Segment, addr: Ipv4Addr) -> anyhow::Result<String> {
        let present = ip_output(&["-n", &host.namespace, "-o", "link", "show", "type", "veth"])?;
        let interface = format!("eth{}", present.lines().count());
        let port = format!("p{}", self.ports.fetch_add(1, Ordering::Relaxed));
        let namespace = host.namespace.as_str();
        ip(&[
            "link",
            "add",
            &port,
            "netns",
            &segment.switch,
            "type",
            "veth",
            "peer",
            "name",
            &interface,
            "netns",
            namespace,
        ])?;
        ip(&[
            "-n",
            &segment.switch,
            "link",
            "set",
            &port,
            "master",
            &segment.bridge,
            "up",
        ])?;
        let addr = format!("{addr}/{}", segment.prefix_len);
        ip(&["-n", namespace, "addr", "add", &addr, "dev", &interface])?;
        ip(&["-n", namespace, "link", "set", &interface, "up"])?;
        Ok(interface)
    }

    /// A host attached to one segment.
    pub fn host_on(&self, name: &str, segment: &Segment, addr: Ipv4Addr) -> anyhow::Result<Host> {
        let host = self.host(name)?;
        self.attach(&host, segment, addr)?;
        Ok(host)
    }

    /// Captures everything that crosses a segment.
    pub fn capture(&self, segment: &Segment, filter: &str) -> anyhow::Result<Capture> {
        let switch = Host {
            name: "switch".to_owned(),
            namespace: segment.switch.clone(),
        };
        Capture::start(&switch, &segment.bridge, filter)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let namespaces = self
            .namespaces
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for namespace in namespaces.drain(..) {
            remove(&namespace);
        }
    }
}

impl Host {
    /// Its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its network namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A program to run on this host.
    pub fn spec(&self, program: impl AsRef<std::ffi::OsStr>) -> Spec {
        Spec::new(program).host(self)
    }

    /// Runs `action` on a thread of its own whose sockets, and whose child processes, are on this
    /// host. A panic inside goes on outside.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let path = Path::new(NAMESPACES).join(&self.namespace);
        let name = thread::current().name().unwrap_or("test").to_owned();
        thread::scope(|scope| {
            let entered = thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, || {
                    let namespace = File::open(&path).expect("the lab is still there");
                    setns(&namespace, CloneFlags::CLONE_NEWNET).expect("root enters a namespace");
                    action()
                })
                .expect("a thread starts");
            entered
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Feeds a script to `nft -f -` on this host.
    pub fn nft(&self, script: &str) -> anyhow::Result<()> {
        self.spec("nft")
            .args(["-f", "-"])
            .stdin(script)
            .run(TOOL_TIMEOUT)?
            .success()?;
        Ok(())
    }

    /// Drops, in both directions, what matches any of the nft expressions, such as
    /// `udp dport 51820` or `meta l4proto udp ip saddr 10.80.0.2`.
    pub fn block(&self, matches: &[String]) -> anyhow::Result<Blocked> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let table = format!("blocked{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let rules: String = matches
            .iter()
            .map(|expression| format!("    {expression} counter drop\n"))
            .collect();
        self.nft(&format!(
            "table inet {table} {{\n\
               chain incoming {{ type filter hook input priority -10;\n{rules}  }}\n\
               chain outgoing {{ type filter hook output priority -10;\n{rules}  }}\n\
             }}\n"
        ))?;
        Ok(Blocked {
            host: self.clone(),
            table,
            lifted: false,
        })
    }

    /// Drops all UDP between this host and `other`, in both directions.
    pub fn block_udp(&self, other: Ipv4Addr) -> anyhow::Result<Blocked> {
        self.block(&[
            format!("meta l4proto udp ip saddr {other}"),
            format!("meta l4proto udp ip daddr {other}"),
        ])
    }

    /// Forgets every connection that passes here, as a NAT does that was switched off and on.
    pub fn forget_connections(&self) -> anyhow::Result<()> {
        self.enter(conntrack::flush)
    }

    /// Captures on one of its interfaces, `any` for all.
    pub fn capture(&self, interface: &str, filter: &str) -> anyhow::Result<Capture> {
        Capture::start(self, interface, filter)
    }
}

impl Blocked {
    /// How many packets were dropped so far.
    pub fn dropped(&self) -> anyhow::Result<u64> {
        let listed = self
            .host
            .spec("nft")
            .args(["list", "table", "inet", &self.table])
            .run(TOOL_TIMEOUT)?
            .success()?
            .stdout;
        let words: Vec<&str> = listed.split_whitespace().collect();
        Ok(words
            .windows(2)
            .filter(|pair| pair[0] == "packets")
            .filter_map(|pair| pair[1].parse::<u64>().ok())
            .sum())
    }

    /// Lets the packets through again.
    pub fn lift(mut self) -> anyhow::Result<()> {
        self.lifted = true;
        self.host
            .nft(&format!("delete table inet {}\n", self.table))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if !self.lifted {
            // The lab may be gone already, and the rule with it.
            drop(
                self.host
                    .nft(&format!("delete table inet {}\n", self.table)),
            );
        }
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    ip_output(args).map(drop)
}

fn ip_output(args: &[&str]) -> anyhow::Result<String> {
    let ran = std::process::Command::new("ip")
        .args(args)
        .output()
        .context("run ip")?;
    anyhow::ensure!(
        ran.status.success(),
        "ip {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// Ends what runs in a namespace, process by process, and removes it.
fn remove(namespace: &str) {
    for pid in ip_output(&["netns", "pids", namespace])
        .unwrap_or_default()
        .lines()
    {
        if let Ok(pid) = pid.trim().parse() {
            // It may have ended by itself in between.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    if let Err(error) = ip(&["netns", "del", namespace]) {
        eprintln!("cannot remove the namespace {namespace}: {error:#}");
    }
}

/// Removes namespaces of tests that were killed before they could.
fn sweep() {
    for entry in std::fs::read_dir(NAMESPACES)
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('n'));
        if let Some((pid, _)) = owner
            && pid.parse::<u32>().is_ok()
            && !Path::new("/proc").join(pid).exists()
        {
            remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need::{Need, needs};

    const NEEDED: [Need; 4] = [
        Need::Root,
        Need::Program("ip"),
        Need::Program("nft"),
        Need::Program("tcpdump"),
    ];

    fn pings(from: &Host, to: Ipv4Addr) -> bool {
        from.enter(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("binds");
            let wait = Some(Duration::from_millis(300));
            socket.set_read_timeout(wait).expect("time limit");
            // A refused packet comes back as an error on the next call.
            let sent = socket
                .connect((to, 9))
                .and_then(|()| socket.send(b"lab-ping"));
            let answer = socket.recv(&mut [0; 8]);
            sent.is_ok()
                && answer.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        })
    }

    #[test]
    fn two_hosts_reach_each_other_until_udp_is_blocked() {
        if !needs(&NEEDED) {
            return;
        }
        let lab = Lab::new().expect("lab");
        let segment = lab.segment(24).expect("segment");
        let (one, two) = (Ipv4Addr::new(10, 80, 0, 1), Ipv4Addr::new(10, 80, 0, 2));
        let a = lab.host_on("a", &segment, one).expect("host a");
        let _b = lab.host_on("b", &segment, two).expect("host b");
        let capture = lab.capture(&segment, "udp").expect("capture");
        crate::eventually("a reaches b", Duration::from_secs(5), || {
            anyhow::ensure!(pings(&a, two), "no answer");
            Ok(())
        });
        let blocked = a.block_udp(two).expect("rule");
        assert!(!pings(&a, two));
        assert!(blocked.dropped().expect("counter") > 0);
        blocked.lift().expect("rule lifted");
        assert!(pings(&a, two));
        let bytes = capture.finish().expect("capture");
        assert!(
            !bytes.is_empty() && bytes.contains(b"lab-ping"),
            "{bytes:?}"
        );
        assert!(!bytes.contains(b"lab-pong"));
    }

    #[test]
    fn processes_see_the_name_and_the_network_of_their_host() {
        if !needs(&NEEDED) {
            return;
        }
        let lab = Lab::new().expect("lab");
        let host = lab.host("worker-node-1").expect("host");
        let ran = host
            .spec("uname")
            .arg("-n")
            .run(TOOL_TIMEOUT)
            .expect("runs");
        assert_eq!(ran.stdout.trim(), "worker-node-1");
        let links = host
            .spec("ip")
            .args(["-o", "link"])
            .run(TOOL_TIMEOUT)
            .expect("runs");
        assert_eq!(links.stdout.lines().count(), 1, "{}", links.stdout);
    }

    #[test]
    fn nothing_is_left_of_a_lab_also_after_a_panic() {
        if !needs(&NEEDED) {
            return;
        }
        let lab = Lab::new().expect("lab");
        let host = lab.host("left").expect("host");
        let sleeper = host.spec("sleep").arg("600").spawn().expect("sleeper");
        let namespace = Path::new(NAMESPACES).join(host.namespace());
        assert!(namespace.exists());
        let panicked = thread::spawn(move || {
            let (_lab, _sleeper) = (lab, sleeper);
            std::panic::resume_unwind(Box::new("as a failed test does"));
        })
        .join();
        assert!(panicked.is_err());
        assert!(!namespace.exists());
    }
}
