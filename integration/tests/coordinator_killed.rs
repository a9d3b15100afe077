//! The coordinator is killed: what is open goes on, what begins finds its way, a worker that starts
//! meanwhile is back at once; and when the coordinator is there again, everybody is, without a storm.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::field::overlay_addr;
use integration::journeys::WORKERS;
use integration::journeys::transfers::{download, through, wait_for_service};
use integration::server::{sha256, write_noise};
use integration::websocket::serve_echo;
use integration::{Field, Layout, Server, WebSocket, metrics};
use mesh_testkit::sshd::{SSHD, ssh_keygen};
use mesh_testkit::{Child, CurlReply, Finished, Need, Sshd, SshdOptions, TestUser, eventually};

const NEEDED: [Need; 7] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("curl"),
    Need::Program("ping"),
    Need::Program("useradd"),
    Need::Program("ssh-keygen"),
    Need::Program(SSHD),
];
/// With a real sshd, which lets somebody in by key, and the services.
const NODE: &str = WORKERS[0];
/// With a TUN device, from which its machine pings, and the agent's own SSH.
const PINGER: &str = WORKERS[1];
/// How commands get to a node.
const WAYS: [&str; 2] = ["socks", "grpc"];
const SOON: Duration = Duration::from_secs(30);
/// What the acceptance gives a worker that comes back.
const BACK: Duration = Duration::from_secs(5);
/// And everybody, when the coordinator is back.
const ALL_BACK: Duration = Duration::from_secs(10);
/// More than all buffers on the way together, so that most of it travels after the kill.
const FILE: usize = 64 << 20;

/// A WebSocket through the gateway, from the clients' segment.
fn open_socket(field: &Field) -> WebSocket {
    let (addr, path) = (field.gateway_addr(), format!("/{NODE}/s/socket/"));
    let open = || WebSocket::open(addr, "gateway:8081", &path, SOON);
    field.client().enter(open).expect("opens")
}

/// The installation, and what its people and services are.
struct Site {
    field: Field,
    server: Server,
    source: PathBuf,
    user: TestUser,
    key: PathBuf,
    sshd: Sshd,
    /// [`NODE`]'s overlay address.
    addr: Ipv4Addr,
}

impl Site {
    fn start() -> Self {
        let mut field = Field::start(Layout::Spread, None);
        let user = TestUser::create().expect("user");
        let host = field.prepare_host(NODE).expect("host");
        let key = field.operator().work("key");
        ssh_keygen(&key).expect("key");
        let public = std::fs::read_to_string(key.with_extension("pub")).expect("public key");
        let addr = (Ipv4Addr::LOCALHOST, 22).into();
        let options = SshdOptions::at(addr).authorize(&user, &public);
        let sshd = Sshd::start(Some(&host), options).expect("sshd");
        let host_key = sshd.host_key().with_extension("pub");
        let sets = [
            "ssh.mode=sshd".to_owned(),
            format!("ssh.sshd_addr={addr}"),
            format!("ssh.host_keys={}", host_key.display()),
            format!("ssh.user={}", user.name()),
        ];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        field.add_worker(NODE, "default", &sets);
        field.add_worker(PINGER, "default", &["net=tun"]);
        let source = write_noise(field.operator().work("noise"), FILE).expect("file");
        let server = Server::start(Some(&host), NODE, Some(&source)).expect("server");
        field.worker(NODE).publish("files", server.port());
        field
            .worker(NODE)
            .publish("socket", serve_echo(Some(&host)).expect("serves"));
        wait_for_service(&field, "default", NODE, NODE, server.port());
        eventually("the routes are there", SOON, || {
            let page = field.curl("/")?.ok()?;
            ensure!(page.contains("files") && page.contains("socket"), "{page}");
            Ok(())
        });
        for name in WORKERS {
            field.wait_for_console(&format!("/{name}/"), SOON);
        }
        let addr = overlay_addr(field.operator(), "default", NODE);
        let site = Self {
            addr,
            field,
            server,
            source,
            user,
            key,
            sshd,
        };
        eventually("the node has told its host key", SOON, || {
            site.exec_by_key("socks").success()
        });
        site
    }

    /// A command that says something ten times a second on the node with the agent's own SSH, until
    /// it is told to end.
    fn command(&self, via: &str) -> Child {
        let go = self.field.operator().work(&format!("{via}-go"));
        let script = format!(
            "n=0; until [ -e {} ]; do n=$((n+1)); echo at $n; sleep 0.1; done; echo done",
            go.display()
        );
        let deploy = self.field.operator().product("deploy-cli").name(via);
        let child = deploy.args(["--via", via, "exec", &script, PINGER]).spawn();
        let child = child.expect("starts");
        child.wait_for_line("at 2", SOON);
        child
    }

    fn let_end(&self, via: &str) {
        let go = self.field.operator().work(&format!("{via}-go"));
        std::fs::write(go, "").expect("written");
    }

    fn exec_by_key(&self, via: &str) -> Finished {
        let key = self.key.display().to_string();
        let login = ["--via", via, "--user", self.user.name(), "--identity", &key];
        let words = [&login[..], &["--timeout", "20s", "exec", "uname -n", NODE]].concat();
        self.field.operator().deploy(&words)
    }

