//! An installation on this machine's loopback with a secret in every place that takes one, and
//! everything it ever printed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use integration::Cli;
use mesh_testkit::postgres::{POSTGRES_PASSWORD, Postgres};
use mesh_testkit::sshd::{Sshd, SshdOptions, ssh_keygen};
use mesh_testkit::{Child, Curl, CurlReply, Finished, Spec, TestUser, eventually, free_tcp_port};
use mesh_testkit::{REDIS_PASSWORD, Redis, RedisOptions};
use mesh_types::JoinToken;

use crate::markers::Markers;

pub(crate) const SOON: Duration = Duration::from_secs(60);
/// 64 hexadecimal digits that nobody else uses.
const MASTER_KEY: &str = "b1946ac92492d2347c6235b4d2611184c27d3ae5f0963b871e4fd29068a7be53";
const SOCKS_USER: &str = "surveyor";
pub(crate) const SOCKS_PASSWORD: &str = "Vexing7Ostrich4Lantern9";
const COLLECTOR_KEY: &str = "Hollow3Cymbal8Gardener2";
/// Given where it is refused: in a URL, and in a token that is damaged.
pub(crate) const MISPLACED: &str = "Wobbly6Thicket1Marmalade";
pub(crate) const WRONG: &str = "Brisk5Unicorn2Pavement7";
pub(crate) const COOKIE: &str = "Quiet8Meteor3Saddlebag6";
pub(crate) const BEARER: &str = "Amber2Walrus9Telescope4";
pub(crate) const QUERY: &str = "Mossy4Bagpipe7Cathedral1";
pub(crate) const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];
/// Everything, also of the libraries that are quiet otherwise.
const LEVEL: &str = "trace,boringtun=trace,smoltcp=trace,russh=trace,h2=trace,hyper=trace,\
    hyper_util=trace,tower=trace,tonic=trace,rustls=trace,tokio_util=trace,sqlx=trace,sea_orm=trace,\
    sea_orm_migration=trace,fast_socks5=trace,mio=trace,axum=trace,redis=trace";
/// The services, each with the environment's name of it.
const SERVICES: [(&str, &str); 5] = [
    ("coordinator", "COORDINATOR"),
    ("relay", "RELAY"),
    ("traffic-gateway", "TRAFFIC_GATEWAY"),
    ("deploy-manager", "DEPLOY_MANAGER"),
    ("worker-agent", "WORKER_AGENT"),
];

/// A process of the installation.
struct Service {
    name: String,
    program: &'static str,
    verb: Vec<String>,
    sets: Vec<String>,
    admin: SocketAddr,
    child: Option<Child>,
}

/// The installation. What it depends on is dropped last.
pub(crate) struct Stage {
    pub(crate) markers: Markers,
    pub(crate) cli: Cli,
    services: Vec<Service>,
    pub(crate) printed: Vec<(String, String)>,
    pub(crate) gateway: u16,
    pub(crate) socks: u16,
    pub(crate) user: TestUser,
    pub(crate) bus: Redis,
    pub(crate) postgres: Postgres,
    _sshd: Sshd,
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Stage {
    /// Starts everything at log level `trace`.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let postgres = Postgres::start()?;
        let bus = Redis::start_with(RedisOptions::default().password())?;
        let user = TestUser::create()?;
        let files = Cli::new()?;
        let mut markers = Markers::default();
        let given = [
            ("Postgres' password", POSTGRES_PASSWORD),
            ("Redis' password", REDIS_PASSWORD),
            ("the master key", MASTER_KEY),
            ("the SOCKS password", SOCKS_PASSWORD),
            ("the collector's key", COLLECTOR_KEY),
            ("a misplaced secret", MISPLACED),
            ("a wrong password", WRONG),
            ("the cookie", COOKIE),
            ("the bearer's token", BEARER),
            ("the query", QUERY),
            ("the SSH password", user.password()),
        ];
        for (name, secret) in given {
            markers.text(name, secret);
        }
        markers.bytes("the master key", &unhex(MASTER_KEY)?);
        markers.text(
            "the Authorization header",
            &STANDARD.encode(format!("{SOCKS_USER}:{WRONG}")),
        );

        ssh_keygen(&files.work("ssh-key"))?;
        let key = std::fs::read_to_string(files.work("ssh-key"))?;
        markers.pem("the SSH key", &key, 2);
        let public = std::fs::read_to_string(files.work("ssh-key.pub"))?;
        let options = SshdOptions::at(loopback(free_tcp_port())).authorize(&user, &public);
        let sshd = Sshd::start(None, options)?;

        let env = environment(&files, &mut markers, &postgres.database(), &bus.url())?;
        let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let mut stage = Self {
            markers,
            cli: files.with_env(&env),
            services: Vec::new(),
            printed: Vec::new(),
            gateway: free_tcp_port(),
            socks: free_tcp_port(),
            user,
            bus,
            postgres,
            _sshd: sshd,
        };
        stage.install()?;
        Ok(stage)
    }

