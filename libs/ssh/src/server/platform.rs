//! What has to happen between `fork` and `exec`, and the terminal's size: the one unsafe place.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::pty::Winsize;
use nix::unistd::{Gid, Uid, setgid, setgroups, setsid, setuid};
use tokio::io::unix::AsyncFd;

/// Whose rights a process is to have.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// All groups, the primary one included; looked up before the fork.
    pub(super) groups: Vec<Gid>,
}

/// Makes the command start in a session of its own, with its standard input as the controlling
/// terminal if `terminal`, and with the rights of `identity` if there is one.
pub(super) fn isolate(command: &mut Command, terminal: bool, identity: Option<Identity>) {
    let prepare = move || -> io::Result<()> {
        setsid()?;
        if terminal {
            take_terminal()?;
        }
        if let Some(Identity { uid, gid, groups }) = &identity {
            // Groups first: after `setuid` there is no right left to change them.
            setgroups(groups)?;
            setgid(*gid)?;
            setuid(*uid)?;
        }
        Ok(())
    };
    #[allow(
        unsafe_code,
        reason = "std offers no other way to run code between fork and exec"
    )]
    // SAFETY: `prepare` runs in the child between fork and exec. It makes system calls only, all
    // of them async-signal-safe; it neither allocates nor takes locks, since the group list was
    // filled before the fork and errors are plain error numbers.
    unsafe {
        command.pre_exec(prepare);
    }
}

fn take_terminal() -> io::Result<()> {
    // SAFETY: an ioctl on the standard input of this process; TIOCSCTTY takes an integer and
    // touches no memory of ours.
    #[allow(unsafe_code, reason = "nix has no safe form of TIOCSCTTY")]
    let result = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Registers a terminal, which must not block, with the reactor.
pub(super) fn watch(terminal: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[allow(
        unsafe_code,
        reason = "the safe constructor is deprecated for types that may lie"
    )]
    // SAFETY: the descriptor is owned by the `AsyncFd` from here on: it stays open and the same
    // until that is dropped, and an `OwnedFd` always names the descriptor that it owns.
    let watched = unsafe { AsyncFd::register(terminal) };
    watched.map_err(io::Error::from)
}

/// Sets the size of the terminal; programs in it get SIGWINCH.
pub(super) fn resize(terminal: &impl AsRawFd, size: &Winsize) -> io::Result<()> {
    // SAFETY: TIOCSWINSZ reads one `winsize` through the pointer, which is valid for the call;
    // the descriptor is open because it is borrowed.
    #[allow(unsafe_code, reason = "nix has no safe form of TIOCSWINSZ")]
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, size) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
