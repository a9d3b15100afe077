//! One network device from its making to its end.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Instant;

use mesh_types::OverlayAddrs;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

use super::TunError;
use super::belongings::{Belongings, Routing};
use super::device::TunDevice;
use super::netlink::Netlink;
use super::refusals::Refusals;

/// The device, with what is set on it.
#[derive(Debug)]
pub(super) struct Interface {
    name: String,
    pub(super) device: TunDevice,
    netlink: Netlink,
    index: u32,
    belongings: Belongings,
    refusals: Refusals,
}

/// The kernel's routing, of one device.
struct Linked<'a>(&'a mut Netlink, u32);

impl Routing for Linked<'_> {
    fn add_address(&mut self, ip: IpAddr) -> io::Result<()> {
        self.0.add_address(self.1, ip)
    }

    fn remove_address(&mut self, ip: IpAddr) -> io::Result<()> {
        self.0.remove_address(self.1, ip)
    }

    fn add_route(&mut self, to: IpAddr, from: IpAddr) -> io::Result<()> {
        self.0.add_route(self.1, to, from)
    }

    fn remove_route(&mut self, to: IpAddr, from: IpAddr) -> io::Result<()> {
        self.0.remove_route(self.1, to, from)
    }
}

impl Interface {
    /// Makes the device and brings it up.
    pub(super) fn create(name: &str, mtu: u16) -> Result<Self, TunError> {
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
            belongings: Belongings::default(),
            refusals: Refusals::default(),
        })
    }

    /// What is set on it.
    pub(super) fn belongings(&self) -> &Belongings {
        &self.belongings
    }

    /// What somebody else did to the device, if anything. Routes go with either of these; one
    /// that is taken away by itself is not noticed.
    pub(super) fn harm(&self) -> Option<&'static str> {
        match if_nametoindex(self.name.as_str()) {
            Ok(index) if index == self.index => {}
            Ok(_) | Err(Errno::ENODEV) => return Some("somebody removed it"),
            // The system is out of memory or descriptors, which says nothing of the device.
            Err(_) => return None,
        }
        let list = getifaddrs().ok()?;
        let mut is_up = false;
        let mut there = BTreeSet::new();
        for entry in list.filter(|entry| entry.interface_name == self.name) {
            is_up |= entry.flags.contains(InterfaceFlags::IFF_UP);
            let addr = entry.address.as_ref();
            if let Some(v4) = addr.and_then(|addr| addr.as_sockaddr_in()) {
                there.insert(IpAddr::from(v4.ip()));
            } else if let Some(v6) = addr.and_then(|addr| addr.as_sockaddr_in6()) {
                there.insert(IpAddr::from(v6.ip()));
            }
        }
        if !is_up {
            return Some("somebody set it down");
        }
        let complete = self.belongings.addrs().is_subset(&there);
        (!complete).then_some("somebody took an address from it")
    }

    /// Sets the MTU, should somebody have changed it: the kernel would send packets that are longer
    /// than the mesh takes. Without effect on one that is right.
    pub(super) fn keep_mtu(&mut self, mtu: u16) {
        if let Err(error) = self.netlink.set_mtu(self.index, mtu) {
            tracing::debug!(device = self.name, %error, "the MTU cannot be set");
        }
    }

    /// Sets addresses and routes; see [`Belongings::become_as`] and [`Refusals`].
    pub(super) fn set(
        &mut self,
        addrs: OverlayAddrs,
        peers: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Result<(), TunError> {
        let was_v6_off = self.belongings.is_v6_off();
        let mut kernel = Linked(&mut self.netlink, self.index);
        let (name, belongings) = (&self.name, &mut self.belongings);
        let set = self.refusals.pass(&mut kernel, now, |kernel| {
            belongings.become_as(name, kernel, addrs, peers)
        });
        match (was_v6_off, self.belongings.is_v6_off()) {
            (false, true) => tracing::info!(device = self.name, "without IPv6, as this machine"),
            (true, false) => tracing::info!(device = self.name, "with IPv6, as this machine now"),
            _ => {}
        }
        set
    }
}
