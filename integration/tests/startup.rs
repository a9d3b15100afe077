//! What a service says to its configuration before it does anything: weak settings, unknown keys,
//! generated files, versions.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use integration::Cli;
use mesh_testkit::{Finished, Spec};

const SOON: Duration = Duration::from_secs(60);
const SERVICES: &[&str] = &[
    "coordinator",
    "relay",
    "traffic-gateway",
    "deploy-manager",
    "worker-agent",
];
/// 64 hexadecimal digits that nobody uses.
const KEY: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// One weak setting: which service, what is set, and what its own message says.
struct Weak {
    service: &'static str,
    set: &'static [(&'static str, &'static str)],
    says: &'static str,
}

/// `@open` stands for a file that everybody may read, `@closed` for one that only we may.
const WEAK: &[Weak] = &[
    Weak {
        service: "coordinator",
        set: &[("ADMIN__LISTEN", "0.0.0.0:9464")],
        says: "admin.listen: the admin endpoint has no password",
    },
    Weak {
        service: "coordinator",
        set: &[
            ("STORE__URL", "postgres://mesh@db.example.org/mesh"),
            ("STORE__TLS", "disable"),
            ("MASTER_KEY_FILE", "@closed"),
        ],
        says: "store.tls: ",
    },
    Weak {
        service: "coordinator",
        set: &[("STORE__URL", "postgres://mesh@db.example.org/mesh")],
        says: "master_key: with postgres the master key comes from outside",
    },
    Weak {
        service: "coordinator",
        set: &[("MASTER_KEY_FILE", "@open")],
        says: "master_key_file (environment): every user of this machine may read",
    },
    Weak {
        service: "coordinator",
        set: &[("BUS__REDIS_URL", "redis://redis.example.org:6379/0")],
        says: "bus.tls: ",
    },
    Weak {
        service: "coordinator",
        set: &[("STORE__PASSWORD", "postgres")],
        says: "store.password (environment): is made of well-known words",
    },
    Weak {
        service: "coordinator",
        set: &[
            ("BUS__REDIS_URL", "rediss://redis.example.org:6379/0"),
            ("BUS__PASSWORD", "zq81kx"),
        ],
        says: "bus.password (environment): has 6 characters, 16 are needed",
    },
    Weak {
        service: "relay",
        set: &[("ADMIN__LISTEN", "0.0.0.0:9468")],
        says: "admin.listen: the admin endpoint has no password",
    },
    Weak {
        service: "relay",
        set: &[("TOKEN_FILE", "@open")],
        says: "token_file (environment): every user of this machine may read",
    },
    Weak {
        service: "traffic-gateway",
        set: &[("SERVER__LISTEN", "0.0.0.0:8081")],
        says: "server.listen: plain http on 0.0.0.0:8081 would send passwords in the clear",
    },
    Weak {
        service: "traffic-gateway",
        set: &[
            ("SERVER__LISTEN", "0.0.0.0:8081"),
            ("SERVER__PUBLISHED_ON_LOOPBACK", "true"),
            ("SERVER__ALLOWED_HOSTS", "gateway.example.org"),
        ],
        says: "server.published_on_loopback: other names than localhost",
    },
    Weak {
        service: "traffic-gateway",
        set: &[
            ("SERVER__TLS__CERTIFICATE", "@closed"),
            ("SERVER__TLS__KEY", "@open"),
        ],
        says: "server.tls.key (environment): every user of this machine may read",
    },
    Weak {
        service: "traffic-gateway",
        set: &[("ADMIN__LISTEN", "[::]:9465")],
        says: "admin.listen: the admin endpoint has no password",
    },
    Weak {
        service: "deploy-manager",
        set: &[("SOCKS__LISTEN", "0.0.0.0:1080")],
        says: "socks.listen: an address that is not loopback needs socks.user",
    },
    Weak {
        service: "deploy-manager",
        set: &[("SOCKS__NETWORKS__HOME", "0.0.0.0:1081")],
        says: "socks.networks.home: an address that is not loopback needs socks.user",
    },
    Weak {
        service: "deploy-manager",
        set: &[("SOCKS__USER", "me"), ("SOCKS__PASSWORD", "ChangeMe-2026")],
        says: "socks.password (environment): is made of well-known words",
    },
    Weak {
        service: "deploy-manager",
        set: &[("SOCKS__USER", "me"), ("SOCKS__PASSWORD_FILE", "@open")],
        says: "socks.password_file (environment): every user of this machine may read",
    },
    Weak {
        service: "deploy-manager",
        set: &[("ADMIN__LISTEN", "0.0.0.0:9466")],
        says: "admin.listen: the admin endpoint has no password",
    },
    Weak {
        service: "worker-agent",
        set: &[("ADMIN__LISTEN", "0.0.0.0:9467")],
        says: "admin.listen: the admin endpoint has no password",
    },
    Weak {
        service: "deploy-manager",
        set: &[("TOKEN_FILE", "@closed,@open")],
        says: "token_file (environment): every user of this machine may read",
    },
    Weak {
        service: "worker-agent",
        set: &[("TOKEN_FILE", "@open")],
        says: "token_file (environment): every user of this machine may read",
    },
];