    fn install(&mut self) -> anyhow::Result<()> {
        let wireguard = "wireguard.listen=127.0.0.1:0".to_owned();
        let server = |port: u16| format!("server.listen=127.0.0.1:{port}");
        let deploy = free_tcp_port();
        self.add("coordinator", "coordinator", &[server(free_tcp_port())]);
        let bootstrap = self
            .command("coordinator", &["bootstrap", "--tokens-dir"])
            .arg(self.cli.work("tokens"))
            .arg("--operator-dir")
            .arg(self.cli.config_home());
        self.run("bootstrap", bootstrap)?.success()?;
        for role in ["relay", "gateway", "deployer", "worker"] {
            let token = std::fs::read_to_string(self.token_file(role))?;
            self.token(&format!("the token of the {role}"), token.trim())?;
        }
        let context = self.cli.context()?;
        self.markers
            .p256("the operator's key", &STANDARD.decode(context.key)?);

        self.add(
            "relay",
            "relay",
            &[server(0), "stun.listen=127.0.0.1:0".to_owned()],
        );
        let gateway = [server(self.gateway), wireguard.clone()];
        self.add("traffic-gateway", "traffic-gateway", &gateway);
        let socks = format!("socks.listen={}", loopback(self.socks));
        self.add(
            "deploy-manager",
            "deploy-manager",
            &[server(deploy), socks, wireguard.clone()],
        );
        for (service, role) in [
            ("relay", "relay"),
            ("traffic-gateway", "gateway"),
            ("deploy-manager", "deployer"),
        ] {
            let file = self.token_file(role).display().to_string();
            self.service(service)
                .verb
                .extend(["--token-file".to_owned(), file]);
        }
        for name in ["coordinator", "relay", "traffic-gateway", "deploy-manager"] {
            self.start_service(name)?;
        }
        let sshd = [
            wireguard.clone(),
            "console.mode=page".to_owned(),
            "ssh.mode=sshd".to_owned(),
            format!("ssh.sshd_addr={}", self._sshd.listen()),
            format!("ssh.host_keys={}.pub", self._sshd.host_key().display()),
        ];
        self.worker(WORKERS[0], &sshd)?;
        self.worker(WORKERS[1], &[wireguard, "console.mode=page".to_owned()])?;
        let words = [
            format!("--socks=default={}", loopback(self.socks)),
            format!("--deploy={}", loopback(deploy)),
        ];
        let set = self.mesh(&["context", "set", &words[0], &words[1]]);
        self.run("mesh", set)?.success()?;
        self.keys_of_nodes()
    }

    /// Joins a worker by its own verb, with the token of the bootstrap or an operator's, and runs
    /// it.
    fn worker(&mut self, name: &'static str, sets: &[String]) -> anyhow::Result<()> {
        self.add(name, "worker-agent", sets);
        let file = if name == WORKERS[0] {
            self.token_file("worker")
        } else {
            let token = self.cli.token(&["--role", "worker"]);
            self.token("an operator's token", &token)?;
            self.cli.file("worker.token", &token)?
        };
        let join = self
            .command(name, &["join", "--hostname", name, "--token-file"])
            .arg(file);
        self.run("join", join)?.success()?;
        self.start_service(name)
    }

    pub(crate) fn token_file(&self, role: &str) -> PathBuf {
        self.cli.work("tokens").join(role).join("token")
    }

    fn token(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        let token: JoinToken = text.parse()?;
        self.markers.bytes(name, &token.secret);
        // Version and fingerprint are no secrets; id and secret follow.
        let at = "mesh1.".len() + 80;
        let part = text.get(at..at + 24).context("a token is longer")?;
        self.markers.text(name, part);
        Ok(())
    }

    /// Every private key that a node made for itself.
    fn keys_of_nodes(&mut self) -> anyhow::Result<()> {
        let listed = Spec::new("find")
            .arg(self.cli.work(""))
            .args(["-name", "node.key", "-o", "-name", "ssh_host_ed25519_key"])
            .run(SOON)?
            .success()?;
        let mut count = 0;
        for path in listed.stdout.lines() {
            let text = std::fs::read_to_string(path)?;
            if path.ends_with("ssh_host_ed25519_key") {
                self.markers.pem(path, &text, 2);
                continue;
            }
            count += 1;
            for line in text.lines().skip(1) {
                let (what, key) = line.split_once(' ').context("a name and a key")?;
                let (name, key) = (format!("{what} of {path}"), STANDARD.decode(key)?);
                match what {
                    "identity" => self.markers.p256(&name, &key),
                    _ => self.markers.bytes(&name, &key),
                }
            }
        }
        ensure!(
            count == 5,
            "five nodes keep keys, not {count}: {}",
            listed.stdout
        );
        Ok(())
    }

