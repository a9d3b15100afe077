//! Against a kernel that now and then refuses, and has IPv6 or not.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use proptest::prelude::*;

use super::super::refusals::Refusals;
use super::*;

/// A device in a kernel, as far as this goes.
#[derive(Debug, Default)]
struct Kernel {
    addrs: BTreeSet<IpAddr>,
    routes: BTreeMap<IpAddr, IpAddr>,
    v6_off: bool,
    /// Destinations to which something else has a route.
    taken: BTreeSet<IpAddr>,
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
        if self.routes.contains_key(&to) || self.taken.contains(&to) {
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

/// A device, looked after at this many seconds.
struct Kept {
    kernel: Kernel,
    own: Belongings,
    refusals: Refusals,
    began: Instant,
}

impl Kept {
    fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            own: Belongings::default(),
            refusals: Refusals::default(),
            began: Instant::now(),
        }
    }

    /// How many calls it took, and whether all is set.
    fn look(&mut self, n: u8, to: &BTreeSet<IpAddr>, secs: u64) -> (usize, bool) {
        let before = self.kernel.calls;
        let now = self.began + Duration::from_secs(secs);
        let set = self.refusals.pass(&mut self.kernel, now, |kernel| {
            self.own.become_as("mesh0", kernel, addrs(n), to)
        });
        (self.kernel.calls - before, set.is_ok())
    }
}

#[test]
fn a_route_that_is_refused_for_ever_costs_ever_fewer_calls_and_stays_told() {
    let to = peers(&[7, 8]);
    let mut kept = Kept::new(Kernel {
        taken: [addrs(7).v4.into(), addrs(7).v6.into()].into(),
        ..Kernel::default()
    });
    let mut asked = Vec::new();
    for secs in 0..600 {
        let (calls, is_set) = kept.look(1, &to, secs);
        assert!(!is_set, "told at {secs} s too");
        if calls > 0 {
            asked.push((secs, calls));
        }
    }
    // Addresses and all routes, and then the two that are refused.
    assert_eq!(asked[0], (0, 6));
    assert!(asked[1..].iter().all(|(_, calls)| *calls == 2), "{asked:?}");
    let at: Vec<u64> = asked.iter().map(|(secs, _)| *secs).collect();
    assert_eq!(at[..8], [0, 1, 3, 7, 15, 31, 63, 123]);
    assert!(at[7..].windows(2).all(|pair| pair[1] - pair[0] == 60));
    // A newcomer's route is asked for at once, and those refused are not.
    assert_eq!(kept.look(1, &peers(&[7, 8, 9]), 601), (2, false));
    // Peers that left and came back are newcomers.
    assert_eq!(kept.look(1, &peers(&[8, 9]), 602), (0, true));
    assert_eq!(kept.look(1, &peers(&[7, 8, 9]), 603), (2, false));
    kept.kernel.taken.clear();
    assert_eq!(kept.look(1, &peers(&[7, 8, 9]), 604), (2, true));
}

#[test]
fn routes_that_waited_for_their_address_follow_it_at_once() {
    let to = peers(&[7]);
    let mut kept = Kept::new(Kernel::default());
    for secs in 0..20 {
        // The address of IPv4, and with it the route.
        kept.kernel.failing = vec![true];
        assert!(!kept.look(1, &to, secs).1);
    }
    assert_eq!(kept.kernel.routes.len(), 1, "of IPv6");
    // By itself the route would be asked for at 31 s.
    kept.kernel.failing.clear();
    assert_eq!(kept.look(1, &to, 20), (2, true));
}

#[test]
fn a_route_that_could_not_be_removed_is_tried_again_and_then_replaced() {
    let to = peers(&[7]);
    let mut kept = Kept::new(Kernel::default());
    assert!(kept.look(1, &to, 0).1);
    kept.kernel.failing = vec![true, true];
    assert!(!kept.look(2, &to, 1).1);
    assert!(!kept.look(2, &to, 1).1, "not yet");
    assert!(kept.look(2, &to, 2).1);
    let from: BTreeSet<IpAddr> = kept.kernel.routes.values().copied().collect();
    assert_eq!(from, addrs(2).iter().collect());
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
                0..3_u64,
            ),
            1..8,
        ),
        v6_at_first in any::<bool>(),
    ) {
        let mut kept = Kept::new(Kernel { v6_off: !v6_at_first, ..Kernel::default() });
        let mut secs = 0;
        for (n, others, failing, v6, pause) in steps {
            // Turned off, it takes addresses away: the device is made anew (`Interface::harm`).
            kept.kernel.v6_off &= !v6;
            kept.kernel.failing = failing;
            let to = peers(&others.into_iter().collect::<Vec<_>>());
            secs += pause;
            let (_, is_set) = kept.look(n, &to, secs);
            prop_assert_eq!(kept.own.addrs(), &kept.kernel.addrs);
            if !is_set {
                // As it may have been for a few steps before.
                kept.kernel.failing.clear();
                secs += 60;
                prop_assert!(kept.look(n, &to, secs).1);
            }
            let (kernel, own) = (&kept.kernel, &kept.own);
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
