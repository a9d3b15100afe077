//! The secrets of this machine, so that they are found wherever they stand: from the environment,
//! the contexts, the configuration and the state directories. Nothing read here is kept but in
//! [`Secrets`].

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use mesh_api::context::Contexts;
use zeroize::Zeroizing;

use super::archive::Bundle;
use super::local::walk;
use crate::redact::{Secrets, is_path_of_secret, is_secret_name};

/// No key, password or token is longer, in bytes.
const SECRET_MAX: u64 = 64 << 10;
/// A word of letters only that is shorter is an ordinary one, wherever it stands.
const WORD: usize = 16;

/// What is known of this machine's secrets.
#[derive(Debug, Default)]
pub(super) struct Learned {
    pub(super) secrets: Secrets,
    /// What is there and could not be read.
    unread: BTreeSet<PathBuf>,
}

impl Learned {
    /// Says whose secrets are not known.
    pub(super) fn tell(&self, bundle: &mut Bundle) {
        for path in &self.unread {
            let what = format!("secrets of {}", path.display());
            bundle.miss(&what, "not readable: run as root");
        }
    }

    /// What was read; notes what is there and cannot be.
    fn read<T>(&mut self, path: &Path, read: io::Result<T>) -> Option<T> {
        let absent = [
            ErrorKind::NotFound,
            ErrorKind::NotADirectory,
            ErrorKind::InvalidFilename,
        ];
        match read {
            Ok(read) => Some(read),
            Err(error) if absent.contains(&error.kind()) => None,
            Err(_) => {
                self.unread.insert(path.to_owned());
                None
            }
        }
    }
}

/// Variables with secret names, the files they point at, and passwords in URLs.
pub(super) fn from_environment(
    learned: &mut Learned,
    variables: impl Iterator<Item = (String, String)>,
) {
    for (name, value) in variables {
        from_setting(learned, &name, &value);
    }
}

/// The operators' keys.
pub(super) fn from_contexts(learned: &mut Learned) {
    let Ok(contexts) = Contexts::of_user() else {
        return;
    };
    for name in contexts.names() {
        if let Ok(context) = contexts.load(Some(&name)) {
            learned.secrets.learn_file(context.key.as_bytes());
        } else {
            // It may be damaged; what matters is whether there is something that is not known.
            from_file(learned, &contexts.path(&name));
        }
    }
    // Keys whose request waits for an answer lie beside them.
    if let Some(dir) = contexts.path("x").parent() {
        from_state(learned, &[dir.to_owned()]);
    }
}

/// Settings with secret names in the services' files, and the files they point at.
pub(super) fn from_configuration(learned: &mut Learned, config_dir: &Path) {
    let Some(files) = learned.read(config_dir, fs::read_dir(config_dir)) else {
        return;
    };
    for file in files.flatten() {
        let Some(text) = small(learned, &file.path()) else {
            continue;
        };
        let Ok(text) = std::str::from_utf8(&text) else {
            continue;
        };
        if let Ok(table) = toml::from_str(text) {
            from_toml(learned, "", &toml::Value::Table(table));
            continue;
        }
        // A file that is no TOML as a whole is learned from too.
        for line in text.lines() {
            from_line(learned, line);
        }
    }
}

/// `name` is the path of the value, as in the variable that would set it.
fn from_toml(learned: &mut Learned, name: &str, value: &toml::Value) {
    match value {
        toml::Value::String(text) => from_setting(learned, name, text),
        toml::Value::Integer(number) => from_setting(learned, name, &number.to_string()),
        toml::Value::Array(values) => {
            for value in values {
                from_toml(learned, name, value);
            }
        }
        toml::Value::Table(table) => {
            for (key, value) in table {
                from_toml(learned, &format!("{name}__{key}"), value);
            }
        }
        toml::Value::Float(_) | toml::Value::Boolean(_) | toml::Value::Datetime(_) => {}
    }
}

fn from_line(learned: &mut Learned, line: &str) {
    if let Ok(table) = toml::from_str(line) {
        return from_toml(learned, "", &toml::Value::Table(table));
    }
    let Some((name, value)) = line.split_once('=') else {
        return;
    };
    let bare = |value: &str| value.trim().trim_matches(['"', '\'']).to_owned();
    let (name, whole) = (name.trim(), Zeroizing::new(bare(value)));
    from_setting(learned, name, &whole);
    // A mark in a secret, or a remark behind it: nobody can tell.
    if let Some((value, _)) = value.split_once('#') {
        from_setting(learned, name, &Zeroizing::new(bare(value)));
    }
}