    fn add(&mut self, name: &str, program: &'static str, sets: &[String]) {
        let admin = loopback(free_tcp_port());
        let state = self.cli.work(&format!("state-{name}"));
        let mut all = vec![
            format!("state_dir={}", state.display()),
            format!("admin.listen={admin}"),
        ];
        all.extend_from_slice(sets);
        self.services.push(Service {
            name: name.to_owned(),
            program,
            verb: vec!["run".to_owned()],
            sets: all,
            admin,
            child: None,
        });
    }

    fn service(&mut self, name: &str) -> &mut Service {
        let found = self
            .services
            .iter_mut()
            .find(|service| service.name == name);
        found.unwrap_or_else(|| panic!("no service {name}"))
    }

    /// A service's program with its settings and other words.
    pub(crate) fn command(&self, name: &str, words: &[&str]) -> Spec {
        let found = self.services.iter().find(|service| service.name == name);
        let service = found.unwrap_or_else(|| panic!("no service {name}"));
        let mut spec = self.cli.product(service.program).name(name);
        // Settings are flags of the verb.
        spec = spec.arg(words[0]);
        for set in &service.sets {
            spec = spec.args(["--set", set]);
        }
        spec.args(&words[1..])
    }

    /// `mesh` with these words.
    pub(crate) fn mesh(&self, words: &[&str]) -> Spec {
        self.cli.mesh_spec(words)
    }

    fn start_service(&mut self, name: &str) -> anyhow::Result<()> {
        let verb = self.service(name).verb.clone();
        let words: Vec<&str> = verb.iter().map(String::as_str).collect();
        let child = self.command(name, &words).spawn()?;
        self.service(name).child = Some(child);
        self.wait_until(name, 200, "");
        Ok(())
    }

    /// Ends a service as a service manager does.
    pub(crate) fn stop(&mut self, name: &str) {
        let mut child = self.service(name).child.take().expect("it runs");
        child.terminate().expect("signalled");
        let ended = child.finish(SOON).expect("ends").expect_code(0);
        self.keep(name, &ended);
    }

    /// Waits until the readiness endpoint answers this, with that in it.
    pub(crate) fn wait_until(&mut self, name: &str, status: u16, part: &str) {
        let admin = self.service(name).admin;
        let body = eventually(&format!("{name}: {status} {part}"), SOON, || {
            let reply = Curl::new().get(format!("http://{admin}/readyz"))?;
            let as_wanted = reply.status == status && reply.body.contains(part);
            ensure!(as_wanted, "{reply:?}");
            Ok(reply.body)
        });
        self.printed.push((format!("{name}'s /readyz"), body));
    }

    /// Runs something to its end and keeps what it printed.
    pub(crate) fn run(&mut self, name: &str, spec: Spec) -> anyhow::Result<Finished> {
        let ran = spec.run(SOON)?;
        self.keep(name, &ran);
        Ok(ran)
    }

    /// Where every service's admin endpoint is.
    pub(crate) fn admin_endpoints(&self) -> Vec<SocketAddr> {
        self.services.iter().map(|service| service.admin).collect()
    }

    fn keep(&mut self, name: &str, ran: &Finished) {
        self.printed.push((name.to_owned(), ran.all()));
    }

    /// Searches what a program printed that is meant to show a secret, in the rest of it.
    pub(crate) fn permit(&mut self) -> anyhow::Result<()> {
        let shown = self
            .mesh(&["node", "permit", WORKERS[1]])
            .run(SOON)?
            .success()?;
        let permit = shown.stdout.trim();
        self.markers.text("the permit", permit);
        self.markers
            .bytes("the permit", &URL_SAFE_NO_PAD.decode(permit)?);
        self.printed
            .push(("mesh node permit".to_owned(), shown.stderr));
        Ok(())
    }

    /// A request to the gateway with a secret in each place where browsers put some.
    pub(crate) fn browse(&self, path: &str) -> anyhow::Result<CurlReply> {
        let basic = format!("{SOCKS_USER}:{WRONG}");
        let cookie = format!("cockpit={COOKIE}");
        let mut curl = Curl::new().args(["-k", "--cookie", &cookie]);
        let bearer = format!("Authorization: Bearer {BEARER}");
        curl = match path.contains("basic") {
            true => curl.args(["--user", &basic]),
            false => curl.args(["--header", &bearer]),
        };
        let gateway = self.gateway;
        curl.get(format!(
            "https://localhost:{gateway}{path}?access_token={QUERY}"
        ))
    }

    /// Fetches a page by SOCKS5 with this password.
    pub(crate) fn by_socks(&self, password: &str, url: &str) -> anyhow::Result<CurlReply> {
        Curl::new()
            .args(["--socks5-hostname", &loopback(self.socks).to_string()])
            .args(["--proxy-user", &format!("{SOCKS_USER}:{password}")])
            .get(url)
    }

