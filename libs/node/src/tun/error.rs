//! Why there is no TUN device, or not all that belongs on it.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// A TUN device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel does not offer any.
    #[error(
        "there is no /dev/net/tun here: load it with 'modprobe tun'; give it to a container with \
         'docker run --device /dev/net/tun --cap-add NET_ADMIN'; or do without, by \
         'worker-agent run --net userspace'"
    )]
    Missing {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It may not be opened.
    #[error(
        "/dev/net/tun may not be opened: run as root; in a systemd unit set \
         'DeviceAllow=/dev/net/tun rw', for a container '--device /dev/net/tun'; or do without, by \
         'worker-agent run --net userspace'"
    )]
    Closed {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The process may not make network devices.
    #[error(
        "making a network device needs root or the capability CAP_NET_ADMIN: run as root, or give \
         it with 'sudo setcap cap_net_admin+ep {}', or do without, by 'worker-agent run --net \
         userspace'", .program.display()
    )]
    NoRights {
        /// This program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another device has the name.
    #[error(
        "a network device {name} is there already and is not this agent's: choose another name with \
         tun.device, or remove it with 'ip link delete {name}'"
    )]
    Taken {
        /// The name.
        name: String,
    },
    /// The device cannot be made or set up.
    #[error("the network device {name} cannot be set up")]
    Device {
        /// The name.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The device does not take an address.
    #[error("the network device {name} does not take the address {ip}")]
    Address {
        /// The device.
        name: String,
        /// The node's overlay address.
        ip: IpAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Routes cannot be set.
    #[error(
        "{count} routes to peers cannot be set on {name}, the one to {ip} among them ('ip route get \
         {ip}' shows what is in the way)"
    )]
    Routes {
        /// The device.
        name: String,
        /// How many.
        count: usize,
        /// The first of them.
        ip: IpAddr,
        /// What the system said of it.
        #[source]
        source: io::Error,
    },
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn the_causes_of_an_error_are_told() {
        let error = TunError::Routes {
            name: "mesh0".into(),
            count: 2,
            ip: IpAddr::from([100, 64, 0, 7]),
            source: Errno::EEXIST.into(),
        };
        let text = chain(&error);
        assert!(text.contains("ip route get 100.64.0.7"), "{text}");
        assert!(text.contains("File exists"), "{text}");
    }
}