/// Files whose names say that they hold keys or tokens.
pub(super) fn from_state(learned: &mut Learned, roots: &[PathBuf]) {
    for root in roots {
        learned.read(root, fs::read_dir(root));
        for (path, found) in walk(root) {
            if found.is_dir() {
                learned.read(&path, fs::read_dir(&path));
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let words = ["key", "token", "secret", "password", "permit", "credential"];
            let is_secret = words.iter().any(|word| name.contains(word)) && !name.ends_with(".pub");
            if found.is_file() && is_secret {
                from_file(learned, &path);
            }
        }
    }
}

fn from_setting(learned: &mut Learned, name: &str, value: &str) {
    if let Some((_, rest)) = value.split_once("://")
        && let Some((user, _)) = rest.rsplit_once('@')
    {
        let password = user.split_once(':').map_or(user, |(_, password)| password);
        learned.secrets.learn_text(password);
    }
    if !is_secret_name(name) {
        return;
    }
    if is_path_of_secret(name, value) {
        from_file(learned, Path::new(value));
        return;
    }
    // What begins as a path does may be base64.
    if Path::new(value).is_absolute() && from_file(learned, Path::new(value)) {
        return;
    }
    // Headers begin with their names, which are no secrets: authorization=Bearer%20…
    let is_headers = name.to_ascii_lowercase().contains("headers");
    if !is_headers {
        learned.secrets.learn_text(value);
        learned.secrets.learn_file(value.as_bytes());
    }
    for pair in value.split(',').filter(|_| is_headers) {
        let value = pair.split_once('=').map_or(pair, |(_, value)| value);
        learned.secrets.learn_text(value);
    }
    let value = Zeroizing::new(value.replace("%20", " "));
    let is_plain = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphabetic());
    for word in value.split(['=', ' ', ',']) {
        if word.len() >= WORD || !is_plain(word) {
            learned.secrets.learn_text(word);
        }
    }
}

/// Whether there is such a file, although it may not be readable.
fn from_file(learned: &mut Learned, path: &Path) -> bool {
    if let Some(content) = small(learned, path) {
        learned.secrets.learn_file(&content);
        return true;
    }
    learned.unread.contains(path)
}

