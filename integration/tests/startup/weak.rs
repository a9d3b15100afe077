//! Settings that are refused outside of development.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use integration::Cli;
use mesh_testkit::{Finished, Spec};

use super::{SOON, prefix, ran};

/// 64 hexadecimal digits that nobody uses.
const KEY: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

const ADMIN: &str = "admin.listen: the admin endpoint has no password, so it stays on loopback; \
    set admin.expose = true where a firewall guards it";
const STORE: &str = "store.tls: anybody on the way could read or take over the database: say \
    verify-full with store.ca_file, or private-network when only this installation is on that \
    network";
const BUS: &str = "bus.tls: anybody on the way could read the password: take rediss:// with \
    bus.ca_file, or say private-network when only this installation is on that network";
const TOKEN: &str =
    "token_file (environment): every user of this machine may read @open: chmod o= @open";

/// One weak setting.
pub(super) struct Weak {
    pub(super) service: &'static str,
    /// Environment variables, without the service's prefix.
    set: &'static [(&'static str, &'static str)],
    /// What stands in its configuration file, which everybody may read.
    file: &'static str,
    /// Its own message, whole.
    says: &'static str,
}

/// In settings and messages `@open` stands for a file with a secret that everybody may read,
/// `@closed` for one that only we may, `@file` for the service's configuration file.
pub(super) const fn weak(
    service: &'static str,
    set: &'static [(&'static str, &'static str)],
    says: &'static str,
) -> Weak {
    Weak {
        service,
        set,
        file: "",
        says,
    }
}