    /// `deploy-cli` with what the SOCKS5 listener asks for.
    pub(crate) fn deploy(&mut self, words: &[&str]) -> anyhow::Result<Finished> {
        let auth = format!("{SOCKS_USER}:{SOCKS_PASSWORD}\n");
        let file = self.cli.file("socks-auth", &auth)?;
        let spec = self.cli.product("deploy-cli");
        let spec = spec.arg("--socks-auth-file").arg(file).args(words);
        self.run("deploy-cli", spec)
    }

    /// What every service tells of itself to whoever asks.
    pub(crate) fn ask_all(&mut self) -> anyhow::Result<()> {
        for at in 0..self.services.len() {
            let (name, admin) = (self.services[at].name.clone(), self.services[at].admin);
            for path in ["metrics", "version", "readyz"] {
                let body = Curl::new().get(format!("http://{admin}/{path}"))?.ok()?;
                self.printed.push((format!("{name}'s /{path}"), body));
            }
            let words: [&[&str]; 2] = [&["run", "--print-config"], &["config", "check"]];
            for words in words {
                let shown = match words[0] {
                    "config" => self.config_check(&name),
                    _ => self.command(&name, words),
                };
                let shown = self.run(&name, shown)?.success()?;
                let is_config = words[0] == "config" || shown.stdout.contains("[log]");
                ensure!(is_config, "{name}: {}", shown.all());
            }
        }
        Ok(())
    }

    fn config_check(&self, name: &str) -> Spec {
        let found = self.services.iter().find(|service| service.name == name);
        let service = found.expect("it is one of them");
        let mut spec = self.cli.product(service.program).args(["config", "check"]);
        for set in &service.sets {
            spec = spec.args(["--set", set]);
        }
        spec
    }

    /// Ends everything that runs, and gives all that was printed.
    pub(crate) fn finish(mut self) -> (Markers, Vec<(String, String)>) {
        let running = self
            .services
            .iter()
            .filter(|service| service.child.is_some());
        let mut names: Vec<String> = running.map(|service| service.name.clone()).collect();
        // Whoever depends on others first.
        names.reverse();
        for name in names {
            self.stop(&name);
        }
        (self.markers, self.printed)
    }
}

/// What every process finds in its environment; the files are the person's.
fn environment(
    files: &Cli,
    markers: &mut Markers,
    database: &str,
    bus: &str,
) -> anyhow::Result<Vec<(String, String)>> {
    let mut env = Vec::new();
    for (_, name) in SERVICES {
        env.push((format!("MESH_{name}__LOG__LEVEL"), LEVEL.to_owned()));
    }
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let key = certified.signing_key.serialize_der();
    markers.p256("the gateway's key", &key);
    let tls = "MESH_TRAFFIC_GATEWAY__SERVER__TLS";
    let secrets = [
        (
            "MESH_COORDINATOR__MASTER_KEY_FILE".to_owned(),
            MASTER_KEY.to_owned(),
        ),
        (
            "MESH_COORDINATOR__STORE__PASSWORD_FILE".to_owned(),
            POSTGRES_PASSWORD.to_owned(),
        ),
        (
            "MESH_COORDINATOR__BUS__PASSWORD_FILE".to_owned(),
            REDIS_PASSWORD.to_owned(),
        ),
        (
            "MESH_DEPLOY_MANAGER__SOCKS__PASSWORD_FILE".to_owned(),
            SOCKS_PASSWORD.to_owned(),
        ),
        (format!("{tls}__CERTIFICATE"), certified.cert.pem()),
        (format!("{tls}__KEY"), certified.signing_key.serialize_pem()),
    ];
    for (at, (variable, content)) in secrets.into_iter().enumerate() {
        let file = files.file(&format!("secret-{at}"), &content)?;
        env.push((variable, file.display().to_string()));
    }
    // Nobody takes traces there: what a process says of that is searched too.
    let collector = format!("http://{}", loopback(free_tcp_port()));
    let header = format!("authorization=Bearer%20{COLLECTOR_KEY}");
    let plain = [
        ("MESH_COORDINATOR__STORE__URL", database),
        ("MESH_COORDINATOR__BUS__REDIS_URL", bus),
        ("MESH_DEPLOY_MANAGER__SOCKS__USER", SOCKS_USER),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector),
        ("OTEL_EXPORTER_OTLP_HEADERS", &header),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    env.extend(plain.map(|(key, value)| (key.to_owned(), value.to_owned())));
    Ok(env)
}

fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    let pairs = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    Ok(pairs
        .map(|pair| u8::from_str_radix(pair, 16))
        .collect::<Result<_, _>>()?)
}
