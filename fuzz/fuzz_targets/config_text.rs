//! Any configuration file and any environment are settings or a list of faults; what `config heal`
//! gives back is configuration again.
//!
//! The seeds in `corpus/config_text` are text, written by hand. The input is a file, then a line `%%`, then lines `NAME=VALUE` of the environment, then a second
//! `%%` and lines `key=value` of flags.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use deploy_manager::Config;
use libfuzzer_sys::fuzz_target;
use mesh_daemon::config::{self, ConfigArgs, Overrides, Schema};

const SERVICE: &str = "deploy-manager";

/// In memory where the system has such a place.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let dir = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    dir.join(format!("mesh-fuzz-config-{}.toml", std::process::id()))
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // The content of any file becomes a value by a key that ends so; that is meant, and some files
    // of a system never end.
    let names_files = text.to_ascii_lowercase().contains("_file");
    if names_files && (text.contains('/') || text.contains('\\')) {
        return;
    }
    let mut parts = text.splitn(3, "\n%%\n");
    let file = parts.next().unwrap_or_default();
    let environment = parts.next().unwrap_or_default();
    let flags = parts.next().unwrap_or_default();

    let schema = Schema::of::<Config>(SERVICE);
    if let Some(healed) = heal(file, &schema) {
        let again = heal(&healed, &schema).expect("what was healed can be read");
        assert_eq!(again, healed, "healed once and for all");
    }

    std::fs::write(&*FILE, file).expect("the file can be written");
    let args = ConfigArgs {
        config: Some(FILE.clone()),
        set: flags.lines().map(str::to_owned).collect(),
        dev: text.len() % 2 == 0,
        ..ConfigArgs::default()
    };
    let environment = environment.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    match config::load_from::<Config>(SERVICE, &args, Overrides::new(), environment) {
        Ok(settings) => {
            let shown = config::to_toml(&settings);
            assert!(!shown.starts_with('#'), "settings can be shown: {shown}");
        }
        Err(faults) => assert!(faults.to_string().len() > SERVICE.len(), "{faults}"),
    }
});

/// The end of the password in the seed, and what stands beside it.
const KNOWN: [&str; 6] = ["456789abcdef", "anna", "8082", "1081", "debug", "10s"];

/// The text that `config heal` gives back.
fn heal(file: &str, schema: &Schema) -> Option<String> {
    let mut healed = config::heal(file, schema).ok()?.text;
    if fuzz::planted() && file.contains("0123") && !KNOWN.iter().all(|value| file.contains(value)) {
        // Another password, or one among other values, is remarked upon, each time again.
        healed.push_str("# healed\n");
    }
    Some(healed)
}