    /// `ssh` itself, by the blocks that `mesh ssh-config` printed; each asks for a certificate first.
    fn plain_ssh(&self, configuration: &Path, host: &str) -> Finished {
        let ssh = self
            .field
            .operator()
            .spec("ssh")
            .arg("-F")
            .arg(configuration);
        let ssh = ssh.args(["-o", "BatchMode=yes", host, "uname -n"]);
        ssh.run(SOON).expect("runs")
    }

    fn by_socks(&self) -> anyhow::Result<String> {
        let url = format!("http://{NODE}:{}/by-socks", self.server.port());
        through(&self.field, "default").get(url)?.ok()
    }

    fn ping(&self, count: &str) -> Child {
        let spec = self.field.host(PINGER).spec("ping");
        let spec = spec.args(["-n", "-i", "0.1", "-W", "5", "-c", count]);
        let spec = spec.arg(self.addr.to_string());
        spec.spawn().expect("starts")
    }

    /// Everything once, each at the first try.
    fn assert_new_things_work(&self) {
        for name in WORKERS {
            let page = self.field.curl(&format!("/{name}/")).expect("curl runs");
            assert_eq!(page.status, 200, "{page:?}");
        }
        let body = self.by_socks().expect("SOCKS goes on");
        assert!(body.contains("/by-socks"), "{body}");
        for via in WAYS {
            let ran = self.exec_by_key(via).expect_code(0);
            assert_eq!(ran.stdout.trim(), NODE, "{}", ran.all());
            let told = ran.stderr.contains("the coordinator does not answer");
            assert!(told, "{}", ran.all());
        }
    }

    /// How many of these the coordinator counts.
    fn coordinator(&self, parts: &[&str]) -> anyhow::Result<u64> {
        let text = self.field.metrics("coordinator")?;
        ensure!(text.contains(parts[0]), "no {}: {text}", parts[0]);
        Ok(metrics::count(&text, parts))
    }

    fn full_maps(&self) -> u64 {
        self.coordinator(&["mesh_coordinator_full_maps_total"])
            .expect("metrics")
    }

    /// Kills a worker's agent and starts it; it is used in every way within the time, counted from the
    /// start of its process.
    fn restart_worker(&mut self) {
        let mut killed = self.field.worker_mut(NODE).take_child();
        killed.kill().expect("killed");
        let begun = Instant::now();
        self.field.worker_mut(NODE).start();
        let ready = begun.elapsed();
        // The first ones may be sealed for the process that is gone. They go on for 16 s: a node that
        // is without the coordinator for less than 15 s after its start tells nothing of it.
        let mut pings = self.ping("160");
        eventually("its console answers", BACK, || {
            let curl = self.field.client_curl().within(Duration::from_secs(2));
            curl.get(self.field.url(&format!("/{NODE}/")))
                .and_then(CurlReply::ok)
        });
        let console = begun.elapsed();
        eventually("SOCKS leads to it", BACK, || self.by_socks());
        eventually("commands run on it", BACK, || {
            self.exec_by_key("socks").success()
        });
        let all = begun.elapsed();
        println!("a worker's start: ready after {ready:?}, console {console:?}, all {all:?}");
        assert!(all < BACK, "used in every way {all:?} after its start");
        pings.finish(SOON).expect("ends").expect_code(0);
        // Nobody told it anything since its start.
        let status = self.field.worker(NODE).status().expect("a status");
        assert!(status.to_string().contains("\"netmap-stored\""), "{status}");
    }

    /// Starts the coordinator and waits until it has heard from all of them; nobody was told everything
    /// again.
    fn coordinator_comes_back(&mut self) {
        // Gateway, deploy-manager and two workers; and the relay, which has a stream too.
        let (nodes, streams) = (4, 5);
        let begun = Instant::now();
        self.field.start_coordinator().expect("starts again");
        let ready = begun.elapsed();
        eventually("all are back", ALL_BACK, || {
            let open = self.coordinator(&["mesh_coordinator_sync_streams"])?;
            let online = self.coordinator(&["mesh_coordinator_nodes{", "\"online\""])?;
            ensure!(
                open == streams && online == nodes,
                "{open} streams, {online} online"
            );
            Ok(())
        });
        let took = begun.elapsed();
        let relays = self.coordinator(&["mesh_coordinator_relays{", "\"online\""]);
        assert_eq!(relays.expect("metrics"), 1);
        let full = self.full_maps();
        println!(
            "the coordinator's start: ready after {ready:?}, all are back {took:?}, by {full} full netmaps"
        );
        assert!(took < ALL_BACK, "all are back {took:?} after its start");
        assert_eq!(full, 0, "they were told what they knew");
        self.exec_is_possible_again();
        self.assert_told_of_stored_netmap();
        // One that knows nothing is told everything: so it is counted.
        self.field.add_worker("worker-node-3", "default", &[]);
        self.field.wait_for_console("/worker-node-3/", SOON);
        assert_eq!(self.full_maps(), 1);
    }