/// The content of an ordinary file that is no longer than a secret.
fn small(learned: &mut Learned, path: &Path) -> Option<Zeroizing<Vec<u8>>> {
    let found = learned.read(path, fs::metadata(path))?;
    if !found.is_file() || found.len() > SECRET_MAX {
        return None;
    }
    learned.read(path, fs::read(path)).map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::Redactor;

    const PLANT: &str = "Vexing7Ostrich4Lantern9";

    #[track_caller]
    fn assert_known(learned: &Learned) {
        let redactor = Redactor::new(&learned.secrets).expect("few");
        let (text, _) = redactor.redact(&format!("plainly {PLANT} here"));
        assert_eq!(text, "plainly [redacted] here");
    }

    #[test]
    fn each_place_that_keeps_secrets_is_learned_from() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("pg");
        fs::write(&file, format!("{PLANT}\n")).expect("written");
        for (name, value) in [
            ("MESH_DEPLOY_MANAGER__SOCKS__PASSWORD", PLANT.to_owned()),
            (
                "MESH_COORDINATOR__STORE__PASSWORD_FILE",
                file.display().to_string(),
            ),
            (
                "MESH_COORDINATOR__STORE__URL",
                format!("postgres://mesh:{PLANT}@db/mesh"),
            ),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                format!("authorization=Bearer%20{PLANT}"),
            ),
        ] {
            let mut learned = Learned::default();
            from_environment(&mut learned, [(name.to_owned(), value)].into_iter());
            assert_known(&learned);
        }

        let config = dir.path().join("etc");
        fs::create_dir(&config).expect("made");
        let text = format!("[socks]\npassword = \"{PLANT}\"\nbroken [");
        fs::write(config.join("deploy-manager.toml"), text).expect("written");
        let mut learned = Learned::default();
        from_configuration(&mut learned, &config);
        assert_known(&learned);

        let state = dir.path().join("state/coordinator");
        fs::create_dir_all(&state).expect("made");
        fs::write(state.join("master.key"), PLANT).expect("written");
        let mut learned = Learned::default();
        from_state(&mut learned, &[dir.path().join("state")]);
        assert_known(&learned);
    }

    #[test]
    fn what_is_no_secret_is_not_learned() {
        let mut learned = Learned::default();
        let variable = (
            "MESH_COORDINATOR__SERVER__LISTEN".to_owned(),
            PLANT.to_owned(),
        );
        from_environment(&mut learned, [variable].into_iter());
        let redactor = Redactor::new(&learned.secrets).expect("none");
        assert_eq!(redactor.redact(PLANT).0, PLANT);
    }

    /// With everything that ends a value somewhere.
    const ODD: &str = r#"Vex!ng 7(Ostrich) "x",Lantern9"#;

    /// No part of it is left, in whatever way a line of a log holds it.
    #[track_caller]
    fn assert_odd_is_gone(learned: &Learned) {
        let redactor = Redactor::new(&learned.secrets).expect("few");
        for line in [
            format!("INFO store: refused {ODD}: who is that?"),
            format!("INFO store: refused password={ODD}"),
            format!("INFO store: refused detail={ODD:?}"),
            serde_json::json!({ "level": "INFO", "message": ODD }).to_string(),
            serde_json::json!({ "message": format!("said {ODD:?}") }).to_string(),
            format!("b\"{}\"", ODD.as_bytes().escape_ascii()),
            // Cut off in the middle.
            format!("INFO store: refused {}", &ODD[..25]),
        ] {
            let (text, taken) = redactor.redact(&line);
            assert!(taken > 0, "{line}");
            for part in ["Vex!", "Ostrich", "\"x", "Lantern9"] {
                assert!(!text.contains(part), "{line}\nbecame\n{text}");
            }
        }
    }

    #[test]
    fn an_odd_secret_is_known_whole_from_wherever_it_is_set() {
        let mut learned = Learned::default();
        let variable = ("MESH_DEPLOY_MANAGER__SOCKS__PASSWORD", ODD);
        let variable = (variable.0.to_owned(), variable.1.to_owned());
        from_environment(&mut learned, [variable].into_iter());
        assert_odd_is_gone(&learned);

        let quoted = r#""Vex!ng 7(Ostrich) \"x\",Lantern9""#;
        for text in [
            format!("[socks]\npassword = {quoted} # as on the \"label\"\n"),
            format!("[socks]\npassword = '{ODD}'# as on the label\n"),
            format!("[socks]\npassword = '{ODD}'# as on the label\nbroken [\n"),
            format!("broken [\npassword = {ODD} # as on the label\n"),
            format!(
                "[socks]\npassword = \"\"\"\n{}\"\"\"\n",
                ODD.replace('"', "\\\"")
            ),
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            fs::write(dir.path().join("x.toml"), &text).expect("written");
            let mut learned = Learned::default();
            from_configuration(&mut learned, dir.path());
            assert_odd_is_gone(&learned);
        }
    }

    #[test]
    fn each_of_several_files_is_learned_from() {
        let dir = tempfile::tempdir().expect("a folder");
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&first, "Another3Heron8Candle5").expect("written");
        fs::write(&second, PLANT).expect("written");
        let config = dir.path().join("etc");
        fs::create_dir(&config).expect("made");
        let text =
            format!("token_file = [ # of two\n  {first:?}, # the old one\n  {second:?},\n]\n");
        fs::write(config.join("x.toml"), text).expect("written");
        let mut learned = Learned::default();
        from_configuration(&mut learned, &config);
        assert_known(&learned);
        let redactor = Redactor::new(&learned.secrets).expect("few");
        let path = format!("read {}", second.display());
        assert_eq!(redactor.redact(&path).0, path);
    }

    #[test]
    fn a_secret_that_begins_as_a_path_does_is_one() {
        let mut learned = Learned::default();
        let secret = format!("/{PLANT}");
        let variable = ("MESH_COORDINATOR__MASTER_KEY".to_owned(), secret.clone());
        from_environment(&mut learned, [variable].into_iter());
        let redactor = Redactor::new(&learned.secrets).expect("few");
        assert_eq!(
            redactor.redact(&format!("a {secret} b")).0,
            "a [redacted] b"
        );
    }

    #[test]
    fn ordinary_words_beside_a_secret_are_none() {
        let mut learned = Learned::default();
        let value = format!("authorization=Bearer%20{PLANT}");
        let variable = ("OTEL_EXPORTER_OTLP_HEADERS".to_owned(), value);
        from_environment(&mut learned, [variable].into_iter());
        assert_known(&learned);
        let redactor = Redactor::new(&learned.secrets).expect("few");
        let text = "it asked for authorization";
        assert_eq!(redactor.redact(text).0, text);
    }

    #[test]
    fn what_cannot_be_read_is_told_and_what_is_not_there_is_not() {
        let mut learned = Learned::default();
        // Reading it is refused to everybody, to root too: nothing is mapped at 0.
        for path in ["/proc/self/mem", "/run/no/such/token"] {
            let variable = ("MESH_RELAY__TOKEN_FILE".to_owned(), path.to_owned());
            from_environment(&mut learned, [variable].into_iter());
        }
        let mut bundle = Bundle::new(Redactor::new(&learned.secrets).expect("none"));
        learned.tell(&mut bundle);
        let packed = bundle.pack("x", crate::text::now()).expect("packs");
        let told: Vec<(&str, &str)> = packed
            .missing
            .iter()
            .map(|missing| (missing.what.as_str(), missing.why.as_str()))
            .collect();
        let mem = ("secrets of /proc/self/mem", "not readable: run as root");
        assert_eq!(told, [mem]);
    }
}
