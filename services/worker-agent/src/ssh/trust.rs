//! Makes the machine's sshd trust the network's certificate authority.

use std::io;
use std::path::{Path, PathBuf};

use mesh_ssh::PublicKey;

/// The authorities' file, under sshd's directory.
const AUTHORITIES: &str = "mesh_user_ca.pub";
/// The drop-in that names it.
const DROP_IN: &str = "sshd_config.d/50-mesh.conf";

/// sshd could not be made to trust the authority.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// The files belong to somebody else.
    #[error("{} can be changed by root only: run 'sudo worker-agent ssh trust'", .0.display())]
    NotAllowed(PathBuf),
    /// There is no sshd.
    #[error("there is no {}: install sshd first (on Debian: apt-get install openssh-server)", .0.display())]
    NoSshd(PathBuf),
    /// The main file does not read drop-ins.
    #[error("{} does not read {DROP_IN}: add the line 'Include /etc/ssh/sshd_config.d/*.conf' at its top", .0.display())]
    NoInclude(PathBuf),
    /// The authority is no key.
    #[error("the network's SSH authority is not a public key")]
    Authority(#[source] mesh_ssh::key::KeyError),
    /// A file cannot be read or written.
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
pub(crate) enum Trusted {
    /// They were changed: sshd has to be reloaded.
    Changed,
    /// They were right already.
    AsBefore,
}

/// Adds the authority to those that sshd accepts user certificates of. Other networks' stay.
pub(crate) fn trust(sshd_dir: &Path, authority: &str) -> Result<Trusted, TrustError> {
    let authority: PublicKey = authority.parse().map_err(TrustError::Authority)?;
    let main = sshd_dir.join("sshd_config");
    let config = match std::fs::read_to_string(&main) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(TrustError::NoSshd(main));
        }
        Err(error) => return Err(failed(main, error)),
    };
    if !config.lines().any(includes_drop_ins) {
        return Err(TrustError::NoInclude(main));
    }
    let authorities = sshd_dir.join(AUTHORITIES);
    let mut keys = read(&authorities)?;
    let known = keys
        .lines()
        .filter_map(|line| line.parse().ok())
        .any(|key: PublicKey| key == authority);
    let drop_in = sshd_dir.join(DROP_IN);
    let wanted = format!(
        "# Written by 'worker-agent ssh trust'.\nTrustedUserCAKeys {}\n",
        authorities.display()
    );
    if known && read(&drop_in)? == wanted {
        return Ok(Trusted::AsBefore);
    }
    if !known {
        if !keys.is_empty() && !keys.ends_with('\n') {
            keys.push('\n');
        }
        keys.push_str(&format!("{authority}\n"));
        write(&authorities, &keys)?;
    }
    write(&drop_in, &wanted)?;
    Ok(Trusted::Changed)
}

fn includes_drop_ins(line: &str) -> bool {
    let mut words = line.split_whitespace();
    words
        .next()
        .is_some_and(|word| word.eq_ignore_ascii_case("include"))
        && words.any(|pattern| pattern.contains("sshd_config.d/"))
}

fn read(path: &Path) -> Result<String, TrustError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(failed(path.to_owned(), error)),
    }
}

/// Replaces a file whole: sshd never sees half of one.
fn write(path: &Path, text: &str) -> Result<(), TrustError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let written = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&beside, text))
        .and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|error| failed(path.to_owned(), error))
}

fn failed(path: PathBuf, source: io::Error) -> TrustError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => TrustError::NotAllowed(path),
        _ => TrustError::Io { path, source },
    }
}

#[cfg(test)]
mod tests {
    use mesh_ssh::PrivateKey;

    use super::*;

    fn sshd(config: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("sshd_config"), config).expect("written");
        dir
    }

    #[test]
    fn authorities_of_several_networks_are_trusted_together() {
        let dir = sshd("Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n");
        let lines: Vec<String> = (0..2)
            .map(|_| PrivateKey::generate().public_key().to_string())
            .collect();
        for line in &lines {
            assert_eq!(trust(dir.path(), line).expect("written"), Trusted::Changed);
            assert_eq!(trust(dir.path(), line).expect("read"), Trusted::AsBefore);
        }
        let keys = std::fs::read_to_string(dir.path().join(AUTHORITIES)).expect("there");
        assert_eq!(keys.lines().collect::<Vec<_>>(), lines);
        let drop_in = std::fs::read_to_string(dir.path().join(DROP_IN)).expect("there");
        assert!(drop_in.contains("TrustedUserCAKeys"));
    }

    #[test]
    fn a_machine_that_would_not_read_it_is_told_so() {
        let line = PrivateKey::generate().public_key().to_string();
        let dir = sshd("UsePAM yes\n#Include /etc/ssh/sshd_config.d/*.conf\n");
        let error = trust(dir.path(), &line).expect_err("not read");
        assert!(error.to_string().contains("Include"), "{error}");
        let empty = tempfile::tempdir().expect("a directory");
        let error = trust(empty.path(), &line).expect_err("no sshd");
        assert!(error.to_string().contains("openssh-server"), "{error}");
        assert!(trust(dir.path(), "nonsense").is_err());
    }
}