const WEAK: &[Weak] = &[
    weak("coordinator", &[("ADMIN__LISTEN", "0.0.0.0:0")], ADMIN),
    weak("relay", &[("ADMIN__LISTEN", "0.0.0.0:0")], ADMIN),
    weak("traffic-gateway", &[("ADMIN__LISTEN", "[::]:0")], ADMIN),
    weak("deploy-manager", &[("ADMIN__LISTEN", "0.0.0.0:0")], ADMIN),
    weak("worker-agent", &[("ADMIN__LISTEN", "0.0.0.0:0")], ADMIN),
    // The database and Redis.
    weak(
        "coordinator",
        &[
            ("STORE__URL", "postgres://mesh@db.example.org/mesh"),
            ("STORE__TLS", "disable"),
            ("MASTER_KEY_FILE", "@closed"),
        ],
        STORE,
    ),
    weak(
        "coordinator",
        &[
            ("STORE__URL", "postgres://mesh@db.example.org/mesh"),
            ("STORE__TLS", "require"),
            ("MASTER_KEY_FILE", "@closed"),
        ],
        STORE,
    ),
    weak(
        "coordinator",
        &[
            ("STORE__URL", "postgres://mesh@db.example.org/mesh"),
            ("STORE__TLS", "verify-ca"),
            ("MASTER_KEY_FILE", "@closed"),
        ],
        STORE,
    ),
    weak(
        "coordinator",
        &[("STORE__PASSWORD", "postgres")],
        "store.password (environment): is made of well-known words: make one with 'openssl rand \
         -hex 32', and give it in a file as password_file",
    ),
    weak(
        "coordinator",
        &[("BUS__REDIS_URL", "redis://redis.example.org:6379/0")],
        BUS,
    ),
    weak(
        "coordinator",
        &[
            ("BUS__REDIS_URL", "redis://redis.example.org:6379/0"),
            ("BUS__TLS", "disable"),
        ],
        BUS,
    ),
    weak(
        "coordinator",
        &[
            ("BUS__REDIS_URL", "rediss://redis.example.org:6379/0"),
            ("BUS__PASSWORD", "zq81kx"),
        ],
        "bus.password (environment): has 6 characters, 16 are needed: make one with 'openssl rand \
         -hex 32', and give it in a file as password_file",
    ),
    // The master key.
    weak(
        "coordinator",
        &[("STORE__URL", "postgres://mesh@db.example.org/mesh")],
        "master_key: with Postgres the master key comes from outside: set master_key_file to a \
         file made with 'openssl rand -hex 32'",
    ),
    weak(
        "coordinator",
        &[("MASTER_KEY_FILE", "@open")],
        "master_key_file (environment): every user of this machine may read @open: chmod o= @open",
    ),
    weak(
        "coordinator",
        &[(
            "MASTER_KEY",
            "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1",
        )],
        "master_key (environment): is a pattern of few characters: make one with 'openssl rand \
         -hex 32', and give it in a file as master_key_file",
    ),
    weak(
        "coordinator",
        &[(
            "MASTER_KEY",
            "0000000000000000000000000000000000000000000000000000000000000000",
        )],
        "master_key (environment): is made of well-known words: make one with 'openssl rand -hex \
         32', and give it in a file as master_key_file",
    ),
    Weak {
        service: "coordinator",
        set: &[],
        file: "master_key = \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"",
        says: "master_key (@file): a secret in a file that every user of this machine may read: \
            chmod o= @file, or move the secret to a file of its own as master_key_file",
    },
    // Join tokens.
    weak("relay", &[("TOKEN_FILE", "@open")], TOKEN),
    weak("traffic-gateway", &[("TOKEN_FILE", "@open")], TOKEN),
    weak("deploy-manager", &[("TOKEN_FILE", "@closed,@open")], TOKEN),
    weak("worker-agent", &[("TOKEN_FILE", "@open")], TOKEN),
    // The consoles.
    weak(
        "traffic-gateway",
        &[("SERVER__LISTEN", "0.0.0.0:0")],
        "server.listen: plain HTTP on 0.0.0.0:0 would send passwords in the clear: set \
         server.tls.certificate and server.tls.key, name the proxy in front in \
         server.trusted_proxies, or in a container whose port is published on loopback set \
         server.published_on_loopback",
    ),
    weak(
        "traffic-gateway",
        &[
            ("SERVER__LISTEN", "0.0.0.0:0"),
            ("SERVER__TRUSTED_PROXIES", "10.0.0.0/8,0.0.0.0/0"),
        ],
        "server.trusted_proxies: 0.0.0.0/0 holds strangers too, whose X-Forwarded-* headers would \
         be believed: name the range that your proxies are in, such as 10.0.0.0/24",
    ),
    weak(
        "traffic-gateway",
        &[
            ("SERVER__LISTEN", "0.0.0.0:0"),
            ("SERVER__PUBLISHED_ON_LOOPBACK", "true"),
            ("SERVER__ALLOWED_HOSTS", "gateway.example.org"),
        ],
        "server.published_on_loopback: other names than localhost would be served in the clear: \
         take server.allowed_hosts and server.host_suffixes away, or set server.tls.certificate \
         and server.tls.key",
    ),
    weak(
        "traffic-gateway",
        &[
            ("SERVER__TLS__CERTIFICATE", "@closed"),
            ("SERVER__TLS__KEY", "@open"),
        ],
        "server.tls.key (environment): every user of this machine may read @open: chmod o= @open",
    ),
    // SOCKS5.
    weak(
        "deploy-manager",
        &[("SOCKS__LISTEN", "0.0.0.0:0")],
        "socks.listen: an address that is not loopback needs socks.user and socks.password_file: \
         whoever reaches it reaches the whole network",
    ),
    weak(
        "deploy-manager",
        &[("SOCKS__NETWORKS__HOME", "0.0.0.0:0")],
        "socks.networks.home: an address that is not loopback needs socks.user and \
         socks.password_file: whoever reaches it reaches the whole network",
    ),
    weak(
        "deploy-manager",
        &[("SOCKS__USER", "me"), ("SOCKS__PASSWORD", "ChangeMe-2026")],
        "socks.password (environment): is made of well-known words: make one with 'openssl rand \
         -hex 32', and give it in a file as password_file",
    ),
    weak(
        "deploy-manager",
        &[
            ("SOCKS__USER", "me"),
            ("SOCKS__PASSWORD", "xyxyxyxyxyxyxyxyxyxyxyxy"),
        ],
        "socks.password (environment): is a pattern of few characters: make one with 'openssl rand \
         -hex 32', and give it in a file as password_file",
    ),
    weak(
        "deploy-manager",
        &[("SOCKS__USER", "me"), ("SOCKS__PASSWORD_FILE", "@open")],
        "socks.password_file (environment): every user of this machine may read @open: chmod o= \
         @open",
    ),
    Weak {
        service: "deploy-manager",
        set: &[],
        file: "[socks]\nuser = \"me\"\npassword = \"q8Zr1xV0bM4tYw2L\"",
        says: "socks.password (@file): a secret in a file that every user of this machine may \
            read: chmod o= @file, or move the secret to a file of its own as socks.password_file",
    },
];

/// Settings that are refused with `--dev` too: nothing makes them safe.
const NEVER: &[Weak] = &[
    weak(
        "worker-agent",
        &[("CONSOLE__COCKPIT", "10.0.0.1:9090")],
        "console.cockpit: Cockpit is reached on loopback only, such as 127.0.0.1:9090",
    ),
    weak(
        "worker-agent",
        &[("SSH__SSHD_ADDR", "10.0.0.1:22")],
        "ssh.sshd_addr: sshd is reached on loopback only, such as 127.0.0.1:22",
    ),
    weak(
        "traffic-gateway",
        &[("SERVER__TLS__CERTIFICATE", "@closed")],
        "server.tls: TLS needs both server.tls.certificate and server.tls.key",
    ),
    weak(
        "coordinator",
        &[("STORE__URL", "postgres://mesh:hunter2@db.example.org/mesh")],
        "store.url: a password does not belong into the URL: put it into a file and name that in \
         store.password_file",
    ),
    weak(
        "coordinator",
        &[("MASTER_KEY", "9f86d081884c7d659a2feaa0c55ad015")],
        "master_key: 64 hexadecimal digits are expected, as 'openssl rand -hex 32' gives them",
    ),
];

