//! Writes Cockpit's settings, so that it serves the gateway's path.

use std::io;
use std::path::{Path, PathBuf};

use crate::ini;

/// Cockpit's settings could not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigureError {
    /// The file belongs to somebody else.
    #[error("{} can be changed by root only: run 'sudo worker-agent console configure'", .0.display())]
    NotAllowed(PathBuf),
    /// The file cannot be read or written.
    #[error("cannot change {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What became of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Configured {
    /// They were changed: Cockpit has to be restarted.
    Changed,
    /// They were right already.
    AsBefore,
}

/// Sets what Cockpit needs behind the gateway: its path, plain HTTP on loopback, and the headers
/// that tell it who the browser is. Everything else in the file stays.
pub(crate) fn configure(conf: &Path, prefix: &str) -> Result<Configured, ConfigureError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => ConfigureError::NotAllowed(conf.to_owned()),
        _ => ConfigureError::Io {
            path: conf.to_owned(),
            source,
        },
    };
    let before = match std::fs::read_to_string(conf) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    let root = prefix.trim_end_matches('/');
    let values = [
        ("UrlRoot", root),
        ("AllowUnencrypted", "true"),
        ("ProtocolHeader", "X-Forwarded-Proto"),
        ("ForwardedForHeader", "X-Forwarded-For"),
    ];
    let same = |(key, value): &(&str, &str)| ini::value(&before, "WebService", key) == Some(*value);
    if values.iter().all(same) {
        return Ok(Configured::AsBefore);
    }
    let after = ini::with_values(&before, "WebService", &values);
    if let Some(dir) = conf.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    // Written beside it and renamed: Cockpit never sees half a file.
    let mut beside = conf.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    std::fs::write(&beside, after).map_err(failed)?;
    if let Ok(meta) = std::fs::metadata(conf) {
        std::fs::set_permissions(&beside, meta.permissions()).map_err(failed)?;
    }
    std::fs::rename(&beside, conf).map_err(failed)?;
    Ok(Configured::Changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_sets_what_cockpit_needs_and_is_done_the_second_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let conf = dir.path().join("cockpit/cockpit.conf");
        assert_eq!(
            configure(&conf, "/n/lab/w/").expect("writes"),
            Configured::Changed
        );
        let text = std::fs::read_to_string(&conf).expect("there");
        assert_eq!(ini::value(&text, "WebService", "UrlRoot"), Some("/n/lab/w"));
        assert_eq!(
            configure(&conf, "/n/lab/w/").expect("reads"),
            Configured::AsBefore
        );
        assert_eq!(
            configure(&conf, "/w/").expect("writes"),
            Configured::Changed
        );
    }
}
