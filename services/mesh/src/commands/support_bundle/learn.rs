//! The secrets of this machine, so that they are found wherever they stand: from the environment,
//! the contexts, the configuration and the state directories. Nothing read here is kept but in
//! [`Secrets`].

use std::fs;
use std::path::{Path, PathBuf};

use mesh_api::context::Contexts;
use zeroize::Zeroizing;

use super::local::walk;
use crate::redact::{Secrets, is_secret_name};

/// No key, password or token is longer, in bytes.
const SECRET_MAX: u64 = 64 << 10;

/// Variables with secret names, the files they point at, and passwords in URLs.
pub(super) fn from_environment(
    secrets: &mut Secrets,
    variables: impl Iterator<Item = (String, String)>,
) {
    for (name, value) in variables {
        from_setting(secrets, &name, &value);
    }
}

/// The operators' keys.
pub(super) fn from_contexts(secrets: &mut Secrets) {
    let Ok(contexts) = Contexts::of_user() else {
        return;
    };
    for name in contexts.names() {
        if let Ok(context) = contexts.load(Some(&name)) {
            secrets.learn_file(context.key.as_bytes());
        }
    }
    // Keys whose request waits for an answer lie beside them.
    if let Some(dir) = contexts.path("x").parent() {
        from_state(secrets, &[dir.to_owned()]);
    }
}

/// Settings with secret names in the services' files, and the files they point at.
pub(super) fn from_configuration(secrets: &mut Secrets, config_dir: &Path) {
    let Ok(files) = fs::read_dir(config_dir) else {
        return;
    };
    for file in files.flatten() {
        let Some(text) = small(&file.path()) else {
            continue;
        };
        let Ok(text) = std::str::from_utf8(&text) else {
            continue;
        };
        // By lines, so that a file that cannot be read as TOML is learned from too.
        for line in text.lines() {
            if let Some((name, value)) = line.split_once('=') {
                let value = value.trim().trim_matches(['"', '\'']);
                from_setting(secrets, name.trim(), value);
            }
        }
    }
}

/// Files whose names say that they hold keys or tokens.
pub(super) fn from_state(secrets: &mut Secrets, roots: &[PathBuf]) {
    for root in roots {
        for (path, found) in walk(root) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let words = ["key", "token", "secret", "password", "permit", "credential"];
            let is_secret = words.iter().any(|word| name.contains(word)) && !name.ends_with(".pub");
            if found.is_file() && is_secret {
                from_file(secrets, &path);
            }
        }
    }
}

fn from_setting(secrets: &mut Secrets, name: &str, value: &str) {
    if let Some((_, rest)) = value.split_once("://")
        && let Some((user, _)) = rest.rsplit_once('@')
    {
        let password = user.split_once(':').map_or(user, |(_, password)| password);
        secrets.learn_text(password);
    }
    if !is_secret_name(name) {
        return;
    }
    let path = Path::new(value);
    if path.is_absolute() {
        from_file(secrets, path);
    } else if value.contains(['=', ' ', ',']) || value.contains("%20") {
        // Such as headers: authorization=Bearer%20…
        let value = value.replace("%20", " ");
        let words = value.split(['=', ' ', ',']);
        words.for_each(|word| secrets.learn_text(word));
    } else {
        secrets.learn_file(value.as_bytes());
    }
}

fn from_file(secrets: &mut Secrets, path: &Path) {
    if let Some(content) = small(path) {
        secrets.learn_file(&content);
    }
}

/// The content of an ordinary file that is no longer than a secret.
fn small(path: &Path) -> Option<Zeroizing<Vec<u8>>> {
    let found = fs::metadata(path).ok()?;
    if !found.is_file() || found.len() > SECRET_MAX {
        return None;
    }
    fs::read(path).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::Redactor;

    const PLANT: &str = "Vexing7Ostrich4Lantern9";

    #[track_caller]
    fn assert_known(secrets: &Secrets) {
        let redactor = Redactor::new(secrets).expect("few");
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
            let mut secrets = Secrets::default();
            from_environment(&mut secrets, [(name.to_owned(), value)].into_iter());
            assert_known(&secrets);
        }

        let config = dir.path().join("etc");
        fs::create_dir(&config).expect("made");
        let text = format!("[socks]\npassword = \"{PLANT}\"\nbroken [");
        fs::write(config.join("deploy-manager.toml"), text).expect("written");
        let mut secrets = Secrets::default();
        from_configuration(&mut secrets, &config);
        assert_known(&secrets);

        let state = dir.path().join("state/coordinator");
        fs::create_dir_all(&state).expect("made");
        fs::write(state.join("master.key"), PLANT).expect("written");
        let mut secrets = Secrets::default();
        from_state(&mut secrets, &[dir.path().join("state")]);
        assert_known(&secrets);
    }

    #[test]
    fn what_is_no_secret_is_not_learned() {
        let mut secrets = Secrets::default();
        let variable = (
            "MESH_COORDINATOR__SERVER__LISTEN".to_owned(),
            PLANT.to_owned(),
        );
        from_environment(&mut secrets, [variable].into_iter());
        let redactor = Redactor::new(&secrets).expect("none");
        assert_eq!(redactor.redact(PLANT).0, PLANT);
    }
}
