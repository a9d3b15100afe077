//! What a test mounts for itself and its processes alone: small disks, files of the system.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Runs `action` on a thread of its own that has mounts of its own, as have the threads and
/// processes that it starts: what it mounts nobody else sees, and it is gone with the last of
/// them. A panic inside goes on outside.
///
/// # Panics
/// When this is not root.
pub fn with_own_mounts<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    let name = thread::current().name().unwrap_or("test").to_owned();
    thread::scope(|scope| {
        let apart = thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_NEWNS).expect("root has mounts of its own");
                let all = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, all, None::<&str>)
                    .expect("root keeps its mounts to itself");
                action()
            })
            .expect("a thread starts");
        apart
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Puts `file` in the place of `target`, such as `/etc/hosts`, inside [`with_own_mounts`]. What is
/// written to `file` later is seen there.
pub fn stand_in(file: &Path, target: &Path) -> anyhow::Result<()> {
    mount(
        Some(file),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("mount {} over {}", file.display(), target.display()))
}

/// A small disk in memory, inside [`with_own_mounts`].
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Of `kib` KiB at `at`, which is made; for its owner only.
    pub fn mount(at: &Path, kib: u32) -> anyhow::Result<Self> {
        fs::create_dir_all(at)?;
        let options = format!("size={kib}k,mode=0700");
        mount(
            Some("tmpfs"),
            at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .with_context(|| format!("mount a disk of {kib} KiB at {}", at.display()))?;
        Ok(Self { at: at.to_owned() })
    }

    /// Fills it to the last byte.
    pub fn fill(&self) -> anyhow::Result<Filled> {
        let path = self.at.join("somebody-elses-data");
        let mut file = File::create(&path)?;
        let mut written = 0_u64;
        let full = loop {
            match file.write(&[b'x'; 512]) {
                Ok(bytes) => written += u64::try_from(bytes)?,
                Err(error) => break error,
            }
        };
        ensure!(
            full.kind() == io::ErrorKind::StorageFull,
            "it broke after {written} bytes: {full}"
        );
        Ok(Filled { path })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Processes that still end there keep it until they have; nobody else sees it.
        let _gone = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// What fills a disk, until it is freed.
#[derive(Debug)]
#[must_use = "the disk is full only as long as this is there"]
pub struct Filled {
    path: PathBuf,
}

impl Filled {
    /// Gives the room back.
    pub fn free(self) -> anyhow::Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Need, needs};

    #[test]
    fn a_disk_is_full_until_it_is_freed_and_nobody_else_sees_it() {
        if !needs(&[Need::Root]) {
            return;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let at = dir.path().join("disk");
        with_own_mounts(|| {
            let disk = SmallDisk::mount(&at, 64).expect("mounted");
            let filled = disk.fill().expect("filled");
            let refused = fs::write(at.join("more"), "x").expect_err("full");
            assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
            filled.free().expect("freed");
            fs::write(at.join("more"), "x").expect("room again");
        });
        assert!(!at.join("more").exists());
    }

    #[test]
    fn a_file_stands_in_for_one_of_the_system_inside_only() {
        if !needs(&[Need::Root]) {
            return;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("hosts");
        let hosts = Path::new("/etc/hosts");
        let read = || fs::read_to_string(hosts).expect("reads");
        let before = read();
        fs::write(&file, "first").expect("writes");
        with_own_mounts(|| {
            stand_in(&file, hosts).expect("mounted");
            assert_eq!(read(), "first");
            fs::write(&file, "second").expect("writes");
            assert_eq!(read(), "second");
        });
        assert_eq!(read(), before);
    }
}