/// Settings that are refused with `--dev` too: no setting is safe that way.
const NEVER: &[Weak] = &[
    Weak {
        service: "worker-agent",
        set: &[("CONSOLE__COCKPIT", "10.0.0.1:9090")],
        says: "console.cockpit: cockpit is reached on loopback only",
    },
    Weak {
        service: "traffic-gateway",
        set: &[("SERVER__TLS__CERTIFICATE", "@closed")],
        says: "server.tls: ",
    },
];

struct Files {
    open: PathBuf,
    closed: PathBuf,
}

impl Files {
    fn new(cli: &Cli) -> Self {
        let [open, closed] = [("open", 0o644), ("closed", 0o600)].map(|(name, mode)| {
            let path = cli.work("secrets").with_extension(name);
            fs::write(&path, KEY).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
            path
        });
        Self { open, closed }
    }

    fn with(&self, spec: Spec, service: &str, set: &[(&str, &str)]) -> Spec {
        let prefix = format!("MESH_{}", service.replace('-', "_").to_uppercase());
        set.iter().fold(spec, |spec, (key, value)| {
            let name = format!("{prefix}__{key}");
            let value = value.replace("@open", &self.open.display().to_string());
            spec.env(
                name,
                value.replace("@closed", &self.closed.display().to_string()),
            )
        })
    }
}

fn ran(spec: Spec) -> Finished {
    let ran = spec.run(SOON).expect("runs");
    assert!(!ran.all().contains("panicked"), "{}", ran.all());
    ran
}

/// Checks the configuration; worker-agent wants a verb with it.
fn checked(cli: &Cli, service: &str) -> Spec {
    cli.product(service).args(["config", "check"])
}

#[test]
fn each_weak_setting_is_refused_with_its_own_message_and_accepted_with_dev() {
    let cli = Cli::new().expect("folders");
    let files = Files::new(&cli);
    for weak in WEAK {
        let spec = files.with(checked(&cli, weak.service), weak.service, weak.set);
        let refused = ran(spec);
        let said = refused.all();
        assert_eq!(
            refused.code,
            Some(64),
            "{}: {:?}: {said}",
            weak.service,
            weak.set
        );
        let line = said
            .lines()
            .find(|line| line.trim_start().to_lowercase().starts_with(weak.says));
        assert!(line.is_some(), "{:?} is not in: {said}", weak.says);
        assert!(said.contains("(accepted with --dev only)"), "{said}");
        assert!(!said.contains(KEY), "{said}");

        let spec = files.with(checked(&cli, weak.service), weak.service, weak.set);
        let accepted = ran(spec.arg("--dev"));
        assert_eq!(
            accepted.code,
            Some(0),
            "{}: {:?}: {}",
            weak.service,
            weak.set,
            accepted.all()
        );
    }
    for never in NEVER {
        let spec = files.with(checked(&cli, never.service), never.service, never.set);
        let refused = ran(spec.arg("--dev"));
        let said = refused.all();
        assert_eq!(
            refused.code,
            Some(64),
            "{}: {:?}: {said}",
            never.service,
            never.set
        );
        assert!(
            said.to_lowercase().contains(never.says),
            "{:?}: {said}",
            never.says
        );
    }
}

