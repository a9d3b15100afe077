//! The TUN shell: a network device through which the whole machine is on the overlay.
//!
//! The device is the process's own: it is made without persistence and under a name that nobody
//! has, so that it vanishes with the process however that ends, and addresses and routes with it.
//! There is one route per peer and family, straight into the device, in the main table; no rule, no
//! route for whole prefixes, nothing about DNS. What else happens to lie in the overlay's ranges
//! stays where it was.
//!
//! The driver owns a [`Tun`] and gives it addresses and peers as the netmap has them. A device that
//! somebody removes is made again; what cannot be set is tried again each second, and named in the
//! status meanwhile.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use mesh_tunnel::Batch;
use mesh_types::OverlayAddrs;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

use crate::status::ShellStatus;

mod device;
mod netlink;

use device::TunDevice;
use netlink::Netlink;

/// Longest name of a network device, in bytes (`IFNAMSIZ` less the ending zero).
pub const NAME_MAX: usize = 15;
/// Packets per call of [`Tun::read`].
const READS: usize = 64;
/// How often [`wait_until_free`] looks.
const LOOK: Duration = Duration::from_millis(20);

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

/// Whether a network device can have this name.
pub fn is_device_name(name: &str) -> bool {
    // A percent sign would be a pattern.
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    (1..=NAME_MAX).contains(&name.len()) && name.chars().all(fits) && !matches!(name, "." | "..")
}

