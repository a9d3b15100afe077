//! `/dev/net/tun`: a packet, or a stretch of a TCP connection, a read and a write
//! ([`mesh_tunnel::offload`]); nothing kept when it is closed.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::task::{Context, Poll};

use mesh_tunnel::Batch;
use mesh_tunnel::offload::{self, HEADER, MAX_MERGED, MAX_PACKET};
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

/// What the kernel may leave to us: checksums, and segmentation of TCP.
const OFFLOADS: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// A device of layer 3 that lives as long as this.
pub(super) struct TunDevice {
    file: AsyncFd<File>,
    /// What one read may bring.
    buffer: Box<[u8]>,
}

impl fmt::Debug for TunDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TunDevice").field(&self.file).finish()
    }
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
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL | libc::IFF_VNET_HDR;
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
        #[allow(unsafe_code, reason = "nix has no safe form of TUNSETOFFLOAD")]
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let result = unsafe {
            let offloads = libc::c_ulong::from(OFFLOADS);
            libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, offloads)
        };
        if result != 0 {
            // The header says so of each packet: then there is none to split.
            let error = io::Error::last_os_error();
            tracing::debug!(device = name, %error, "the kernel keeps segmentation to itself");
        }
        #[allow(
            unsafe_code,
            reason = "the safe constructor is deprecated for types that may lie"
        )]
        // SAFETY: the descriptor is owned by the `AsyncFd` from here on: it stays open and the same
        // until that is dropped, and a `File` always names the descriptor that it owns.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) };
        let file = file.map_err(|error| TunError::Device {
            name: name.to_owned(),
            source: error.into(),
        })?;
        Ok(Self {
            file,
            buffer: vec![0; HEADER + MAX_PACKET].into_boxed_slice(),
        })
    }

    /// Ready when there may be a packet to read.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        // An error is found by the read that follows.
        self.file.poll_read_ready(cx).map(|_| ())
    }

    /// Appends what one read brings, in packets of at most `mtu` bytes; `WouldBlock` when there is
    /// nothing. What cannot be made packets of is dropped: `Ok(false)`.
    pub(super) fn read(&mut self, batch: &mut Batch, mtu: usize) -> io::Result<bool> {
        let buffer = &mut self.buffer;
        let len = self
            .file
            .try_io(Interest::READABLE, |mut file| file.read(buffer))?;
        let Some((header, packet)) = buffer[..len].split_first_chunk_mut::<HEADER>() else {
            return Ok(false);
        };
        Ok(offload::split(*header, packet, mtu, batch).is_ok())
    }

    /// Gives the machine packets, those of a TCP connection together where they follow each other.
    /// How many it did not take: these are dropped.
    pub(super) fn write<'a>(&self, packets: impl Iterator<Item = &'a [u8]> + Clone) -> usize {
        let mut refused = 0;
        let mut rest = packets;
        while let Some(merged) = offload::merge(rest.clone()) {
            let mut parts = [IoSlice::new(&[]); MAX_MERGED + 1];
            parts[0] = IoSlice::new(merged.head());
            let payloads = rest.by_ref().take(merged.count());
            for (part, packet) in parts[1..].iter_mut().zip(payloads) {
                *part = IoSlice::new(&packet[merged.payload()..]);
            }
            // Not through tokio: a device that takes nothing drops, it does not wait.
            let mut file = self.file.get_ref();
            if file.write_vectored(&parts[..=merged.count()]).is_err() {
                refused += merged.count();
            }
        }
        refused
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