#[test]
fn all_faults_of_a_service_are_listed_at_once() {
    let cli = Cli::new().expect("folders");
    let files = Files::new(&cli);
    for (service, set, expected) in [
        (
            "coordinator",
            &[
                ("ADMIN__LISTEN", "0.0.0.0:9464"),
                ("STORE__URL", "postgres://mesh@db.example.org/mesh"),
                ("STORE__TLS", "disable"),
                ("STORE__PASSWORD", "changeme"),
                ("BUS__REDIS_URL", "redis://redis.example.org:6379/0"),
                ("BUS__PASSWORD_FILE", "@open"),
                ("SERVER__LISEN", "0.0.0.0:1"),
                ("STORE__MAX_CONNECTIONS", "many"),
            ][..],
            &[
                "admin.listen",
                "store.tls",
                "store.password",
                "master_key",
                "bus.tls",
                "bus.password_file",
                "did you mean server.listen?",
                "store.max_connections",
            ][..],
        ),
        (
            "traffic-gateway",
            &[
                ("ADMIN__LISTEN", "0.0.0.0:9465"),
                ("SERVER__LISTEN", "0.0.0.0:8081"),
                ("LIMIT__CONNECT", "1s"),
                ("LIMITS__IDLE", "soon"),
            ][..],
            &[
                "admin.listen",
                "server.listen",
                "did you mean limits?",
                "limits.idle",
            ][..],
        ),
        (
            "deploy-manager",
            &[
                ("ADMIN__LISTEN", "0.0.0.0:9466"),
                ("SOCKS__LISTEN", "0.0.0.0:1080"),
                ("SOCKS__USER", "me"),
                ("STATE_DIRR", "/x"),
            ][..],
            &[
                "admin.listen",
                "socks.user",
                "socks.listen",
                "did you mean state_dir?",
            ][..],
        ),
    ] {
        let refused = ran(files.with(checked(&cli, service), service, set));
        let said = refused.all();
        assert_eq!(refused.code, Some(64), "{said}");
        let count = format!("has {} faults:", expected.len());
        assert!(said.contains(&count), "{count:?} is not in: {said}");
        for part in expected {
            assert!(said.contains(part), "{part:?} is not in: {said}");
        }
    }
}

#[test]
fn a_generated_file_is_accepted_changes_nothing_and_needs_no_healing() {
    let cli = Cli::new().expect("folders");
    for service in SERVICES {
        let file = cli.work(&format!("{service}.toml"));
        let product = || cli.product(service);
        let init = ran(product().args(["config", "init", "--output"]).arg(&file));
        assert_eq!(init.code, Some(0), "{}", init.all());
        let check = ran(product().args(["config", "check", "--config"]).arg(&file));
        assert_eq!(check.code, Some(0), "{}", check.all());
        let shown = |config: &str| {
            let spec = product().args(["config", "check", "--print-config", "--config", config]);
            let shown = ran(spec);
            assert_eq!(shown.code, Some(0), "{}", shown.all());
            shown.stdout
        };
        let path = file.to_str().expect("a plain path");
        assert_eq!(shown(path), shown("/dev/null"), "{service}");
        let before = fs::read_to_string(&file).expect("read");
        let heal = ran(product().args(["config", "heal"]).arg(&file));
        assert_eq!(heal.code, Some(0), "{}", heal.all());
        assert_eq!(
            fs::read_to_string(&file).expect("read"),
            before,
            "{service}"
        );

        // A file of last year: one key, one that is misspelt.
        fs::write(&file, "[log]\nlevel = \"debug\" # ours\nformt = \"json\"\n").expect("written");
        let heal = ran(product().args(["config", "heal"]).arg(&file));
        assert_eq!(heal.code, Some(64), "{}", heal.all());
        assert!(
            heal.all().contains("log.formt; did you mean log.format?"),
            "{}",
            heal.all()
        );
        let after = fs::read_to_string(&file).expect("read");
        assert!(
            after.contains("level = \"debug\" # ours\nformt = \"json\"\n"),
            "{after}"
        );
        assert!(after.contains("\n[admin]\n"), "{after}");
        let mended = after.replace("formt", "# formt");
        fs::write(&file, mended).expect("written");
        let check = ran(product().args(["config", "check", "--config"]).arg(&file));
        assert_eq!(check.code, Some(0), "{}", check.all());
    }
}

#[test]
fn every_program_tells_the_same_version() {
    let cli = Cli::new().expect("folders");
    let token = mesh_types::token::PREFIX.trim_end_matches('.');
    let derp = mesh_tunnel::derp::VERSION;
    let protocols = format!("protocols: grpc mesh.v1, join-token {token}, derp {derp}\n");
    for service in SERVICES {
        let long = ran(cli.product(service).arg("--version"));
        let first = format!("{service} {}\n", env!("CARGO_PKG_VERSION"));
        assert!(long.stdout.starts_with(&first), "{}", long.all());
        assert!(long.stdout.ends_with(&protocols), "{}", long.all());
    }
}

#[test]
fn health_of_a_service_that_does_not_run_is_1_and_says_where_it_looked() {
    let cli = Cli::new().expect("folders");
    // Nobody listens on the discard port of this address.
    for service in SERVICES {
        let spec = cli.product(service).args(["health", "--set"]);
        let health = ran(spec.arg("admin.listen=127.9.8.7:9"));
        assert_eq!(health.code, Some(1), "{}", health.all());
        assert!(health.stderr.contains("127.9.8.7:9"), "{}", health.all());
    }
}
