//! Everything is started at once, in no order; one command makes what all of it waits for.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use integration::Cli;
use mesh_testkit::{
    Child, Curl, CurlReply, Need, Redis, Spec, eventually, free_tcp_port, free_udp_port, needs,
};
use serde_json::Value;

const NEEDED: [Need; 2] = [Need::Program("curl"), Need::Program("redis-server")];
const SOON: Duration = Duration::from_secs(60);

/// A service with an admin endpoint of its own.
struct Service {
    name: &'static str,
    admin: SocketAddr,
    sets: Vec<String>,
}

impl Service {
    fn new(cli: &Cli, name: &'static str, sets: &[&str]) -> Self {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_tcp_port()));
        let mut all = vec![
            format!("state_dir={}", cli.work(&format!("state-{name}")).display()),
            format!("admin.listen={admin}"),
        ];
        all.extend(sets.iter().map(|set| (*set).to_owned()));
        Self {
            name,
            admin,
            sets: all,
        }
    }

    /// The service with a verb, its settings, and what else follows.
    fn spec(&self, cli: &Cli, verb: &str) -> Spec {
        let mut spec = cli.product(self.name).arg(verb);
        for set in &self.sets {
            spec = spec.args(["--set", set]);
        }
        spec
    }

    fn start(&self, cli: &Cli, token: &str) -> Child {
        let file = cli.work("tokens").join(token).join("token");
        self.spec(cli, "run")
            .arg("--token-file")
            .arg(file)
            .spawn()
            .expect("starts")
    }

    fn health(&self) -> (u16, String) {
        let reply = Curl::new().get(format!("http://{}/readyz", self.admin));
        reply.map_or((0, String::new()), |reply| (reply.status, reply.body))
    }

    /// `/version` and `--version` name the same build, under the service's own name.
    fn tells_its_version(&self, cli: &Cli) {
        let reply = Curl::new().get(format!("http://{}/version", self.admin));
        let body = reply.and_then(CurlReply::ok).expect("a version");
        let told: Value = serde_json::from_str(&body).expect("JSON");
        let protocols = told["protocols"].as_object().expect("protocols").iter();
        let protocols: BTreeSet<String> = protocols
            .map(|(name, version)| format!("{name} {}", version.as_str().unwrap_or_default()))
            .collect();
        let spec = cli.product(self.name).arg("--version");
        let long = spec.run(SOON).expect("runs").expect_code(0).stdout;
        let line = |start: &str| {
            let found = long.lines().find_map(|line| line.strip_prefix(start));
            found.unwrap_or_else(|| panic!("no {start:?} in {long}"))
        };
        assert_eq!(told["name"], self.name, "{body}");
        assert_eq!(told["version"], line(&format!("{} ", self.name)), "{body}");
        assert_eq!(told["version"], env!("CARGO_PKG_VERSION"), "{body}");
        assert_eq!(
            told["commit"].as_str().unwrap_or("unknown"),
            line("commit: "),
            "{body}"
        );
        let listed: BTreeSet<String> = line("protocols: ").split(", ").map(str::to_owned).collect();
        assert_eq!(protocols, listed, "{body}");
    }

    fn is_ready(&self) {
        eventually(&format!("{} is ready", self.name), SOON, || {
            let (status, text) = self.health();
            ensure!(status == 200, "{status} {text}");
            Ok(())
        });
    }
}

#[test]
fn services_that_start_first_join_once_the_installation_is_bootstrapped() {
    if !needs(&NEEDED) {
        return;
    }
    let cli = Cli::new().expect("folders");
    let server = Redis::start().expect("a Redis");
    let any = "wireguard.listen=127.0.0.1:0";
    let relay = Service::new(
        &cli,
        "relay",
        &["server.listen=127.0.0.1:0", "stun.listen=127.0.0.1:0"],
    );
    let gateway = Service::new(&cli, "traffic-gateway", &["server.listen=127.0.0.1:0", any]);
    let deployer = Service::new(
        &cli,
        "deploy-manager",
        &["server.listen=127.0.0.1:0", "socks.listen=127.0.0.1:0", any],
    );
    let udp = format!("wireguard.listen=127.0.0.1:{}", free_udp_port());
    let worker = Service::new(&cli, "worker-agent", &[&udp, "console.mode=page"]);
    let listen = format!("server.listen=127.0.0.1:{}", free_tcp_port());
    let bus = format!("bus.redis_url={}", server.url());
    let coordinator = Service::new(&cli, "coordinator", &[&listen, &bus]);

    // Nobody is there yet: no token, no coordinator.
    let mut running = vec![
        relay.start(&cli, "relay"),
        gateway.start(&cli, "gateway"),
        deployer.start(&cli, "deployer"),
        worker.start(&cli, "worker"),
    ];
    for child in &running {
        child.wait_for_line("not joined yet: trying again", SOON);
    }
    let bootstrap = || {
        coordinator
            .spec(&cli, "bootstrap")
            .arg("--tokens-dir")
            .arg(cli.work("tokens"))
            .arg("--operator-dir")
            .arg(cli.config_home())
            .run(SOON)
            .expect("runs")
    };
    let made = bootstrap().expect_code(0);
    assert_eq!(made.stdout.matches("made ").count(), 4, "{}", made.all());
    let kept = bootstrap().expect_code(0);
    assert_eq!(kept.stdout.matches("kept ").count(), 4, "{}", kept.all());
    let mut core = coordinator.spec(&cli, "run").spawn().expect("starts");
    for service in [&coordinator, &relay, &gateway, &deployer, &worker] {
        service.is_ready();
    }
    let refused = bootstrap().expect_code(1);
    assert!(refused.stderr.contains("in use by"), "{}", refused.all());

    // One build, and each of its programs says so.
    for service in [&coordinator, &relay, &gateway, &deployer, &worker] {
        service.tells_its_version(&cli);
    }

    // The context that it wrote is an operator's, and everybody is there under a name of its own.
    let nodes = cli.mesh_json(&["node", "list"]);
    let listed = nodes["nodes"].as_array().expect("nodes");
    let of = |role: &str| listed.iter().filter(|node| node["role"] == role).count();
    assert_eq!((of("worker"), of("gateway"), of("deployer")), (1, 1, 1));

    // A frozen Redis is told and stops nothing.
    server.freeze().expect("freezes");
    eventually("the coordinator says so", SOON, || {
        let (status, text) = coordinator.health();
        ensure!(status == 200 && text.contains("bus: degraded"), "{text}");
        Ok(())
    });
    cli.token(&["--role", "worker"]);
    server.thaw().expect("thaws");
    eventually("it heals", SOON, || {
        let (_, text) = coordinator.health();
        ensure!(text == "ok\n", "{text}");
        Ok(())
    });

    // Whoever has joined needs neither token nor coordinator to start again.
    core.terminate().expect("ends");
    core.wait(SOON).expect("ends");
    std::fs::remove_dir_all(cli.work("tokens")).expect("removes");
    let mut first = running.remove(0);
    first.terminate().expect("ends");
    first.wait(SOON).expect("ends");
    let _again = relay.start(&cli, "relay");
    relay.is_ready();
}