/// Where a service listens when a test does not say.
fn listeners(service: &str) -> &'static [&'static str] {
    match service {
        "relay" => &["SERVER__LISTEN", "STUN__LISTEN", "ADMIN__LISTEN"],
        "deploy-manager" => &["SERVER__LISTEN", "SOCKS__LISTEN", "ADMIN__LISTEN"],
        "worker-agent" => &["ADMIN__LISTEN"],
        _ => &["SERVER__LISTEN", "ADMIN__LISTEN"],
    }
}

pub(super) struct Files {
    open: PathBuf,
    closed: PathBuf,
    file: PathBuf,
}

impl Files {
    pub(super) fn new(cli: &Cli) -> Self {
        let [open, closed] = [("open", 0o644), ("closed", 0o600)].map(|(name, mode)| {
            let path = cli.work("secrets").with_extension(name);
            fs::write(&path, KEY).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
            path
        });
        let file = cli.work("service.toml");
        Self { open, closed, file }
    }

    /// The text with its stand-ins replaced.
    fn fill(&self, text: &str) -> String {
        text.replace("@open", &self.open.display().to_string())
            .replace("@closed", &self.closed.display().to_string())
            .replace("@file", &self.file.display().to_string())
    }

    /// The service with these words and settings, and with nothing that the machine has for it.
    pub(super) fn spec(&self, cli: &Cli, weak: &Weak, words: &[&str]) -> Spec {
        fs::write(&self.file, weak.file).expect("written");
        fs::set_permissions(&self.file, fs::Permissions::from_mode(0o644)).expect("ours");
        let prefix = prefix(weak.service);
        let state = cli.work(&format!("state-{}", weak.service));
        let mut spec = cli.product(weak.service).args(words);
        spec = spec.arg("--config").arg(&self.file);
        spec = spec.env(format!("{prefix}__STATE_DIR"), state);
        for key in listeners(weak.service) {
            spec = spec.env(format!("{prefix}__{key}"), "127.0.0.1:0");
        }
        for (key, value) in weak.set {
            spec = spec.env(format!("{prefix}__{key}"), self.fill(value));
        }
        spec
    }
}

/// The faults that a refused configuration was told, after their number.
pub(super) fn faults(weak: &Weak, refused: &Finished) -> Vec<String> {
    let said = refused.all();
    let what = format!("{} {:?}", weak.service, weak.set);
    assert_eq!(refused.code, Some(64), "{what}: {said}");
    assert!(!said.contains(KEY), "{what}: {said}");
    let lines: Vec<String> = refused.stderr.lines().map(str::to_owned).collect();
    let (head, faults) = lines.split_first().expect("a message");
    let noun = if faults.len() == 1 { "fault" } else { "faults" };
    let expected = format!(
        "error: the configuration of {} has {} {noun}:",
        weak.service,
        faults.len()
    );
    assert_eq!(*head, expected, "{what}: {said}");
    faults.iter().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn each_weak_setting_is_refused_with_its_own_message_and_accepted_with_dev() {
    let cli = Cli::new().expect("folders");
    let files = Files::new(&cli);
    for weak in WEAK {
        let says = files.fill(weak.says);
        // Asked beforehand and when it is to run, a service says the same, and does not run.
        for words in [&["config", "check"][..], &["run"]] {
            let refused = ran(files.spec(&cli, weak, words));
            let wanted = format!("{says} (accepted with --dev only)");
            assert_eq!(faults(weak, &refused), [wanted]);
        }
        let accepted = ran(files.spec(&cli, weak, &["config", "check", "--dev"])).expect_code(0);
        let told: Vec<&str> = accepted.stdout.lines().map(str::trim).collect();
        let good = format!("the configuration of {} is good", weak.service);
        let relaxed = "--dev accepts what production refuses:";
        assert_eq!(told, [&good, relaxed, &says], "{}", accepted.all());

        let mut running = files
            .spec(&cli, weak, &["run", "--dev"])
            .spawn()
            .expect("starts");
        running.wait_for_line(relaxed, SOON);
        running.wait_for(&says, SOON, |line| (line.text.trim() == says).then_some(()));
        // Whether it can be reached, what it was told of, is not the question here.
        if running.is_running() {
            running.kill().expect("ends");
        }
    }
}

#[test]
fn what_nothing_makes_safe_is_refused_with_dev_too() {
    let cli = Cli::new().expect("folders");
    let files = Files::new(&cli);
    for never in NEVER {
        for words in [&["config", "check", "--dev"][..], &["run", "--dev"]] {
            let refused = ran(files.spec(&cli, never, words));
            assert_eq!(faults(never, &refused), [files.fill(never.says)]);
        }
    }
}
