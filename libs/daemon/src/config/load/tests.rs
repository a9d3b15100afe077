use std::path::PathBuf;
use std::time::Duration;

use super::super::example::{Example, Mode};
use super::super::{load_from, to_toml};
use super::*;

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
    let mut weak = given("")
        .env("MESH_MY_EXAMPLE__SERVER__WORKERS", "12")
        .env("MESH_MY_EXAMPLE__STORE__PASSWORD", "0123")
        .env("MESH_MY_EXAMPLE__PEERS", "a, b,");
    weak.args.dev = true;
    let loaded = weak.load().expect("good");
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
fn no_key_names_an_item_of_a_list() {
    let faults = given("'peers[9223372036854775807]' = 'a'")
        .env("MESH_MY_EXAMPLE__PEERS[9223372036854775807]", "b")
        .env("mesh_my_example__modes[9223372036854775807]", "b")
        .env("MESH_OTHER__PEERS[9223372036854775807]", "not ours")
        .set("peers[9223372036854775807]=c")
        .load()
        .expect_err("faults");
    assert_eq!(faults.count(), 4, "{faults}");
    let text = faults.to_string();
    assert_eq!(text.matches("write the whole list").count(), 4, "{text}");
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
    crate::write_private(&path, b"swordfish-of-the-north\n").expect("a file");
    let variable = path.display().to_string();
    let loaded = secret
        .env("MESH_MY_EXAMPLE__STORE__PASSWORD_FILE", &variable)
        .load()
        .expect("good");
    assert_eq!(loaded.store.password.expose(), "swordfish-of-the-north");
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

/// The text of the faults of a file with this mode, and how many there are.
fn refused(file: &str, mode: u32) -> (String, usize) {
    use std::os::unix::fs::PermissionsExt as _;

    let given = given(file);
    let path = given.args.config.clone().expect("a file");
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).expect("ours");
    match given.load() {
        Ok(_) => (String::new(), 0),
        Err(faults) => (faults.to_string(), faults.count()),
    }
}

#[test]
fn secrets_that_can_be_guessed_or_read_are_refused_together_with_all_other_faults() {
    let good = "[store]\npassword = 'q8Zr1xV0bM4tYw2L'";
    assert_eq!(refused(good, 0o640), (String::new(), 0));
    let (text, count) = refused(good, 0o644);
    assert_eq!(count, 1, "{text}");
    assert!(text.contains("chmod o= "), "{text}");
    assert!(!text.contains("q8Zr1xV0bM4tYw2L"), "{text}");

    // A wrong type, an unknown key, a weak secret, an open file, and an unsafe address.
    let bad = "[server]\nworkers = 'x'\nlisten = '0.0.0.0:1'\nidel = '1s'\n\
               [store]\npassword = 'changeme'";
    let (text, count) = refused(bad, 0o604);
    assert_eq!(count, 5, "{text}");
    for part in [
        "has 5 faults",
        "server.workers (",
        "did you mean server.idle?",
        "is made of well-known words",
        "chmod o= ",
        "server.listen: plain HTTP",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn a_secret_file_that_everybody_may_read_is_refused() {
    let secret = given("");
    let path = secret.dir.path().join("password");
    std::fs::write(&path, "q8Zr1xV0bM4tYw2L").expect("a file");
    let variable = path.display().to_string();
    let faults = secret
        .env("MESH_MY_EXAMPLE__STORE__PASSWORD_FILE", &variable)
        .load()
        .expect_err("open");
    assert_eq!(faults.keys().collect::<Vec<_>>(), ["store.password_file"]);
}

#[test]
fn with_dev_each_relaxed_setting_is_named() {
    let given = given("[server]\nlisten = '0.0.0.0:1'\n[store]\npassword = 'secret'");
    let dev = ConfigArgs {
        dev: true,
        ..given.args.clone()
    };
    let (_, relaxed) =
        run_noting::<Example>("my-example", &dev, Overrides::new(), Map::new()).expect("accepted");
    let text = relaxed.join("\n");
    assert!(text.contains("server.listen: plain HTTP"), "{text}");
    assert!(text.contains("store.password ("), "{text}");
}
