//! Against a kernel that now and then refuses, and has IPv6 or not.

use nix::errno::Errno;
use proptest::prelude::*;

use super::*;

/// A device in a kernel, as far as this goes.
#[derive(Debug, Default)]
struct Kernel {
    addrs: BTreeSet<IpAddr>,
    routes: BTreeMap<IpAddr, IpAddr>,
    v6_off: bool,
    /// Which of the next calls fail.
    failing: Vec<bool>,
    calls: usize,
}

impl Kernel {
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.failing.pop() {
            Some(true) => Err(Errno::ENOBUFS.into()),
            _ => Ok(()),
        }
    }

    fn call_for(&mut self, ip: IpAddr) -> io::Result<()> {
        if ip.is_ipv6() && self.v6_off {
            return Err(Errno::EACCES.into());
        }
        self.call()
    }
}

impl Routing for Kernel {
    fn add_address(&mut self, ip: IpAddr) -> io::Result<()> {
        self.call_for(ip)?;
        assert!(self.addrs.insert(ip), "{ip} is there");
        Ok(())
    }

    fn remove_address(&mut self, ip: IpAddr) -> io::Result<()> {
        self.call()?;
        assert!(self.addrs.remove(&ip), "{ip} was never there");
        // IPv4 routes go with their source address.
        self.routes.retain(|_, from| *from != ip || from.is_ipv6());
        Ok(())
    }

    fn add_route(&mut self, to: IpAddr, from: IpAddr) -> io::Result<()> {
        self.call_for(to)?;
        if !self.addrs.contains(&from) {
            return Err(Errno::EINVAL.into());
        }
        if self.routes.contains_key(&to) {
            return Err(Errno::EEXIST.into());
        }
        self.routes.insert(to, from);
        Ok(())
    }

    fn remove_route(&mut self, to: IpAddr, from: IpAddr) -> io::Result<()> {
        self.call()?;
        if self.routes.get(&to) == Some(&from) {
            self.routes.remove(&to);
        }
        Ok(())
    }
}

fn addrs(n: u8) -> OverlayAddrs {
    OverlayAddrs {
        v4: [100, 64, 0, n].into(),
        v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, n.into()].into(),
    }
}

/// Both addresses of each.
fn peers(of: &[u8]) -> BTreeSet<IpAddr> {
    let each = of.iter().map(|n| addrs(*n));
    each.flat_map(|addrs| addrs.iter().collect::<Vec<_>>())
        .collect()
}

fn of_family(ips: impl IntoIterator<Item = IpAddr>, v6_too: bool) -> BTreeSet<IpAddr> {
    ips.into_iter()
        .filter(|ip| ip.is_ipv4() || v6_too)
        .collect()
}

#[test]
fn an_address_that_is_no_longer_given_goes_although_it_did_not_at_once() {
    let mut kernel = Kernel::default();
    let mut own = Belongings::default();
    let to = peers(&[7]);
    own.become_as("mesh0", &mut kernel, addrs(1), &to)
        .expect("set");
    // Both routes go; the address of one family does, the other's not.
    kernel.failing = vec![true, false, false, false];
    let error = own.become_as("mesh0", &mut kernel, addrs(2), &to);
    let error = error.expect_err("refused once");
    assert!(matches!(error, TunError::Address { ip, .. } if ip.is_ipv6()));
    assert_eq!(kernel.addrs.len(), 3, "{kernel:?}");
    // And the netmap has yet others by the time that it is tried again.
    own.become_as("mesh0", &mut kernel, addrs(3), &to)
        .expect("set");
    assert_eq!(kernel.addrs, addrs(3).iter().collect());
    assert_eq!(&kernel.addrs, own.addrs());
}

#[test]
fn without_ipv6_there_is_ipv4_and_no_error_until_there_is_ipv6() {
    let mut kernel = Kernel {
        v6_off: true,
        ..Kernel::default()
    };
    let mut own = Belongings::default();
    let to = peers(&[7, 8]);
    own.become_as("mesh0", &mut kernel, addrs(1), &to)
        .expect("no error");
    assert!(own.is_v6_off());
    assert_eq!(kernel.addrs, [addrs(1).v4.into()].into());
    assert_eq!((own.routes(), kernel.routes.len()), (2, 2));
    kernel.v6_off = false;
    own.become_as("mesh0", &mut kernel, addrs(1), &to)
        .expect("set");
    assert!(!own.is_v6_off());
    assert_eq!(kernel.addrs, addrs(1).iter().collect());
    assert_eq!((own.routes(), kernel.routes.len()), (4, 4));
}

#[test]
fn what_is_as_it_should_be_costs_no_call() {
    let mut kernel = Kernel::default();
    let mut own = Belongings::default();
    let to = peers(&[7, 8, 9]);
    for expected in [8, 8] {
        own.become_as("mesh0", &mut kernel, addrs(1), &to)
            .expect("set");
        assert_eq!(kernel.calls, expected);
    }
}

proptest! {
    #[test]
    fn the_kernel_has_what_the_netmap_says_once_it_refuses_nothing(
        steps in proptest::collection::vec(
            (
                1..5_u8,
                proptest::collection::btree_set(5..12_u8, 0..5),
                proptest::collection::vec(any::<bool>(), 0..8),
                any::<bool>(),
            ),
            1..8,
        ),
        v6_at_first in any::<bool>(),
    ) {
        let mut kernel = Kernel { v6_off: !v6_at_first, ..Kernel::default() };
        let mut own = Belongings::default();
        for (n, others, failing, v6) in steps {
            // Turned off, it takes addresses away: the device is made anew (`Interface::harm`).
            kernel.v6_off &= !v6;
            kernel.failing = failing;
            let to = peers(&others.into_iter().collect::<Vec<_>>());
            let tried = own.become_as("mesh0", &mut kernel, addrs(n), &to);
            prop_assert_eq!(own.addrs(), &kernel.addrs);
            if tried.is_err() {
                kernel.failing.clear();
                let set = own.become_as("mesh0", &mut kernel, addrs(n), &to);
                prop_assert!(set.is_ok(), "{:?}", set);
            }
            let v6_on = !kernel.v6_off;
            prop_assert_eq!(&kernel.addrs, &of_family(addrs(n).iter(), v6_on));
            let led: BTreeSet<IpAddr> = kernel.routes.keys().copied().collect();
            prop_assert_eq!(led, of_family(to, v6_on));
            prop_assert!(kernel.routes.iter().all(|(to, from)| *from == source(addrs(n), *to)));
            prop_assert_eq!(own.routes(), kernel.routes.len());
            prop_assert_eq!(own.is_v6_off(), kernel.v6_off);
        }
    }
}
