//! Files and directories that are ours alone: 0600 and 0700, written atomically.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a private file or directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// Somebody else owns it.
    #[error(
        "{} belongs to user id {owner}, and this program runs as user id {us}: \
         run it as that user, or choose another directory with --state-dir",
        path.display()
    )]
    OtherOwner {
        /// What was opened.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user this process runs as.
        us: u32,
    },
    /// There is something else under that name.
    #[error("{} is not a {wanted}", path.display())]
    WrongKind {
        /// What was opened.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrivateFileError {
    let path = path.to_owned();
    move |source| PrivateFileError::Io {
        action,
        path,
        source,
    }
}

/// Makes sure that `path` is a directory of ours that nobody else may enter (0700). Missing
/// parents are made too; a mode that is too wide is narrowed.
///
/// # Errors
/// When it belongs to another user, is no directory, or the system refuses.
pub fn private_dir(path: impl AsRef<Path>) -> Result<(), PrivateFileError> {
    let path = path.as_ref();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("make", path))?;
    let metadata = fs::metadata(path).map_err(failed("examine", path))?;
    if !metadata.is_dir() {
        return Err(PrivateFileError::WrongKind {
            path: path.to_owned(),
            wanted: "directory",
        });
    }
    check_owner(path, metadata.uid())?;
    if metadata.mode() & 0o077 != 0 {
        let narrow = Permissions::from_mode(0o700);
        fs::set_permissions(path, narrow).map_err(failed("protect", path))?;
    }
    Ok(())
}

/// Writes a file of mode 0600 so that a crash leaves the old content or the new, never a part:
/// a new file beside it is filled, synced and renamed over it.
///
/// # Errors
/// When the old file belongs to another user, or the system refuses.
pub fn write_private(path: impl AsRef<Path>, content: &[u8]) -> Result<(), PrivateFileError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let path = path.as_ref();
    if let Ok(metadata) = fs::symlink_metadata(path) {
        check_owner(path, metadata.uid())?;
    }
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}-{number}.new", std::process::id()));
    let fresh = path.with_file_name(name);

    let written = fill(&fresh, content)
        .and_then(|()| fs::rename(&fresh, path).map_err(failed("replace", path)));
    if written.is_err() {
        // The fault to report is the first one; a left-over file holds nothing but our content.
        drop(fs::remove_file(&fresh));
    }
    written?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("sync", parent))
}

/// Reads a file of ours; `None` when there is none.
///
/// # Errors
/// When it belongs to another user, or the system refuses.
pub fn read_private(path: impl AsRef<Path>) -> Result<Option<Vec<u8>>, PrivateFileError> {
    let path = path.as_ref();
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            if let Ok(metadata) = fs::metadata(path) {
                check_owner(path, metadata.uid())?;
            }
            return Err(failed("read", path)(error));
        }
    };
    let metadata = fs::metadata(path).map_err(failed("examine", path))?;
    check_owner(path, metadata.uid())?;
    Ok(Some(content))
}

/// Like [`read_private`], and root may also read what belongs to another user: for commands that
/// root gives about a service that runs under a user of its own.
///
/// # Errors
/// When it cannot be read, or belongs to another user and we are not root.
pub fn read_private_of_service(
    path: impl AsRef<Path>,
) -> Result<Option<Vec<u8>>, PrivateFileError> {
    let path = path.as_ref();
    if !nix::unistd::geteuid().is_root() {
        return read_private(path);
    }
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn fill(path: &Path, content: &[u8]) -> Result<(), PrivateFileError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("write", path))?;
    file.write_all(content).map_err(failed("write", path))?;
    file.sync_all().map_err(failed("sync", path))
}

fn check_owner(path: &Path, owner: u32) -> Result<(), PrivateFileError> {
    let us = nix::unistd::geteuid().as_raw();
    if owner == us {
        Ok(())
    } else {
        Err(PrivateFileError::OtherOwner {
            path: path.to_owned(),
            owner,
            us,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_reads_what_a_service_keeps() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        assert_eq!(read_private_of_service(&path).expect("absent"), None);
        write_private(&path, b"secret").expect("written");
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65532), None).expect("given away");
            assert!(read_private(&path).is_err());
        }
        let read = read_private_of_service(&path).expect("read");
        assert_eq!(read.as_deref(), Some(&b"secret"[..]));
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it exists").mode() & 0o777
    }

    #[test]
    fn directories_are_made_private_and_wide_ones_narrowed() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("a/b");
        private_dir(&deep).expect("made");
        assert_eq!((mode(&deep), mode(&dir.path().join("a"))), (0o700, 0o700));
        fs::set_permissions(&deep, Permissions::from_mode(0o755)).expect("ours");
        private_dir(&deep).expect("narrowed");
        assert_eq!(mode(&deep), 0o700);
    }

    #[test]
    fn a_written_file_is_private_whole_and_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("node.key");
        assert_eq!(read_private(&path).expect("absent"), None);
        for content in [b"first".as_slice(), b"second"] {
            write_private(&path, content).expect("written");
            assert_eq!(read_private(&path).expect("read").as_deref(), Some(content));
            assert_eq!(mode(&path), 0o600);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn another_users_directory_is_refused_with_both_ids() {
        let us = nix::unistd::geteuid().as_raw();
        let text = check_owner(Path::new("/state"), us + 1)
            .expect_err("not ours")
            .to_string();
        assert!(
            text.contains(&format!("belongs to user id {}", us + 1)),
            "{text}"
        );
        assert!(text.contains("--state-dir"), "{text}");
    }

    #[test]
    fn a_file_in_the_place_of_a_directory_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        fs::write(&path, "").expect("written");
        assert!(
            private_dir(&path)
                .expect_err("no directory")
                .to_string()
                .contains("state")
        );
    }
}
