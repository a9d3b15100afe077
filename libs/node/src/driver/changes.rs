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
        let mut changed = false;
        loop {
            let mut ready = self.0.readable().await?;
            let mut messages = [0; MESSAGES];
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

    use mesh_testkit::{Lab, Need, needs};

    use super::*;

    #[test]
    fn an_address_that_comes_and_one_that_goes_are_heard_of_and_nothing_else() {
        if !needs(&[Need::Root, Need::Program("ip")]) {
            return;
        }
        let lab = Lab::new().expect("a lab");
        let host = lab.host("alone").expect("a host");
        let ip = |words: &[&str]| {
            let ran = host.spec("ip").args(words).run(Duration::from_secs(30));
            ran.expect("runs").expect_code(0);
        };
        ip(&["link", "set", "lo", "up"]);
        host.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let changes = Changes::open().expect("a subscription");
                let quiet = Duration::from_millis(50);
                let none = tokio::time::timeout(quiet, changes.next()).await;
                assert!(none.is_err(), "{none:?}");
                for verb in ["add", "del"] {
                    ip(&["addr", verb, "192.0.2.1/32", "dev", "lo"]);
                    let soon = Duration::from_secs(30);
                    let heard = tokio::time::timeout(soon, changes.next()).await;
                    heard.expect("it is heard of").expect("no error");
                }
            });
        });
    }
}
