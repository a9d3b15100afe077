//! The TUN shell: a network device through which the whole machine is on the overlay.
//!
//! The device is the process's own: it is made without persistence and under a name that nobody
//! has, so that it vanishes with the process however that ends, and addresses and routes with it.
//! There is one route per peer and family, straight into the device, in the main table; no rule, no
//! route for whole prefixes, nothing about DNS. What else happens to lie in the overlay's ranges
//! stays where it was.
//!
//! The driver owns a [`Tun`] and gives it addresses and peers as the netmap has them. A device that
//! somebody removes is made again, and routes that the kernel refuses are tried again, ever later
//! if that goes on ([`pace`], [`refusals`]). The status names either meanwhile.

use std::collections::BTreeSet;
use std::io;
use std::mem::{Discriminant, discriminant};
use std::net::IpAddr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use mesh_tunnel::Batch;
use mesh_types::OverlayAddrs;
use nix::net::if_::if_nametoindex;

use crate::status::ShellStatus;

mod belongings;
mod device;
mod error;
mod interface;
mod netlink;
mod pace;
mod refusals;

pub use error::TunError;
use error::chain;
use interface::Interface;
use pace::Pace;

/// Longest name of a network device, in bytes (`IFNAMSIZ` less the ending zero).
pub const NAME_MAX: usize = 15;
/// A device that is gone is made again after this long at the latest, once nothing is in the way.
pub(crate) const MADE_WITHIN: Duration = pace::LONGEST;
/// Reads, and packets roughly, per call of [`Tun::read`]: one read may bring dozens.
const READS: usize = 64;
const PACKETS: usize = 128;
/// How often [`wait_until_free`] looks.
const LOOK: Duration = Duration::from_millis(20);

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

/// How a call of [`Tun::read`] went.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Read {
    /// There may be more.
    pub(crate) more: bool,
    /// Packets that could not be made out.
    pub(crate) unreadable: usize,
}

/// What is wrong with the device.
#[derive(Debug)]
struct Problem {
    /// Which error it is; `None` when somebody changed the device.
    kind: Option<Discriminant<TunError>>,
    text: String,
}

impl From<TunError> for Problem {
    fn from(error: TunError) -> Self {
        Self {
            kind: Some(discriminant(&error)),
            text: chain(&error),
        }
    }
}

/// What there is to tell when what is wrong becomes something else.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Nothing,
    /// It goes on in other words: so many more routes, another one first.
    Other,
    Begun,
    Over,
}

impl News {
    fn of(before: Option<&Problem>, now: Option<&Problem>) -> Self {
        match (before, now) {
            (None, None) => Self::Nothing,
            (Some(_), None) => Self::Over,
            (Some(before), Some(now)) if before.text == now.text => Self::Nothing,
            (Some(before), Some(now)) if before.kind.is_some() && before.kind == now.kind => {
                Self::Other
            }
            (_, Some(_)) => Self::Begun,
        }
    }
}

/// The device with what is set on it.
#[derive(Debug)]
pub(crate) struct Tun {
    name: String,
    mtu: u16,
    interface: Option<Interface>,
    pace: Pace,
    addrs: Option<OverlayAddrs>,
    peers: BTreeSet<IpAddr>,
    problem: Option<Problem>,
    /// Reading failed: not tried again before the next look, which finds out why.
    is_deaf: bool,
}

impl Tun {
    /// Makes the device and brings it up.
    ///
    /// # Errors
    /// It cannot be had; the text says what to do.
    pub(crate) fn open(name: &str, mtu: u16, now: Instant) -> Result<Self, TunError> {
        Ok(Self {
            name: name.to_owned(),
            mtu,
            interface: Some(Interface::create(name, mtu)?),
            pace: Pace::new(now),
            addrs: None,
            peers: BTreeSet::new(),
            problem: None,
            is_deaf: false,
        })
    }

    /// Gives the device the node's addresses, for the first time.
    ///
    /// # Errors
    /// It does not take them.
    pub(crate) fn start(&mut self, addrs: OverlayAddrs, now: Instant) -> Result<(), TunError> {
        self.addrs = Some(addrs);
        match &mut self.interface {
            Some(interface) => interface.set(addrs, &self.peers, now),
            None => Ok(()),
        }
    }

    /// Makes these the node's addresses and these its peers'. What cannot be set is told.
    pub(crate) fn set(
        &mut self,
        addrs: OverlayAddrs,
        peers: impl Iterator<Item = OverlayAddrs>,
        now: Instant,
    ) {
        self.addrs = Some(addrs);
        self.peers = peers.flat_map(|peer| peer.iter()).collect();
        self.apply(now);
    }

    fn apply(&mut self, now: Instant) {
        let (Some(interface), Some(addrs)) = (&mut self.interface, self.addrs) else {
            return;
        };
        let set = interface.set(addrs, &self.peers, now);
        self.tell(set.err().map(Problem::from));
    }

