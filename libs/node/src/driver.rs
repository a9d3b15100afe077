//! The data plane's one task: it owns the tunnel, the UDP sockets and the relay links.
//!
//! `select!` in [`Driver::next_event`] only chooses what happens next; everything else is
//! synchronous. One turn reads all that is there, feeds it through the tunnel into the TCP/IP
//! stack (and into the machine's own, where the node has a TUN device), and sends what comes out,
//! batch by batch, in buffers that are reused.

use std::collections::BTreeMap;
use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use mesh_tunnel::{Batch, Device, Event as TunnelEvent, Out, Source};
use mesh_types::{Netmap, NodeId, Relay, RelayId};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

mod changes;
mod derp;
mod endpoints;
mod home;
mod udp;
mod upkeep;

use changes::Changes;
use derp::{Inbox, Item, Link};
use endpoints::Interfaces;
use udp::ReadBuffers;
pub(crate) use udp::UdpPort;

use crate::control::{ControlState, ControlStatus};
use crate::counters::add;
use crate::netstack::Netstack;
use crate::node::{RelayMode, Shared, stopped};
use crate::state_dir::StateDir;
use crate::tun::Tun;

/// Reads of one socket per turn, so that no socket starves another.
const READS: usize = 4;
/// Rounds between stack and tunnel per turn, for the same reason.
const ROUNDS: usize = 4;
/// How old the figures in the status may be while there is traffic.
const SNAPSHOT: Duration = Duration::from_millis(100);
/// How long connections may take to end when the node stops.
const DRAIN: Duration = Duration::from_secs(1);
/// Turns before other tasks of the thread are let in.
const TURNS: u32 = 4;

/// What a driver is made of.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) state: StateDir,
    pub(crate) device: Device,
    pub(crate) stack: Netstack,
    /// The machine's own way into the overlay, when it has one.
    pub(crate) tun: Option<Tun>,
    pub(crate) ports: Vec<UdpPort>,
    pub(crate) netmap: watch::Receiver<Option<Arc<Netmap>>>,
    pub(crate) control: watch::Receiver<ControlStatus>,
    pub(crate) stop: watch::Receiver<bool>,
    /// Peers that are greeted once there is a netmap: those there was traffic with before the restart.
    pub(crate) greet: Vec<NodeId>,
}

pub(crate) struct Driver {
    parts: Parts,
    out: Out,
    batch: Batch,
    /// Which of the packets in `out` are the machine's, from the first to the last.
    machines: Vec<usize>,
    buffers: ReadBuffers,
    inbox: Inbox,
    links: BTreeMap<RelayId, Link>,
    relays: Vec<Relay>,
    home: Option<RelayId>,
    stun: Option<JoinHandle<Vec<SocketAddr>>>,
    version: Option<u64>,
    stack_deadline: Option<Instant>,
    housekeeping: Instant,
    /// When by both clocks.
    house_kept: (Instant, SystemTime),
    /// Bytes received by UDP when housekeeping last looked, and when they last rose.
    udp_heard: (u64, Option<SystemTime>),
    interfaces: Instant,
    /// Tells when to look at the machine's addresses before it is time to.
    changes: Option<Changes>,
    /// The machine's addresses when they were last looked at.
    own: Interfaces,
    /// What of them was offered to peers.
    local: Vec<SocketAddr>,
    snapshot_at: Option<Instant>,
    snapshot_done: Instant,
    timer: std::pin::Pin<Box<Sleep>>,
    worked: bool,
}

enum Event {
    Stop,
    Ready,
    Netmap,
    Stun(Vec<SocketAddr>),
    /// Addresses of this machine changed.
    Addresses,
}

