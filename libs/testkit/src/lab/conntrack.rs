//! Connection tracking: how a NAT is made to forget.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE` (linux/netfilter/nfnetlink_conntrack.h).
const DELETE: u16 = 1 << 8 | 2;
/// `NLM_F_REQUEST | NLM_F_ACK` (linux/netlink.h).
const REQUEST_WITH_ANSWER: u16 = 1 | 4;
/// `NLMSG_ERROR`: an answer with an error's number, 0 for success.
const ERROR: u16 = 2;
/// Header of a netlink message, and of netfilter's behind it.
const LEN: u8 = 16 + 4;

/// Forgets every connection that the network namespace of this thread tracks, as `conntrack -F`
/// does: a deletion that names none means all.
pub(super) fn flush() -> anyhow::Result<()> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .context("open netlink")?;
    let mut message = Vec::with_capacity(usize::from(LEN));
    message.extend(u32::from(LEN).to_ne_bytes());
    message.extend(DELETE.to_ne_bytes());
    message.extend(REQUEST_WITH_ANSWER.to_ne_bytes());
    // Sequence and sender, which a single question needs not; then any family, version 0.
    message.extend([0; 8]);
    message.extend([0; 4]);
    let kernel = NetlinkAddr::new(0, 0);
    sendto(netlink.as_raw_fd(), &message, &kernel, MsgFlags::empty()).context("ask the kernel")?;
    let mut answer = [0; 64];
    let read = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).context("its answer")?;
    let answer = &answer[..read];
    ensure!(
        answer.len() >= usize::from(LEN),
        "a short answer: {answer:?}"
    );
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    ensure!(kind == ERROR, "an answer of kind {kind}");
    // Nothing was tracked.
    let none = -(nix::errno::Errno::ENOENT as i32);
    ensure!(
        code == 0 || code == none,
        "{}",
        std::io::Error::from_raw_os_error(-code)
    );
    Ok(())
}