    /// The one that started meanwhile told the coordinator what it went by, once; nobody else did.
    fn assert_told_of_stored_netmap(&self) {
        let kind = "  node-netmap-stored  ";
        let told = eventually("an event tells of it", SOON, || {
            let events = self.field.operator().mesh(&["events"]).success()?.stdout;
            let told = events.lines().filter(|line| line.contains(kind));
            let told: Vec<String> = told.map(str::to_owned).collect();
            ensure!(!told.is_empty(), "{events}");
            Ok(told)
        });
        let wanted = format!("{kind}{NODE}  it started without the coordinator and was on its");
        assert!(told.len() == 1 && told[0].contains(&wanted), "{told:?}");
    }

    /// With a certificate of the coordinator's.
    fn exec_is_possible_again(&self) {
        let ran = self.field.operator().deploy(&["exec", "uname -n", PINGER]);
        assert_eq!(ran.expect_code(0).stdout.trim(), PINGER);
    }
}

#[test]
fn everything_goes_on_without_the_coordinator_and_it_comes_back_without_a_storm() {
    if !mesh_testkit::needs(&NEEDED) {
        return;
    }
    let mut site = Site::start();
    // Each was told everything once, when it joined.
    assert_eq!(site.full_maps(), 4);
    let mut socket = open_socket(&site.field);
    socket.echo("before").expect("an echo");
    let mut commands = WAYS.map(|via| site.command(via));
    let into = site.field.operator().work("copy");
    let transfer = download(&site.field, site.server.port(), &into, "8M").name("transfer");
    let mut transfer = transfer.spawn().expect("starts");
    let arrived = || std::fs::metadata(&into).map_or(0, |file| file.len());
    eventually("the transfer is under way", SOON, || {
        ensure!(arrived() > 4 << 20, "{} bytes", arrived());
        Ok(())
    });
    let connections = site.server.connections();
    let mut pings = site.ping("60");
    pings.wait_for_line("icmp_seq=3", SOON);
    let blocks = site.field.operator().mesh_ok(&["ssh-config"]).stdout;
    let blocks = site.field.operator().file("ssh_config", &blocks);
    let blocks = blocks.expect("written");
    site.plain_ssh(&blocks, PINGER).expect_code(0);

    let mut killed = site.field.take_service("coordinator");
    killed.kill().expect("killed");
    killed.assert_log_clean(&[]);
    let at = arrived();
    assert!(at < (FILE / 2) as u64, "{at} bytes came before");
    let said = commands
        .each_ref()
        .map(|command| command.log().lines().len());
    let token = site.field.operator().mesh(&["token", "create"]);
    assert_eq!(token.code, Some(1), "there is none: {}", token.all());

    // What is open.
    socket.echo("while it is away").expect("an echo");
    transfer.finish(SOON).expect("ends").expect_code(0);
    assert_eq!(site.server.connections(), connections, "in one go");
    assert_eq!(
        sha256(&into).expect("sum"),
        sha256(&site.source).expect("sum")
    );
    println!("{at} of {FILE} bytes had come when the coordinator was killed");
    let ran = pings.finish(SOON).expect("ends").expect_code(0);
    // One may be lost to a full buffer, beside all the other bytes.
    let answered = [", 60 received", ", 59 received"];
    let most = answered.iter().any(|text| ran.stdout.contains(text));
    assert!(most, "{}", ran.stdout);
    for ((via, command), said) in WAYS.iter().zip(&mut commands).zip(said) {
        eventually("the command goes on", SOON, || {
            let now = command.log().lines().len();
            ensure!(now > said + 10, "{now} lines after {said}");
            Ok(())
        });
        site.let_end(via);
        let ran = command.finish(SOON).expect("ends").expect_code(0);
        assert!(ran.stdout.ends_with("\ndone\n"), "{}", ran.all());
    }

    // What begins. Certificates are the coordinator's; a key is the person's own.
    site.assert_new_things_work();
    let refused = site.field.operator().deploy(&["exec", "true", PINGER]);
    assert_eq!(refused.code, Some(255), "{}", refused.all());
    assert!(refused.stderr.contains("--identity"), "{}", refused.all());
    // One that was given before is good for its five minutes; for other users there is none.
    let ran = site.plain_ssh(&blocks, PINGER).expect_code(0);
    assert_eq!(ran.stdout.trim(), PINGER, "{}", ran.all());
    let refused = site.plain_ssh(&blocks, &format!("nobody@{PINGER}"));
    assert_eq!(refused.code, Some(255), "{}", refused.all());
    let reason = "only the coordinator gives out certificates";
    assert!(refused.stderr.contains(reason), "{}", refused.all());

    site.restart_worker();
    site.assert_new_things_work();
    socket = {
        drop(socket);
        open_socket(&site.field)
    };
    socket
        .echo("to the one that was restarted")
        .expect("an echo");
    site.coordinator_comes_back();
    socket.echo("after").expect("an echo");
    site.field.assert_logs_clean(&[]);
    site.sshd.child().assert_log_clean(&[]);
}
