//! `/dev/net/tun`: one packet a read, one packet a write, nothing kept when it is closed.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::task::{Context, Poll};

use mesh_tunnel::Batch;
use nix::errno::Errno;
use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{NAME_MAX, TunError};

/// Where the kernel gives devices away.
const CLONE: &str = "/dev/net/tun";

/// `struct ifreq` of `TUNSETIFF` (linux/if.h): name, flags, and what other requests use.
#[repr(C)]
struct Request {
    name: [u8; NAME_MAX + 1],
    flags: u16,
    unused: [u8; 22],
}

/// A device of layer 3 that lives as long as this.
#[derive(Debug)]
pub(super) struct TunDevice {
    file: AsyncFd<OwnedFd>,
}

impl TunDevice {
    /// Makes the device, which must not exist yet. `name` is a checked one.
    pub(super) fn create(name: &str) -> Result<Self, TunError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(CLONE)
            .map_err(|source| opening(source, name))?;
        let file = OwnedFd::from(file);
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;
        let mut request = Request {
            name: [0; NAME_MAX + 1],
            flags: u16::try_from(flags).expect("the flags of a TUN device are 16 bits"),
            unused: [0; 22],
        };
        for (to, from) in request.name[..NAME_MAX].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        #[allow(unsafe_code, reason = "nix has no safe form of TUNSETIFF")]
        // SAFETY: TUNSETIFF reads and writes one `ifreq` through the pointer; `Request` is at least
        // as large (40 bytes), is valid for the call, and its name ends with a zero.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
        if result != 0 {
            return Err(making(io::Error::last_os_error(), name));
        }
        #[allow(
            unsafe_code,
            reason = "the safe constructor is deprecated for types that may lie"
        )]
        // SAFETY: the descriptor is owned by the `AsyncFd` from here on: it stays open and the same
        // until that is dropped, and an `OwnedFd` always names the descriptor that it owns.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) };
        let file = file.map_err(|error| TunError::Device {
            name: name.to_owned(),
            source: error.into(),
        })?;
        Ok(Self { file })
    }

    /// Ready when there may be a packet to read.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        // An error is found by the read that follows.
        self.file.poll_read_ready(cx).map(|_| ())
    }

    /// Appends the next packet of at most `most` bytes; `WouldBlock` when there is none.
    pub(super) fn read(&self, batch: &mut Batch, most: usize) -> io::Result<usize> {
        batch.push_up_to(most, |slot| {
            self.file.try_io(Interest::READABLE, |file| {
                nix::unistd::read(file, slot).map_err(io::Error::from)
            })
        })
    }

    /// Gives the machine one packet; it is dropped when the machine does not take it.
    pub(super) fn write(&self, packet: &[u8]) -> io::Result<()> {
        // Not through tokio: a device that takes nothing drops, it does not wait.
        nix::unistd::write(self.file.get_ref(), packet)
            .map(drop)
            .map_err(io::Error::from)
    }
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

/// What it means that `/dev/net/tun` cannot be opened.
fn opening(source: io::Error, name: &str) -> TunError {
    match errno(&source) {
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO | Errno::ENOTDIR) => {
            TunError::Missing { source }
        }
        Some(Errno::EACCES | Errno::EPERM) => TunError::Closed { source },
        _ => TunError::Device {
            name: name.to_owned(),
            source,
        },
    }
}

/// What it means that the kernel makes no device.
fn making(source: io::Error, name: &str) -> TunError {
    let name = name.to_owned();
    match errno(&source) {
        Some(Errno::EPERM) => TunError::NoRights {
            program: std::env::current_exe().unwrap_or_else(|_| "worker-agent".into()),
            source,
        },
        Some(Errno::EBUSY) => TunError::Taken { name },
        _ => TunError::Device { name, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_large_as_the_kernels() {
        assert!(size_of::<Request>() >= size_of::<libc::ifreq>());
    }

    #[test]
    fn what_is_missing_is_named_with_the_next_command() {
        let of = |errno: Errno| io::Error::from(errno);
        for (error, words) in [
            (opening(of(Errno::ENOENT), "mesh0"), "modprobe tun"),
            (opening(of(Errno::ENODEV), "mesh0"), "--device /dev/net/tun"),
            (opening(of(Errno::EPERM), "mesh0"), "DeviceAllow"),
            (making(of(Errno::EPERM), "mesh0"), "setcap cap_net_admin"),
            (making(of(Errno::EBUSY), "mesh0"), "ip link delete mesh0"),
        ] {
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
