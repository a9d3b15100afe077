//! Where a service keeps its state unless it is told.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// `/var/lib/mesh/<service>` for root; for others `$XDG_DATA_HOME/mesh/<service>`, else
/// `$HOME/.local/share/mesh/<service>` (XDG Base Directory Specification).
pub fn default_state_dir(service: &str) -> PathBuf {
    let root = nix::unistd::geteuid().is_root();
    let var = |name: &str| std::env::var_os(name);
    choose(root, var("XDG_DATA_HOME"), var("HOME")).join(service)
}

fn choose(root: bool, data: Option<OsString>, home: Option<OsString>) -> PathBuf {
    let absolute = |dir: OsString| Some(PathBuf::from(dir)).filter(|dir| dir.is_absolute());
    let data = data
        .and_then(absolute)
        .or_else(|| Some(absolute(home?)?.join(".local/share")));
    match data {
        Some(data) if !root => data.join("mesh"),
        _ => Path::new("/var/lib/mesh").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_the_systems_place_and_users_have_their_own() {
        let home = || Some(OsString::from("/home/anna"));
        let data = || Some(OsString::from("/data"));
        assert_eq!(choose(true, data(), home()), Path::new("/var/lib/mesh"));
        assert_eq!(choose(false, data(), home()), Path::new("/data/mesh"));
        assert_eq!(
            choose(false, Some("relative".into()), home()),
            Path::new("/home/anna/.local/share/mesh")
        );
        assert_eq!(choose(false, None, None), Path::new("/var/lib/mesh"));
    }
}
