use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::{duration, load_from, to_toml};
use super::*;
use crate::admin::AdminConfig;
use crate::secret::Secret;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Example {
    server: Server,
    store: Store,
    peers: Vec<String>,
    mode: Mode,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Server {
    listen: SocketAddr,
    workers: u16,
    #[serde(with = "duration")]
    idle: Duration,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Store {
    path: Option<PathBuf>,
    password: Secret,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Agent,
    Sshd,
}

impl Default for Example {
    fn default() -> Self {
        Self {
            // Differs from `Server::default`: the outer default must win for keys not given.
            server: Server {
                workers: 7,
                ..Server::default()
            },
            store: Store::default(),
            peers: Vec::new(),
            mode: Mode::Agent,
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 8080));
        Self {
            listen,
            workers: 2,
            idle: Duration::from_secs(30),
        }
    }
}

impl Settings for Example {
    fn validate(&self, faults: &mut Faults) {
        faults.require(
            self.server.workers > 0,
            "server.workers",
            "must be at least 1",
        );
        let loopback = self.server.listen.ip().is_loopback();
        faults.require_unless_dev(loopback, "server.listen", "plain HTTP on all addresses");
    }

    fn admin(&self) -> Option<&AdminConfig> {
        None
    }
}

struct Given {
    dir: tempfile::TempDir,
    args: ConfigArgs,
    env: Vec<(String, String)>,
}

fn given(file: &str) -> Given {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("example.toml");
    std::fs::write(&path, file).expect("a file");
    Given {
        dir,
        args: ConfigArgs {
            config: Some(path),
            ..ConfigArgs::default()
        },
        env: vec![],
    }
}

impl Given {
    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn set(mut self, text: &str) -> Self {
        self.args.set.push(text.to_owned());
        self
    }

    fn load(self) -> Result<Example, ConfigFaults> {
        self.load_with(Overrides::new())
    }

    fn load_with(self, overrides: Overrides) -> Result<Example, ConfigFaults> {
        load_from("my-example", &self.args, overrides, self.env)
    }
}

#[test]
fn nothing_given_means_the_defaults() {
    assert_eq!(given("").load().expect("good"), Example::default());
}

#[test]
fn a_later_layer_wins_and_keys_not_given_keep_the_outer_default() {
    let loaded = given("mode = 'sshd'\n[server]\nlisten = '127.0.0.1:1'\nidle = '5m'")
        .env("MESH_MY_EXAMPLE__SERVER__LISTEN", "127.0.0.1:2")
        .env("MESH_MY_EXAMPLE__SERVER__IDLE", "6m")
        .env("MESH_OTHER__SERVER__LISTEN", "127.0.0.1:9")
        .set("server.idle=7m")
        .load_with(
            Overrides::new()
                .set("server.listen", Some("127.0.0.1:3"))
                .set("x", None::<u8>),
        )
        .expect("good");
    assert_eq!(loaded.server.listen.port(), 3);
    assert_eq!(loaded.server.idle, Duration::from_secs(420));
    assert_eq!(loaded.server.workers, 7);
    assert_eq!(loaded.mode, Mode::Sshd);
}

#[test]
fn texts_from_the_environment_become_numbers_and_lists_where_those_are_wanted() {
    let loaded = given("")
        .env("MESH_MY_EXAMPLE__SERVER__WORKERS", "12")
        .env("MESH_MY_EXAMPLE__STORE__PASSWORD", "0123")
        .env("MESH_MY_EXAMPLE__PEERS", "a, b,")
        .load()
        .expect("good");
    assert_eq!(loaded.server.workers, 12);
    assert_eq!(loaded.store.password.expose(), "0123");
    assert_eq!(loaded.peers, ["a", "b"]);
}

#[test]
fn every_fault_is_reported_at_once() {
    let faults =
        given("[server]\nlisten = 'nowhere'\nworkerz = 1\nworkers = 70000\n[nonsense]\na = 1")
            .env("MESH_MY_EXAMPLE__SERVER__IDLE", "soon")
            .env("MESH_MY_EXAMPLE__MODES", "agent")
            .set("mode=both")
            .set("noequals")
            .load()
            .expect_err("faults");
    let text = faults.to_string();
    for part in [
        "the configuration of my-example has 8 faults:",
        "server.workerz (",
        "unknown key; did you mean server.workers?",
        "nonsense (",
        "server.listen (",
        "server.workers (",
        "server.idle (environment): \"soon\" is no duration",
        "modes (environment): unknown key; did you mean mode?",
        "mode (flag): ",
        "flag: --set noequals: write KEY=VALUE",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert_eq!(faults.count(), 8);
}

#[test]
fn validation_adds_all_its_faults_and_dev_lifts_the_unsafe_ones() {
    let file = "[server]\nworkers = 0\nlisten = '0.0.0.0:80'";
    let faults = given(file).load().expect_err("faults");
    assert_eq!(
        faults.keys().collect::<Vec<_>>(),
        ["server.workers", "server.listen"]
    );
    let mut dev = given(file).set("server.workers=1");
    dev.args.dev = true;
    dev.load().expect("accepted with --dev");
}

#[test]
fn a_secret_comes_from_its_file_and_is_never_shown() {
    let secret = given("");
    let path = secret.dir.path().join("password");
    std::fs::write(&path, "swordfish\n").expect("a file");
    let variable = path.display().to_string();
    let loaded = secret
        .env("MESH_MY_EXAMPLE__STORE__PASSWORD_FILE", &variable)
        .load()
        .expect("good");
    assert_eq!(loaded.store.password.expose(), "swordfish");
    let shown = to_toml(&loaded);
    assert!(shown.contains("password = \"[redacted]\""), "{shown}");
    assert!(!shown.contains("swordfish"));
}

#[test]
fn a_secret_file_that_is_missing_or_doubled_is_a_fault() {
    let missing = given("[store]\npassword_file = '/nowhere/at/all'")
        .load()
        .expect_err("missing");
    assert!(
        missing.to_string().contains("cannot read /nowhere/at/all"),
        "{missing}"
    );
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("password");
    std::fs::write(&path, "x").expect("a file");
    let file = format!(
        "[store]\npassword = 'y'\npassword_file = '{}'",
        path.display()
    );
    let doubled = given(&file).load().expect_err("doubled");
    assert!(doubled.to_string().contains("not both"), "{doubled}");
}

#[test]
fn a_file_that_was_asked_for_must_be_there_and_be_toml() {
    let mut absent = given("");
    absent.args.config = Some(PathBuf::from("/nowhere/example.toml"));
    let text = absent.load().expect_err("absent").to_string();
    assert!(
        text.contains("/nowhere/example.toml: cannot be read"),
        "{text}"
    );
    let broken = given("listen = ").load().expect_err("broken");
    assert_eq!(broken.count(), 1);
}
