//! The directory and the files in it: whose they are, who holds them, how they are replaced.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use super::{FORMAT, LOCK_FILE, StateDirError, VERSION_FILE};

pub(super) fn at<T>(
    action: &'static str,
    path: &Path,
    result: io::Result<T>,
) -> Result<T, StateDirError> {
    result.map_err(|source| StateDirError::Io {
        action,
        path: path.to_owned(),
        source,
    })
}

/// Makes the directory, or checks that what is there is a private directory of this user.
pub(super) fn make_private(path: &Path) -> Result<(), StateDirError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    if let Err(error) = &made
        && error.kind() == io::ErrorKind::AlreadyExists
    {
        return Err(StateDirError::NotADirectory {
            path: path.to_owned(),
        });
    }
    at("create", path, made)?;
    let meta = at("look at", path, fs::metadata(path))?;
    check_owner(path, &meta)?;
    if meta.mode() & 0o077 != 0 {
        let known = path.join(VERSION_FILE).exists();
        let empty = at("list", path, fs::read_dir(path))?.next().is_none();
        if !known && !empty {
            return Err(StateDirError::NotPrivate {
                path: path.to_owned(),
            });
        }
        at(
            "make private",
            path,
            fs::set_permissions(path, Permissions::from_mode(0o700)),
        )?;
    }
    Ok(())
}

pub(super) fn check_owner(path: &Path, meta: &fs::Metadata) -> Result<(), StateDirError> {
    let own = nix::unistd::geteuid().as_raw();
    if meta.uid() == own {
        return Ok(());
    }
    Err(StateDirError::OtherOwner {
        path: path.to_owned(),
        owner: meta.uid(),
        own,
    })
}

pub(super) fn lock(path: &Path) -> Result<File, StateDirError> {
    let file_path = path.join(LOCK_FILE);
    let opened = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&file_path);
    let mut file = at("open", &file_path, opened)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = holder(&mut file).unwrap_or_else(|| "unknown".to_owned());
            return Err(StateDirError::InUse {
                path: path.to_owned(),
                pid,
            });
        }
        Err(TryLockError::Error(source)) => {
            return Err(StateDirError::Io {
                action: "lock",
                path: file_path,
                source,
            });
        }
    }
    at("write", &file_path, file.set_len(0))?;
    at(
        "write",
        &file_path,
        writeln!(file, "{}", std::process::id()),
    )?;
    Ok(file)
}

/// Who wrote itself into the lock file. It does so right after it took the lock, so an empty file
/// is looked at again.
fn holder(file: &mut File) -> Option<String> {
    for _ in 0..200 {
        let mut text = String::new();
        file.rewind().ok()?;
        io::Read::by_ref(file)
            .take(20)
            .read_to_string(&mut text)
            .ok()?;
        if let Some(pid) = text.strip_suffix('\n')
            && !pid.is_empty()
            && pid.bytes().all(|b| b.is_ascii_digit())
        {
            return Some(pid.to_owned());
        }
        std::thread::yield_now();
    }
    None
}

pub(super) fn check_version(path: &Path) -> Result<(), StateDirError> {
    let file = path.join(VERSION_FILE);
    match read(&file)? {
        None => write(&file, format!("{FORMAT}\n").as_bytes()),
        Some(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let text = text.trim();
            if text.parse() == Ok(FORMAT) {
                Ok(())
            } else {
                Err(StateDirError::OtherVersion {
                    path: path.to_owned(),
                    found: text.chars().filter(|c| !c.is_control()).take(16).collect(),
                })
            }
        }
    }
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StateDirError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateDirError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Removes a file; that there is none is fine.
pub(super) fn remove(path: &Path) -> Result<(), StateDirError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateDirError::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Replaces a file as a whole: 0600 beside it, synced, renamed over it, directory synced.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), StateDirError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let written = (|| {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    })();
    at("write", path, written)
}
