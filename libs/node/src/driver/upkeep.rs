//! What the driver does besides moving packets: the netmap, relays, addresses, figures.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use mesh_types::RelayId;

use super::derp::{Link, LinkState};
use super::endpoints::Interfaces;
use super::home;
use super::{Driver, UdpPort, endpoints};
use crate::directory::Directory;
use crate::node::{RelayFigures, RelayMode, Snapshot};
use crate::random;
use crate::status::ShellStatus;
use crate::tun::Tun;

/// Relays that a node keeps a connection to, to know the nearest.
const STANDING_LINKS: usize = 3;
/// A further relay, used for peers that listen there, is let go after this long without use.
const IDLE_LINK: Duration = Duration::from_secs(300);
/// How often interfaces and relays are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// A machine that moved is not found by who was quiet before it has noticed that itself.
const INTERFACES: Duration = Duration::from_secs(1);
/// From the kernel's word of a changed address until they are looked at.
const SETTLING: Duration = Duration::from_millis(50);
/// The wall clock running ahead of the monotonic one by this much means that the machine slept.
const SLEPT: Duration = Duration::from_secs(10);

impl Driver {
    pub(super) fn report(&self) {
        let mut endpoints = self.parts.device.endpoints();
        endpoints.truncate(32);
        self.parts.shared.report(|report| {
            report.endpoints = endpoints;
            report.home_relay = self.home;
        });
    }

    pub(super) fn apply_netmap(&mut self, now: Instant) {
        let netmap = self.parts.netmap.borrow_and_update().clone();
        let Some(netmap) = netmap else { return };
        let first = self.version.is_none();
        self.parts.stack.set_addrs(netmap.node.addrs);
        self.parts.device.apply_netmap(&netmap, now);
        if self.version != Some(netmap.cursor.version) {
            self.version = Some(netmap.cursor.version);
            let directory = Arc::new(Directory::new(&netmap));
            self.parts.stack.retain_peers(|ip| directory.is_peer(ip));
            if let Some(tun) = &mut self.parts.tun {
                tun.set(
                    netmap.node.addrs,
                    netmap.peers.values().map(|peer| peer.addrs),
                    now,
                );
            }
            self.parts.shared.directory.send_replace(Some(directory));
        }
        if self.relays != netmap.relays {
            self.relays.clone_from(&netmap.relays);
            self.follow_relays(now);
        }
        if first {
            self.interfaces = now;
            self.housekeeping = now;
            let greet = std::mem::take(&mut self.parts.greet);
            self.parts.device.greet(&greet, now);
        }
        self.snapshot_at = Some(now);
    }

    fn follow_relays(&mut self, now: Instant) {
        let relays = std::mem::take(&mut self.relays);
        self.links.retain(|id, link| {
            let known = relays
                .iter()
                .any(|relay| relay.id == *id && relay.derp == link.relay.derp);
            if !known {
                self.parts.device.handle_relay_down(*id, now);
            }
            known
        });
        self.relays = relays;
        if self.parts.shared.relay_mode != RelayMode::Off {
            let standing: Vec<RelayId> = self
                .relays
                .iter()
                .take(STANDING_LINKS)
                .map(|relay| relay.id)
                .collect();
            for id in standing {
                self.want_link(id, now);
            }
        }
        self.housekeeping = now;
        let servers: BTreeSet<String> = self
            .relays
            .iter()
            .flat_map(|relay| relay.stun.iter().cloned())
            .take(8)
            .collect();
        if let Some(former) = self.stun.replace(tokio::spawn(resolve(servers))) {
            former.abort();
        }
    }

    pub(super) fn want_link(&mut self, id: RelayId, now: Instant) {
        if self.parts.shared.relay_mode == RelayMode::Off || self.links.contains_key(&id) {
            return;
        }
        let relay = self
            .relays
            .iter()
            .find(|relay| relay.id == id && !relay.derp.is_empty());
        let (Some(relay), Some(seed)) = (relay, random::seed()) else {
            return;
        };
        let link = Link::start(
            relay.clone(),
            self.parts.state.wg_key().clone(),
            self.parts.shared.credential(),
            Arc::clone(&self.parts.shared.wake),
            seed,
            now,
        );
        self.links.insert(id, link);
    }

    pub(super) fn keep_house(&mut self, now: Instant) {
        let wall = SystemTime::now();
        let slept = slept(self.house_kept, (now, wall));
        self.house_kept = (now, wall);
        let heard = &self.parts.shared.counters.udp_rx_bytes;
        let heard = heard.load(Ordering::Relaxed);
        if heard != self.udp_heard.0 {
            self.udp_heard = (heard, Some(wall));
        }
        if slept {
            tracing::debug!("this machine slept, looking for paths again");
            self.parts.device.network_changed(now);
        }
        self.housekeeping = now + HOUSEKEEPING;
        if let Some(tun) = &mut self.parts.tun {
            tun.look(now);
        }
        if now >= self.interfaces {
            self.interfaces = now + INTERFACES;
            self.look_at_interfaces(now);
        }
        let states: Vec<(RelayId, LinkState)> = self
            .links
            .iter()
            .map(|(id, link)| (*id, link.state()))
            .collect();
        let home = home::choose_home(self.home, states.iter().map(|(id, state)| (*id, state)));
        if home != self.home {
            self.home = home;
            self.parts.device.set_home_relay(home, now);
            self.report();
        }
        let standing: BTreeSet<RelayId> = self
            .relays
            .iter()
            .take(STANDING_LINKS)
            .map(|relay| relay.id)
            .collect();
        let device = &mut self.parts.device;
        self.links.retain(|id, link| {
            let keep = standing.contains(id)
                || self.home == Some(*id)
                || now.duration_since(link.used) < IDLE_LINK;
            if !keep {
                device.handle_relay_down(*id, now);
            }
            keep
        });
        if self.snapshot_at.is_none() {
            self.snapshot_at = Some(now);
        }
    }