impl Driver {
    pub(crate) fn new(parts: Parts) -> Self {
        let now = Instant::now();
        Self {
            parts,
            out: Out::new(),
            batch: Batch::new(),
            machines: Vec::new(),
            buffers: ReadBuffers::new(),
            inbox: Inbox::default(),
            links: BTreeMap::new(),
            relays: Vec::new(),
            home: None,
            stun: None,
            version: None,
            stack_deadline: None,
            housekeeping: now,
            house_kept: (now, SystemTime::now()),
            udp_heard: (0, None),
            interfaces: now,
            changes: None,
            own: Interfaces::default(),
            local: Vec::new(),
            snapshot_at: Some(now),
            snapshot_done: now,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            worked: false,
        }
    }

    pub(crate) async fn run(mut self) {
        self.changes = Changes::open();
        if self.parts.netmap.borrow_and_update().is_some() {
            self.apply_netmap(Instant::now());
        }
        let mut turns = 0;
        loop {
            match self.next_event().await {
                Event::Stop => break,
                Event::Ready => {}
                Event::Netmap => self.apply_netmap(Instant::now()),
                Event::Stun(servers) => {
                    self.stun = None;
                    self.parts.device.set_stun_servers(&servers, Instant::now());
                }
                Event::Addresses => self.look_soon(Instant::now()),
            }
            self.turn();
            turns += 1;
            if turns >= TURNS {
                turns = 0;
                // The streams' tasks fill and empty what this one works on.
                tokio::task::yield_now().await;
            }
        }
        self.drain().await;
    }

    /// Lets connections that were given back send their end, then resets the rest.
    async fn drain(&mut self) {
        let limit = Instant::now() + DRAIN;
        while !self.parts.stack.is_drained() && Instant::now() < limit {
            self.turn();
            let wait = self.deadline().unwrap_or(limit).min(limit);
            let (ports, tun) = (&self.parts.ports, self.parts.tun.as_ref());
            tokio::select! {
                () = readable(ports, tun) => {}
                () = self.parts.shared.wake.notified() => {}
                () = tokio::time::sleep_until(wait.into()) => {}
            }
        }
        self.parts.stack.close();
        self.turn();
        // The status is asked for still, of a node that was removed from its network above all.
        if let Some(tun) = &mut self.parts.tun {
            tun.close();
        }
        self.snapshot(Instant::now());
    }

