//! Routes that the kernel refused are asked for again ever later.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::belongings::Routing;

/// The first wait, and the longest.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    to: IpAddr,
    from: IpAddr,
    is_removal: bool,
}

#[derive(Debug)]
struct Refusal {
    kind: io::ErrorKind,
    errno: Option<i32>,
    wait: Duration,
    next: Instant,
    /// Somebody still wants it.
    is_wanted: bool,
}

impl Refusal {
    fn error(&self) -> io::Error {
        self.errno
            .map_or_else(|| self.kind.into(), io::Error::from_raw_os_error)
    }
}

/// What the kernel refused. Until it is asked again its answer stands, so that a thousand routes
/// that something else has are no thousand system calls each second.
///
/// A refusal that has lasted for a time is noticed as over within as much time again, and within
/// [`LONGEST`].
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<Route, Refusal>);

/// The kernel as far as it is worth asking.
pub(super) struct Patient<'a, K> {
    kernel: &'a mut K,
    refused: &'a mut BTreeMap<Route, Refusal>,
    now: Instant,
}

impl Refusals {
    /// Does with the kernel what is to be done at this moment. All that is still wanted is to be
    /// asked for: what is not is forgotten.
    pub(super) fn pass<K: Routing, T>(
        &mut self,
        kernel: &mut K,
        now: Instant,
        ask: impl FnOnce(&mut Patient<'_, K>) -> T,
    ) -> T {
        for refusal in self.0.values_mut() {
            refusal.is_wanted = false;
        }
        let asked = ask(&mut Patient {
            kernel,
            refused: &mut self.0,
            now,
        });
        self.0.retain(|_, refusal| refusal.is_wanted);
        asked
    }
}

impl<K: Routing> Patient<'_, K> {
    fn route(
        &mut self,
        route: Route,
        ask: impl FnOnce(&mut K) -> io::Result<()>,
    ) -> io::Result<()> {
        if let Some(refusal) = self.refused.get_mut(&route)
            && self.now < refusal.next
        {
            refusal.is_wanted = true;
            return Err(refusal.error());
        }
        let Err(error) = ask(self.kernel) else {
            self.refused.remove(&route);
            return Ok(());
        };
        let wait = self
            .refused
            .get(&route)
            .map_or(FIRST, |refusal| (refusal.wait * 2).min(LONGEST));
        let refusal = Refusal {
            kind: error.kind(),
            errno: error.raw_os_error(),
            wait,
            next: self.now + wait,
            is_wanted: true,
        };
        self.refused.insert(route, refusal);
        Err(error)
    }
}

/// Addresses are asked for each time: there are two of them, and everything hangs on them.
impl<K: Routing> Routing for Patient<'_, K> {
    fn add_address(&mut self, ip: IpAddr) -> io::Result<()> {
        self.kernel.add_address(ip)?;
        // Routes from an address that is not there were refused for that.
        self.refused.retain(|route, _| route.from != ip);
        Ok(())
    }

    fn remove_address(&mut self, ip: IpAddr) -> io::Result<()> {
        self.kernel.remove_address(ip)
    }

    fn add_route(&mut self, to: IpAddr, from: IpAddr) -> io::Result<()> {
        let is_removal = false;
        let route = Route {
            to,
            from,
            is_removal,
        };
        self.route(route, |kernel| kernel.add_route(to, from))
    }

    fn remove_route(&mut self, to: IpAddr, from: IpAddr) -> io::Result<()> {
        let is_removal = true;
        let route = Route {
            to,
            from,
            is_removal,
        };
        self.route(route, |kernel| kernel.remove_route(to, from))
    }
}
