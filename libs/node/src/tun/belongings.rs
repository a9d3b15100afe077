//! What the agent has set on its device, and the way from there to what the netmap says.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use mesh_types::OverlayAddrs;

use super::TunError;
use super::netlink::is_v6_off;

/// What the kernel does to the device.
pub(super) trait Routing {
    /// Gives it an address; one that is there is no error.
    fn add_address(&mut self, ip: IpAddr) -> io::Result<()>;
    /// Takes an address away; one that is gone is no error.
    fn remove_address(&mut self, ip: IpAddr) -> io::Result<()>;
    /// Sends what is for `to` through it, with `from` as its source.
    fn add_route(&mut self, to: IpAddr, from: IpAddr) -> io::Result<()>;
    /// Takes such a route away; one that is gone is no error.
    fn remove_route(&mut self, to: IpAddr, from: IpAddr) -> io::Result<()>;
}

/// Addresses and routes that are on one device, by our hand.
///
/// INVARIANT: what was set is in here until the kernel has said that it is gone, whatever failed in
/// between: so nothing that the netmap no longer gives is left behind.
#[derive(Debug, Default)]
pub(super) struct Belongings {
    addrs: BTreeSet<IpAddr>,
    /// Destinations, with the source address that each route gives.
    routes: BTreeMap<IpAddr, IpAddr>,
    /// The machine has no IPv6, or has it turned off.
    v6_off: bool,
}

impl Belongings {
    /// The addresses that are on the device.
    pub(super) fn addrs(&self) -> &BTreeSet<IpAddr> {
        &self.addrs
    }

    /// How many routes lead into the device.
    pub(super) fn routes(&self) -> usize {
        self.routes.len()
    }

    /// Whether the machine would not take the IPv6 address.
    pub(super) fn is_v6_off(&self) -> bool {
        self.v6_off
    }

    /// Makes these the device's addresses and these the peers that it leads to. Where the machine
    /// has no IPv6, that is no error, and IPv4 alone is set.
    ///
    /// # Errors
    /// The first address, or else the routes, that could not be set or taken away; everything else
    /// was. To be tried again with the same.
    pub(super) fn become_as(
        &mut self,
        name: &str,
        kernel: &mut impl Routing,
        wanted: OverlayAddrs,
        peers: &BTreeSet<IpAddr>,
    ) -> Result<(), TunError> {
        let mut failed = Vec::new();
        self.routes.retain(|&to, &mut from| {
            if peers.contains(&to) && from == source(wanted, to) {
                return true;
            }
            let removed = kernel.remove_route(to, from);
            removed.map_err(|error| failed.push((to, error))).is_err()
        });
        let addressed = self.set_addrs(kernel, wanted);
        for &to in peers {
            if self.routes.contains_key(&to) || (to.is_ipv6() && self.v6_off) {
                continue;
            }
            let from = source(wanted, to);
            match kernel.add_route(to, from) {
                Ok(()) => {
                    self.routes.insert(to, from);
                }
                Err(error) => failed.push((to, error)),
            }
        }
        let name = || name.to_owned();
        // Routes from an address that is not there fail with it.
        addressed.map_err(|(ip, source)| TunError::Address {
            name: name(),
            ip,
            source,
        })?;
        let count = failed.len();
        match failed.into_iter().next() {
            None => Ok(()),
            Some((ip, source)) => Err(TunError::Routes {
                name: name(),
                count,
                ip,
                source,
            }),
        }
    }

    fn set_addrs(
        &mut self,
        kernel: &mut impl Routing,
        wanted: OverlayAddrs,
    ) -> Result<(), (IpAddr, io::Error)> {
        let mut fault = None;
        self.addrs.retain(|&ip| {
            if wanted.contains(ip) {
                return true;
            }
            let removed = kernel.remove_address(ip);
            let is_kept = removed.is_err();
            if let Err(error) = removed {
                fault.get_or_insert((ip, error));
            }
            is_kept
        });
        for ip in wanted.iter() {
            if self.addrs.contains(&ip) {
                continue;
            }
            match kernel.add_address(ip) {
                Err(error) if ip.is_ipv6() && is_v6_off(&error) => self.v6_off = true,
                Err(error) => {
                    fault.get_or_insert((ip, error));
                }
                Ok(()) => {
                    self.addrs.insert(ip);
                    self.v6_off &= !ip.is_ipv6();
                }
            }
        }
        fault.map_or(Ok(()), Err)
    }
}

/// Our address of the family of `to`.
fn source(addrs: OverlayAddrs, to: IpAddr) -> IpAddr {
    if to.is_ipv4() {
        addrs.v4.into()
    } else {
        addrs.v6.into()
    }
}

#[cfg(test)]
mod tests;