    /// Addresses changed. One that goes and the one that comes for it are looked at together.
    pub(super) fn look_soon(&mut self, now: Instant) {
        self.interfaces = self.interfaces.min(now + SETTLING);
        self.housekeeping = self.housekeeping.min(self.interfaces);
    }

    fn look_at_interfaces(&mut self, now: Instant) {
        let Some(interfaces) = Interfaces::read() else {
            return;
        };
        let before = std::mem::replace(&mut self.own, interfaces);
        // The first look is no change.
        if self.own != before && !before.all.is_empty() {
            self.renew_links(&before, now);
        }
        if self.parts.shared.relay_mode == RelayMode::Only {
            return;
        }
        let bound: Vec<SocketAddr> = self.parts.ports.iter().map(UdpPort::local).collect();
        let found = endpoints::candidates(
            &bound,
            &self.own.outside,
            &self.parts.shared.extra_endpoints,
            self.parts.stack.addrs(),
        );
        if found == self.local {
            return;
        }
        // One more, as of a bridge for containers, leaves the paths that there are as they are.
        let moved = self.local.iter().any(|addr| !found.contains(addr));
        self.local.clone_from(&found);
        self.parts.device.set_local_endpoints(&found, now);
        if moved {
            tracing::debug!("addresses of this machine changed, looking for paths again");
            self.parts.device.network_changed(now);
        }
        self.report();
    }

    /// Begins connections to relays anew that came from an address which this machine has no more:
    /// they would seem to be alive for as long as the system sends what they hold again. Where an
    /// address went, or there was none before, those that are not made yet too: they may be on
    /// their way from that address, or rest after attempts without any. One more address does not
    /// disturb them.
    fn renew_links(&mut self, before: &Interfaces, now: Instant) {
        let lost = |local: SocketAddr| self.own.has_lost(before, local.ip());
        let is_elsewhere = self.own.is_elsewhere(before);
        let dead: Vec<RelayId> = self
            .links
            .iter()
            .filter(|(_, link)| link.state().local.map_or(is_elsewhere, lost))
            .map(|(id, _)| *id)
            .collect();
        for id in dead {
            self.links.remove(&id);
            self.parts.device.handle_relay_down(id, now);
            self.want_link(id, now);
        }
    }

    /// Shows the figures of this moment in the status.
    pub(super) fn snapshot(&mut self, now: Instant) {
        self.snapshot_at = None;
        self.snapshot_done = now;
        let device = &self.parts.device;
        let wall = SystemTime::now();
        let shown = Snapshot {
            at: now,
            wall,
            peers: device.stats().map(|stats| (stats.node, stats)).collect(),
            relays: self
                .links
                .iter()
                .map(|(id, link)| (*id, link.state().into()))
                .collect(),
            home: self.home,
            endpoints: device.endpoints(),
            shell: self
                .parts
                .tun
                .as_ref()
                .map_or(ShellStatus::Userspace, Tun::status),
            drops: device
                .drops()
                .iter()
                .filter(|(_, count)| *count > 0)
                .collect(),
            udp_heard: self.udp_heard.1,
        };
        self.parts.shared.show(shown);
    }
}

impl From<LinkState> for RelayFigures {
    fn from(state: LinkState) -> Self {
        let LinkState {
            connected,
            local,
            latency,
            error,
        } = state;
        Self {
            connected,
            local,
            latency,
            error,
        }
    }
}

/// Whether the machine slept between two looks at both clocks.
fn slept(before: (Instant, SystemTime), now: (Instant, SystemTime)) -> bool {
    let passed = now.1.duration_since(before.1).unwrap_or_default();
    passed > now.0.duration_since(before.0) + SLEPT
}

async fn resolve(servers: BTreeSet<String>) -> Vec<SocketAddr> {
    let mut addrs = Vec::new();
    for server in servers {
        match tokio::net::lookup_host(&server).await {
            Ok(found) => addrs.extend(found.take(2)),
            Err(error) => tracing::debug!(server, %error, "STUN server not found"),
        }
    }
    addrs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it slept, by what passed on the monotonic and on the wall clock.
    fn judged(monotonic: Duration, wall: Duration) -> bool {
        let before = (Instant::now(), SystemTime::now());
        slept(before, (before.0 + monotonic, before.1 + wall))
    }

    #[test]
    fn a_wall_clock_that_runs_ahead_means_that_the_machine_slept() {
        let second = Duration::from_secs(1);
        assert!(judged(second, second + SLEPT + Duration::from_millis(1)));
        assert!(judged(Duration::ZERO, Duration::from_secs(8 * 3600)));
        assert!(!judged(second, second + SLEPT), "corrected by a little");
        assert!(!judged(second, second));
        // A driver that was not let run: both clocks went on.
        assert!(!judged(Duration::from_secs(60), Duration::from_secs(60)));
    }

    #[test]
    fn a_wall_clock_that_is_set_back_means_nothing() {
        let before = (Instant::now(), SystemTime::now());
        let day = Duration::from_secs(86_400);
        let now = (before.0 + Duration::from_secs(1), before.1 - day);
        assert!(!slept(before, now));
    }
}
