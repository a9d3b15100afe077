//! Thousands of connections that say nothing, or say it byte by byte.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::hostile::{Others, closed, load, raise_open_files, resident, silent};
use integration::metrics::count;
use integration::{Cli, MeshUp};
use mesh_testkit::{eventually, rest};

use super::{MIB, addr, tell};

/// Memory of each.
const EACH: u64 = 32 << 10;
/// What a program may use of a core while it has nothing but silent connections, in percent.
const RESTING: u128 = 50;
/// Those who wait longest make room, each time one of so many.
const PART: usize = 64;
/// What says nothing is closed after as long at the coordinator, a relay and SOCKS5.
const SILENCE: Duration = Duration::from_secs(10);
/// How long opening them may take, however busy the machine is: less than they have at the gateway,
/// 75 s.
const WITHIN: Duration = Duration::from_secs(60);
/// What they say who are not quite silent.
const SLOW_HEAD: &[u8] = b"GET /worker-node-1/ HTTP/1.1\r\nHost: localhost\r\nX-Slow: ";

/// Silent connections that come to one place.
struct Crowd {
    what: &'static str,
    to: SocketAddr,
    count: usize,
    /// The first of them begin a request and never end it, a byte at a time.
    slow: usize,
    /// How many there may be at a time; the others make room.
    room: usize,
}

impl Crowd {
    /// Opens them, looks at what they cost and at whether others are served, and closes them.
    fn come(&self, up: &MeshUp) {
        let what = self.what;
        let pid = up.child().pid();
        let before = resident(pid).expect("memory");
        let others = Others::of(up).expect("people");
        let begun = Instant::now();
        let mut streams = silent(self.to, self.slow, WITHIN).expect("connected");
        let mut said = 0;
        while streams.len() < self.count {
            let some = (self.count - streams.len()).min(500);
            let left = WITHIN.saturating_sub(begun.elapsed());
            streams.extend(silent(self.to, some, left).expect("connected"));
            assert!(!left.is_zero(), "{what}: only {} came in", streams.len());
            say(&streams[..self.slow], said);
            said += 1;
        }
        let opened = begun.elapsed();
        let beyond = self.count.saturating_sub(self.room);
        let at_once = resident(pid).expect("memory");
        let closed_early = closed(&streams);
        // On a machine that was slow until here the first have had their time.
        if beyond == 0 && begun.elapsed() < SILENCE {
            assert_eq!(closed_early, 0, "{what}: what was closed costs nothing");
        }
        // While nobody comes any more but those who want something.
        for _ in 0..20 {
            say(&streams[..self.slow], said);
            said += 1;
            rest(Duration::from_millis(100));
        }
        let later = resident(pid).expect("memory");
        let held = at_once.max(later).saturating_sub(before);
        tell(what, others);
        // The least of three: what else goes on in the program comes and goes.
        let busy = (0..3).map(|_| load(pid, Duration::from_secs(1)).expect("time"));
        let busy = busy.min().expect("three");
        let gone = closed(&streams);
        println!(
            "{what}: {} silent connections in {opened:?} took {} MiB and {busy} % of a core; {gone} are closed",
            streams.len(),
            held / MIB,
        );
        let open = self.count.min(self.room) as u64;
        assert!(held < open * EACH + 16 * MIB, "{what}: {} MiB", held / MIB);
        assert!(busy < RESTING, "{what}: {busy} % of a core");
        if beyond > 0 {
            assert!(gone >= beyond, "{what}: {gone} made room for {beyond}");
            // Saying something now and then keeps nobody's place.
            let slow = closed(&streams[..self.slow]);
            let first = self.slow.min(beyond);
            assert!(slow + first / PART >= first, "{what}: {slow} of {first}");
        }
    }
}

/// The next byte of each request. Those that were closed have nobody to hear it.
fn say(slow: &[TcpStream], said: usize) {
    let byte = SLOW_HEAD.get(said).copied().unwrap_or(b'a');
    for mut stream in slow {
        drop(stream.write(&[byte]));
    }
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_stop_nobody() {
    let most = 10_000;
    let open = raise_open_files(most + 6000).expect("a limit");
    assert!(
        open > most + 2000,
        "only {open} files may be open here, and this takes {most}: raise the hard limit (ulimit -Hn)"
    );
    let cli = Cli::new().expect("folders");
    let mut up = MeshUp::demo(&cli);
    let gateway = SocketAddr::from(([127, 0, 0, 1], up.gateway_port()));
    let everywhere = [
        // It waits for 75 s.
        Crowd {
            what: "gateway",
            to: gateway,
            count: 10_000,
            slow: 2_000,
            room: 8_192,
        },
        // The rest close what says nothing after 10 s.
        Crowd {
            what: "coordinator",
            to: addr(&up.ready().coordinator.addr),
            count: 10_000,
            slow: 0,
            room: 20_000,
        },
        Crowd {
            what: "relay",
            to: addr(&up.ready().relay.derp),
            count: 10_000,
            slow: 0,
            room: 65_536,
        },
        Crowd {
            what: "SOCKS5",
            to: up.socks("default"),
            count: 2_000,
            slow: 0,
            room: 1_024,
        },
    ];
    // Those that were closed are gone from the program's table before the next ones come.
    for crowd in everywhere {
        crowd.come(&up);
        eventually("the files are closed", Duration::from_secs(15), || {
            let open = std::fs::read_dir(format!("/proc/{}/fd", up.child().pid()))?.count();
            ensure!(open < 500, "{open} files are open");
            Ok(())
        });
    }
    let metrics = up.metrics().expect("metrics");
    for name in [
        "mesh_gateway_connections_shed_total",
        "mesh_deploy_manager_socks_shed_total",
    ] {
        assert!(count(&metrics, &[name]) > 0, "{name}");
    }
    up.child().assert_log_clean(&[]);
    up.stop().expect("stopped");
}