/// Waits until no device has this name, for `limit` at most: the device of a process that was
/// killed goes a moment after its locks do.
pub async fn wait_until_free(name: &str, limit: Duration) {
    let until = Instant::now() + limit;
    let mut told = false;
    while if_nametoindex(name).is_ok() && Instant::now() < until {
        if !told {
            tracing::info!(
                device = name,
                "a device of this name is still there; waiting for it to go"
            );
            told = true;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The device with what is set on it.
#[derive(Debug)]
pub(crate) struct Tun {
    name: String,
    mtu: u16,
    interface: Option<Interface>,
    addrs: Option<OverlayAddrs>,
    peers: BTreeSet<IpAddr>,
    problem: Option<String>,
}

/// One device from its making to its end.
#[derive(Debug)]
struct Interface {
    name: String,
    device: TunDevice,
    netlink: Netlink,
    index: u32,
    has_v6: bool,
    addrs: Option<OverlayAddrs>,
    routes: BTreeSet<IpAddr>,
}

impl Tun {
    /// Makes the device and brings it up.
    ///
    /// # Errors
    /// It cannot be had; the text says what to do.
    pub(crate) fn open(name: &str, mtu: u16) -> Result<Self, TunError> {
        Ok(Self {
            name: name.to_owned(),
            mtu,
            interface: Some(Interface::create(name, mtu)?),
            addrs: None,
            peers: BTreeSet::new(),
            problem: None,
        })
    }

    /// Gives the device the node's addresses, for the first time.
    ///
    /// # Errors
    /// It does not take them.
    pub(crate) fn start(&mut self, addrs: OverlayAddrs) -> Result<(), TunError> {
        self.addrs = Some(addrs);
        match &mut self.interface {
            Some(interface) => interface.set_addrs(addrs),
            None => Ok(()),
        }
    }

    /// Makes these the node's addresses and these its peers'. What cannot be set is told.
    pub(crate) fn set(&mut self, addrs: OverlayAddrs, peers: impl Iterator<Item = OverlayAddrs>) {
        self.addrs = Some(addrs);
        self.peers = peers
            .flat_map(|peer| [peer.v4.into(), peer.v6.into()])
            .collect();
        self.apply();
    }

    fn apply(&mut self) {
        let (Some(interface), Some(addrs)) = (&mut self.interface, self.addrs) else {
            return;
        };
        let set = interface
            .set_addrs(addrs)
            .and_then(|()| interface.set_routes(addrs, &self.peers));
        let problem = set.err().map(|error| chain(&error));
        self.tell(problem);
    }

    /// Once when something begins to be wrong, and once when it is over.
    fn tell(&mut self, problem: Option<String>) {
        if self.problem == problem {
            return;
        }
        match &problem {
            Some(problem) => tracing::warn!(device = self.name, problem, "TUN device"),
            None => tracing::info!(device = self.name, "TUN device is as it should be again"),
        }
        self.problem = problem;
    }

    /// Looks after the device: makes it again when it is gone or changed, tries again what failed. To be
    /// called about once a second.
    pub(crate) fn look(&mut self) {
        if let Some(harm) = self.interface.as_ref().and_then(Interface::harm) {
            self.interface = None;
            self.tell(Some(harm.to_owned()));
        }
        if self.interface.is_none() {
            match Interface::create(&self.name, self.mtu) {
                Ok(interface) => self.interface = Some(interface),
                Err(error) => return self.tell(Some(chain(&error))),
            }
        }
        if self.problem.is_some() {
            self.apply();
        }
    }

    /// Appends packets that the machine sends. `true`: there may be more.
    pub(crate) fn read(&self, batch: &mut Batch) -> bool {
        let Some(interface) = &self.interface else {
            return false;
        };
        for _ in 0..READS {
            // One that is gone is found by `look`.
            if interface.device.read(batch, usize::from(self.mtu)).is_err() {
                return false;
            }
        }
        true
    }

    /// Gives the machine a packet; `false` when it does not take it.
    pub(crate) fn write(&self, packet: &[u8]) -> bool {
        let device = self.interface.as_ref().map(|interface| &interface.device);
        device.is_some_and(|device| device.write(packet).is_ok())
    }

    /// Ready when the machine may have packets.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.interface {
            Some(interface) => interface.device.poll_readable(cx),
            None => Poll::Pending,
        }
    }

    /// For people.
    pub(crate) fn status(&self) -> ShellStatus {
        ShellStatus::Tun {
            device: self.name.clone(),
            ipv6: self.interface.as_ref().is_some_and(|tun| tun.has_v6),
            routes: self.interface.as_ref().map_or(0, |tun| tun.routes.len()),
            problem: self.problem.clone(),
        }
    }
}

impl Interface {
    fn create(name: &str, mtu: u16) -> Result<Self, TunError> {
        let fault = |source: io::Error| TunError::Device {
            name: name.to_owned(),
            source,
        };
        let device = TunDevice::create(name)?;
        let index = if_nametoindex(name).map_err(|errno| fault(errno.into()))?;
        let mut netlink = Netlink::open().map_err(fault)?;
        netlink.prepare(index, mtu).map_err(fault)?;
        netlink.up(index).map_err(fault)?;
        tracing::info!(device = name, "TUN device");
        Ok(Self {
            name: name.to_owned(),
            device,
            netlink,
            index,
            has_v6: true,
            addrs: None,
            routes: BTreeSet::new(),
        })
    }

    /// What somebody else did to the device, if anything. Routes go with either of these; one
    /// that is taken away by itself is not noticed.
    fn harm(&self) -> Option<&'static str> {
        if if_nametoindex(self.name.as_str()) != Ok(self.index) {
            return Some("somebody removed it");
        }
        // The system says nothing of the device only when it is out of memory or descriptors.
        let list = getifaddrs().ok()?;
        let mut is_up = false;
        let mut missing: BTreeSet<IpAddr> = match self.addrs {
            Some(addrs) => self.usable(addrs).collect(),
            None => BTreeSet::new(),
        };
        for entry in list.filter(|entry| entry.interface_name == self.name) {
            is_up |= entry.flags.contains(InterfaceFlags::IFF_UP);
            let addr = entry.address.as_ref();
            if let Some(v4) = addr.and_then(|addr| addr.as_sockaddr_in()) {
                missing.remove(&v4.ip().into());
            } else if let Some(v6) = addr.and_then(|addr| addr.as_sockaddr_in6()) {
                missing.remove(&v6.ip().into());
            }
        }
        if !is_up {
            return Some("somebody set it down");
        }
        (!missing.is_empty()).then_some("somebody took an address from it")
    }

    /// The addresses that this machine can have: without IPv6, only the one.
    fn usable(&self, addrs: OverlayAddrs) -> impl Iterator<Item = IpAddr> + use<> {
        let v6 = self.has_v6.then_some(addrs.v6.into());
        [Some(addrs.v4.into()), v6].into_iter().flatten()
    }

    fn set_addrs(&mut self, addrs: OverlayAddrs) -> Result<(), TunError> {
        if self.addrs == Some(addrs) {
            return Ok(());
        }
        let fault = |name: &str, ip: IpAddr, source: io::Error| TunError::Address {
            name: name.to_owned(),
            ip,
            source,
        };
        if let Some(former) = self.addrs.take() {
            for to in std::mem::take(&mut self.routes) {
                // Goes with its source address at the latest.
                let _gone = self.netlink.remove_route(self.index, to, from(former, to));
            }
            for ip in self.usable(former) {
                let removed = self.netlink.remove_address(self.index, ip);
                removed.map_err(|source| fault(&self.name, ip, source))?;
            }
        }
        for ip in self.usable(addrs) {
            match self.netlink.add_address(self.index, ip) {
                Err(error) if ip.is_ipv6() && netlink::is_v6_off(&error) => {
                    tracing::info!(device = self.name, "without IPv6, as this machine");
                    self.has_v6 = false;
                }
                added => added.map_err(|source| fault(&self.name, ip, source))?,
            }
        }
        self.addrs = Some(addrs);
        Ok(())
    }

    fn set_routes(
        &mut self,
        addrs: OverlayAddrs,
        peers: &BTreeSet<IpAddr>,
    ) -> Result<(), TunError> {
        let mut failed = Vec::new();
        let stale: Vec<IpAddr> = self.routes.difference(peers).copied().collect();
        for to in stale {
            let removed = self.netlink.remove_route(self.index, to, from(addrs, to));
            match removed {
                Ok(()) => {
                    self.routes.remove(&to);
                }
                Err(error) => failed.push((to, error)),
            }
        }
        for to in peers {
            if self.routes.contains(to) || (to.is_ipv6() && !self.has_v6) {
                continue;
            }
            match self.netlink.add_route(self.index, *to, from(addrs, *to)) {
                Ok(()) => {
                    self.routes.insert(*to);
                }
                Err(error) => failed.push((*to, error)),
            }
        }
        let count = failed.len();
        match failed.into_iter().next() {
            None => Ok(()),
            Some((ip, source)) => Err(TunError::Routes {
                name: self.name.clone(),
                count,
                ip,
                source,
            }),
        }
    }
}

/// Our address of the same family.
fn from(addrs: OverlayAddrs, to: IpAddr) -> IpAddr {
    if to.is_ipv4() {
        addrs.v4.into()
    } else {
        addrs.v6.into()
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
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
    fn names_are_what_the_kernel_takes() {
        for good in ["mesh0", "a", "wonder-mesh_0.1", "fifteen-bytes-x"] {
            assert!(is_device_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a b",
            "a/b",
            "mesh%d",
            "a:1",
            "sixteen-bytes-xx",
            "mäsh0",
            "a\n",
        ] {
            assert!(!is_device_name(bad), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_name_that_nobody_has_is_not_waited_for() {
        let begun = Instant::now();
        wait_until_free("mesh-none", Duration::from_secs(5)).await;
        assert!(begun.elapsed() < Duration::from_secs(4));
        // Every machine has it, and nobody removes it.
        wait_until_free("lo", Duration::from_millis(1)).await;
    }

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