    fn deadline(&self) -> Option<Instant> {
        [
            self.parts.device.poll_timeout(),
            self.stack_deadline,
            Some(self.housekeeping),
            self.snapshot_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// INVARIANT: cancel-safe; a branch that is not chosen has changed nothing.
    async fn next_event(&mut self) -> Event {
        let deadline = self.deadline();
        if deadline.is_some_and(|at| at <= Instant::now()) {
            let removed = self.parts.control.borrow().state == ControlState::Removed;
            if removed || *self.parts.stop.borrow() {
                return Event::Stop;
            }
            if self.parts.netmap.has_changed().unwrap_or(false) {
                self.parts.netmap.mark_unchanged();
                return Event::Netmap;
            }
            return Event::Ready;
        }
        if let Some(at) = deadline
            && self.timer.deadline() != at.into()
        {
            self.timer.as_mut().reset(at.into());
        }
        let Parts {
            shared,
            ports,
            tun,
            netmap,
            control,
            stop,
            ..
        } = &mut self.parts;
        tokio::select! {
            () = stopped(stop) => Event::Stop,
            () = removed(control) => Event::Stop,
            () = readable(ports, tun.as_ref()) => Event::Ready,
            () = shared.wake.notified() => Event::Ready,
            () = changed(netmap) => Event::Netmap,
            servers = resolved(&mut self.stun) => Event::Stun(servers),
            () = changes::heard(&mut self.changes) => Event::Addresses,
            () = self.timer.as_mut(), if deadline.is_some() => Event::Ready,
        }
    }

    /// One pass over everything that can be pending.
    fn turn(&mut self) {
        self.worked = false;
        add(&self.parts.shared.counters.driver_turns, 1);
        let now = Instant::now();
        if now >= self.housekeeping {
            self.keep_house(now);
        }
        if self.parts.device.poll_timeout().is_some_and(|at| at <= now) {
            self.parts.device.handle_timeout(&mut self.out, now);
        }
        self.read_links(now);
        self.pump(now);
        for at in 0..self.parts.ports.len() {
            for _ in 0..READS {
                if !self.read_port(at, now) {
                    break;
                }
                self.pump(now);
            }
        }
        for link in self.links.values() {
            link.flush();
        }
        if self.worked && self.snapshot_at.is_none() {
            self.snapshot_at = Some(self.snapshot_done + SNAPSHOT);
        }
        if self.snapshot_at.is_some_and(|at| at <= now) {
            self.snapshot(now);
        }
    }

    /// Reads one batch of a socket into the tunnel. `false`: nothing was there.
    fn read_port(&mut self, at: usize, now: Instant) -> bool {
        let Ok(count) = self.parts.ports[at].try_read(&mut self.buffers) else {
            return false;
        };
        let mut bytes = 0;
        for (from, datagrams, stride) in self.buffers.filled(count) {
            bytes += datagrams.len();
            self.parts
                .device
                .open(Source::Direct(from), datagrams, stride, &mut self.out, now);
        }
        add(&self.parts.shared.counters.udp_rx_bytes, bytes);
        self.worked = true;
        true
    }

    fn read_links(&mut self, now: Instant) {
        let mut inbox = std::mem::take(&mut self.inbox);
        for (id, link) in &mut self.links {
            if !link.take(&mut inbox) {
                continue;
            }
            self.worked = true;
            let device = &mut self.parts.device;
            let mut bytes = inbox.bytes.as_slice();
            for item in &inbox.items {
                match *item {
                    Item::Up => {
                        device.handle_relay_up(*id, now);
                        // A home is chosen in a moment.
                        self.housekeeping = now;
                    }
                    Item::Down => {
                        device.handle_relay_down(*id, now);
                        self.housekeeping = now;
                    }
                    Item::PeerGone(peer) => device.handle_relay_peer_gone(*id, peer, now),
                    Item::Packet { from, len } => {
                        let (packet, rest) = bytes.split_at(len.min(bytes.len()));
                        bytes = rest;
                        link.used = now;
                        add(&self.parts.shared.counters.relay_rx_bytes, len);
                        let source = Source::Relay { relay: *id, from };
                        device.open(source, packet, packet.len(), &mut self.out, now);
                    }
                }
            }
        }
        self.inbox = inbox;
    }

    /// Tunnel to stack, stack to tunnel, tunnel to the sockets, until nothing moves or it is
    /// somebody else's turn.
    fn pump(&mut self, now: Instant) {
        for _ in 0..ROUNDS {
            let counters = Arc::clone(&self.parts.shared.counters);
            let dropping = self.parts.shared.drop_overlay.load(Ordering::Relaxed);
            let mut packets = 0;
            let mut bytes = 0;
            let mut inbound = self
                .out
                .packets()
                .map(|received| received.packet)
                .filter(|packet| {
                    packets += 1;
                    bytes += packet.len();
                    !dropping
                });
            self.machines.clear();
            let tun = self.parts.tun.as_mut();
            let machines = tun.is_some().then_some(&mut self.machines);
            let stack = &self.parts.stack;
            self.stack_deadline =
                stack.exchange_beside(&mut inbound, &mut self.batch, now, machines);
            drop(inbound);
            let more = tun.is_some_and(|tun| {
                // INVARIANT: `out` still holds what the stack was given, in the same places;
                // `transmit` clears it. While packets are thrown away the stack is given none.
                let out = &self.out;
                let packets = self.machines.iter().filter_map(|at| out.packet(*at));
                add(&counters.device_refused_packets, tun.write(packets));
                let read = tun.read(&mut self.batch);
                add(&counters.device_unreadable_packets, read.unreadable);
                read.more
            });
            if dropping {
                add(&counters.deliberately_dropped, packets + self.batch.len());
                self.batch.clear();
            }
            add(&counters.overlay_rx_packets, packets);
            add(&counters.overlay_rx_bytes, bytes);
            self.worked |= packets > 0 || !self.batch.is_empty();
            self.transmit(now);
            if !self.batch.is_empty() {
                add(&counters.overlay_tx_packets, self.batch.len());
                add(
                    &counters.overlay_tx_bytes,
                    self.batch.iter().map(<[u8]>::len).sum(),
                );
                self.parts.device.seal(&mut self.batch, &mut self.out, now);
                self.transmit(now);
            }
            let stack_waits = self.stack_deadline.is_none_or(|at| at > now);
            if stack_waits && !more && self.out.is_empty() {
                break;
            }
        }
    }

    /// Sends what the tunnel has for the underlay, and hears what it has to tell.
    fn transmit(&mut self, now: Instant) {
        let counters = &self.parts.shared.counters;
        if self.parts.shared.relay_mode != RelayMode::Only {
            for transmit in self.out.transmits() {
                let port = self
                    .parts
                    .ports
                    .iter()
                    .find(|port| port.serves(transmit.to));
                let Some(port) = port else { continue };
                match port.try_send(transmit.to, transmit.bytes, transmit.stride) {
                    Ok(()) => add(&counters.udp_tx_bytes, transmit.bytes.len()),
                    // Like a full queue on the way: whoever needs it sends it again.
                    Err(error) => {
                        add(&counters.udp_tx_errors, 1);
                        tracing::trace!(to = %transmit.to, %error, "datagrams not sent");
                    }
                }
            }
        }
        for relayed in self.out.relayed() {
            let link = self.links.get_mut(&relayed.relay);
            let sent = link.is_some_and(|link| {
                link.used = now;
                link.send(relayed.frame)
            });
            if sent {
                add(&counters.relay_tx_bytes, relayed.frame.len());
            } else {
                add(&counters.relay_tx_dropped, 1);
            }
        }
        self.out.clear();
        while let Some(event) = self.parts.device.poll_event() {
            self.handle_tunnel_event(event, now);
        }
    }

    fn handle_tunnel_event(&mut self, event: TunnelEvent, now: Instant) {
        let counters = &self.parts.shared.counters;
        // The figures are shown soon.
        self.worked = true;
        match event {
            TunnelEvent::HandshakeDone { peer } => {
                add(&counters.handshakes, 1);
                tracing::debug!(%peer, "session established");
            }
            TunnelEvent::PathChanged { peer, path } => {
                add(&counters.path_changes, 1);
                tracing::debug!(%peer, ?path, "path changed");
            }
            TunnelEvent::PeerUnreachable { peer } => tracing::debug!(%peer, "peer unreachable"),
            TunnelEvent::EndpointsChanged => self.report(),
            TunnelEvent::RelayWanted { relay } => self.want_link(relay, now),
        }
    }
}

/// Resolves when any socket, or the machine through its device, may have something to read.
/// Cancel-safe, allocates nothing.
async fn readable(ports: &[UdpPort], tun: Option<&Tun>) {
    poll_fn(|cx| {
        let mut ready = tun.map_or(Poll::Pending, |tun| tun.poll_readable(cx));
        for port in ports {
            if port.poll_readable(cx).is_ready() {
                ready = Poll::Ready(());
            }
        }
        ready
    })
    .await;
}

/// Resolves when there is another netmap. Cancel-safe.
async fn changed(netmap: &mut watch::Receiver<Option<Arc<Netmap>>>) {
    if netmap.changed().await.is_err() {
        // The session has ended; the last netmap stays in force.
        pending().await
    }
}

/// Resolves when the node was removed from its network. Cancel-safe.
async fn removed(control: &mut watch::Receiver<ControlStatus>) {
    if control
        .wait_for(|status| status.state == ControlState::Removed)
        .await
        .is_err()
    {
        // A session that ended otherwise leaves the data plane running.
        pending().await
    }
}

async fn resolved(job: &mut Option<JoinHandle<Vec<SocketAddr>>>) -> Vec<SocketAddr> {
    match job {
        Some(job) => job.await.unwrap_or_default(),
        None => pending().await,
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(job) = self.stun.take() {
            job.abort();
        }
    }
}
