//! The kernel's word that addresses of this machine came or went (rtnetlink(7)).

use std::future::pending;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Addresses of both families.
const GROUPS: u32 = (libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR).cast_unsigned();
/// More than one message of the kernel; what is cut off is of no interest.
const MESSAGES: usize = 4096;

/// A subscription to changes of addresses.
#[derive(Debug)]
pub(super) struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    /// `None` where the system lets this process hear nothing of it.
    pub(super) fn open() -> Option<Self> {
        Self::subscribe().inspect_err(tell).ok()
    }

    fn subscribe() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        #[allow(
            unsafe_code,
            reason = "the safe constructor is deprecated for types that may lie"
        )]
        // SAFETY: the descriptor is owned by the `AsyncFd` from here on: it stays open and the same
        // until that is dropped, and an `OwnedFd` always names the descriptor that it owns.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self(socket?))
    }

    /// Resolves when something has changed since it last did. Cancel-safe.
    ///
    /// # Errors
    /// Nothing more will be heard.
    async fn next(&self) -> io::Result<()> {
        let mut messages = [0; MESSAGES];
        let mut changed = false;
        loop {
            let mut ready = self.0.readable().await?;
            match recv(
                ready.get_inner().as_raw_fd(),
                &mut messages,
                MsgFlags::empty(),
            ) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // More than the socket holds is a change too.
                Ok(_) | Err(Errno::ENOBUFS) => changed = true,
                Err(Errno::EAGAIN) if changed => return Ok(()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Resolves when there is reason to look at the addresses, and never where nothing is heard of it.
/// Cancel-safe.
pub(super) async fn heard(changes: &mut Option<Changes>) {
    let Some(subscribed) = changes else {
        return pending().await;
    };
    if let Err(error) = subscribed.next().await {
        tell(&error);
        *changes = None;
    }
}

fn tell(error: &io::Error) {
    tracing::debug!(%error, "nothing is heard of changed addresses, they are looked at each second");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn nothing_is_heard_while_nothing_changes() {
        let changes = Changes::open().expect("a subscription");
        let heard = tokio::time::timeout(Duration::from_millis(50), changes.next()).await;
        assert!(heard.is_err(), "{heard:?}");
    }
}
