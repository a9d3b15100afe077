use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::AdminConfig;

crate::settings! {
    /// Settings of a service.
    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Config {
        /// Health and metrics.
        admin: AdminConfig,
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            admin: AdminConfig::at(9999),
        }
    }
}

impl Settings for Config {
    fn admin(&self) -> Option<&AdminConfig> {
        Some(&self.admin)
    }
}

#[test]
fn a_file_is_made_once_and_healed_in_place_through_a_link() {
    let dir = tempfile::tempdir().expect("a directory");
    let schema = Schema::of::<Config>("example");
    let file = dir.path().join("example.toml");
    let code = |code: ExitCode| format!("{code:?}");
    let (good, failed, config) = (
        code(ExitCode::SUCCESS),
        code(ExitCode::FAILURE),
        code(exit_config()),
    );

    assert_eq!(code(heal_file(&schema, &file)), failed, "there is none yet");
    assert_eq!(code(init(&schema, &file)), good);
    assert_eq!(code(init(&schema, &file)), failed, "there is one already");

    fs::write(&file, "# mine\n[admin]\nexpose = true\n").expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("ours");
    let link = dir.path().join("link.toml");
    symlink(&file, &link).expect("linked");
    assert_eq!(code(heal_file(&schema, &link)), good);
    let text = fs::read_to_string(&file).expect("read");
    assert!(
        text.starts_with("# mine\n[admin]\nexpose = true\n\n#"),
        "{text}"
    );
    assert!(text.contains("\nlisten = \"127.0.0.1:9999\"\n"), "{text}");
    assert_eq!(fs::metadata(&file).expect("there").mode() & 0o777, 0o640);
    assert!(link.is_symlink());
    assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 2);

    fs::write(&file, "[admin]\nexposed = true\n").expect("written");
    assert_eq!(code(heal_file(&schema, &file)), config, "an unknown key");
    fs::write(&file, "[admin\n").expect("written");
    assert_eq!(code(heal_file(&schema, &file)), config, "no TOML");
    assert_eq!(fs::read_to_string(&file).expect("read"), "[admin\n");
}