    /// Once when something begins to be wrong, and once when it is over.
    fn tell(&mut self, problem: Option<Problem>) {
        let text = problem.as_ref().map(|problem| problem.text.as_str());
        match News::of(self.problem.as_ref(), problem.as_ref()) {
            News::Nothing => {}
            News::Other => tracing::debug!(device = self.name, problem = text, "TUN device"),
            News::Begun => tracing::warn!(device = self.name, problem = text, "TUN device"),
            News::Over => {
                tracing::info!(device = self.name, "TUN device is as it should be again");
            }
        }
        self.problem = problem;
    }

    /// Looks after the device: makes it again when it is gone or changed, sets its MTU back, tries
    /// again what failed, and whether the machine has IPv6 by now. To be called about once a second.
    pub(crate) fn look(&mut self, now: Instant) {
        self.is_deaf = false;
        if let Some(harm) = self.interface.as_ref().and_then(Interface::harm) {
            // What is left of it goes with its descriptor.
            self.interface = None;
            self.pace.lost(now);
            self.tell(Some(Problem {
                kind: None,
                text: harm.to_owned(),
            }));
        }
        if self.interface.is_none() {
            if !self.pace.is_due(now) {
                return;
            }
            match Interface::create(&self.name, self.mtu) {
                Ok(interface) => {
                    self.interface = Some(interface);
                    self.pace.made(now);
                }
                Err(error) => {
                    self.pace.lost(now);
                    return self.tell(Some(error.into()));
                }
            }
        }
        if let Some(interface) = &mut self.interface {
            interface.keep_mtu(self.mtu);
        }
        let without_v6 = |tun: &Interface| tun.belongings().is_v6_off();
        if self.problem.is_some() || self.interface.as_ref().is_some_and(without_v6) {
            self.apply(now);
        }
    }

    /// Gives the device up, with all that is on it: the node stops.
    pub(crate) fn close(&mut self) {
        self.interface = None;
        self.problem = None;
    }

    /// Appends packets that the machine sends.
    pub(crate) fn read(&mut self, batch: &mut Batch) -> Read {
        let mut read = Read::default();
        let Some(interface) = self.interface.as_mut().filter(|_| !self.is_deaf) else {
            return read;
        };
        let enough = batch.len() + PACKETS;
        for _ in 0..READS {
            if batch.len() >= enough {
                break;
            }
            match interface.device.read(batch, usize::from(self.mtu)) {
                Ok(whole) => read.unreadable += usize::from(!whole),
                Err(error) => {
                    // A device that is gone stays readable, and is found by `look`.
                    self.is_deaf = error.kind() != io::ErrorKind::WouldBlock;
                    return read;
                }
            }
        }
        read.more = true;
        read
    }

    /// Gives the machine packets; how many it does not take.
    pub(crate) fn write<'a>(&self, packets: impl Iterator<Item = &'a [u8]> + Clone) -> usize {
        match &self.interface {
            Some(interface) => interface.device.write(packets),
            None => packets.count(),
        }
    }

    /// Ready when the machine may have packets.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.interface {
            Some(interface) if !self.is_deaf => interface.device.poll_readable(cx),
            _ => Poll::Pending,
        }
    }

    /// For people.
    pub(crate) fn status(&self) -> ShellStatus {
        let belongings = self.interface.as_ref().map(Interface::belongings);
        ShellStatus::Tun {
            device: self.name.clone(),
            present: belongings.is_some(),
            ipv6: belongings.is_some_and(|own| !own.is_v6_off()),
            routes: belongings.map_or(0, |own| own.routes()),
            problem: self.problem.as_ref().map(|problem| problem.text.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_problem_is_told_when_it_begins_and_when_it_is_over_and_not_at_each_change_of_it() {
        let routes = |count: usize| {
            Problem::from(TunError::Routes {
                name: "mesh0".into(),
                count,
                ip: IpAddr::from([100, 64, 0, 7]),
                source: io::ErrorKind::AlreadyExists.into(),
            })
        };
        let harm = |text: &str| Problem {
            kind: None,
            text: text.to_owned(),
        };
        let (one, two) = (routes(1), routes(2));
        let (removed, down) = (harm("somebody removed it"), harm("somebody set it down"));
        for (before, now, expected) in [
            (None, None, News::Nothing),
            (None, Some(&one), News::Begun),
            (Some(&one), Some(&one), News::Nothing),
            (Some(&one), Some(&two), News::Other),
            (Some(&two), Some(&removed), News::Begun),
            (Some(&removed), Some(&down), News::Begun),
            (Some(&removed), Some(&one), News::Begun),
            (Some(&one), None, News::Over),
        ] {
            assert_eq!(News::of(before, now), expected, "{before:?} {now:?}");
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
}
