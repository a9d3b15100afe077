//! Userspace TCP/IP on smoltcp: sockets made on demand, listeners, and the clean-up of what is over.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use mesh_tunnel::Batch;
use mesh_types::OverlayAddrs;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use tokio::sync::{Notify, mpsc};

mod life;
mod ports;
mod silence;

use super::listener::OverlayListener;
use super::phy::Phy;
use super::stream::OverlayStream;
use super::udp::OverlayUdp;
use super::{DialError, ListenError, StackConfig};
use silence::Silence;

/// Packets per call of `exchange`, roughly: a round over all sockets is always finished.
const OUTBOUND_LIMIT: usize = 128;
/// Datagrams and bytes that a UDP socket holds in each direction.
const UDP_SLOTS: usize = 64;
const UDP_BYTES: usize = 64 * 1024;
/// First port of the dynamic range (RFC 6335, 6).
const EPHEMERAL: u16 = 49152;

/// One TCP conversation: local and remote end.
type Flow = (SocketAddr, SocketAddr);

/// A userspace TCP/IP stack; a cheap handle, all clones are the same stack.
#[derive(Clone)]
pub struct Netstack {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    inner: Mutex<Inner>,
    driver: Arc<Notify>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while it was held leaves at worst one socket in an odd state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake_driver(&self) {
        self.driver.notify_one();
    }
}

struct Listener {
    accepted: mpsc::Sender<(OverlayStream, SocketAddr)>,
    half_open: usize,
    /// Tells listeners of one port apart, when one took over from another.
    serial: u64,
}

struct HalfOpen {
    handle: SocketHandle,
    flow: Flow,
    since: Instant,
}

struct Closing {
    handle: SocketHandle,
    flow: Flow,
    since: Instant,
}

pub(super) struct Inner {
    iface: Interface,
    sockets: SocketSet<'static>,
    config: StackConfig,
    started: Instant,
    now: Instant,
    addrs: Option<OverlayAddrs>,
    flows: HashMap<Flow, SocketHandle>,
    listeners: HashMap<u16, Listener>,
    /// Ports that the machine's own stack serves.
    left_to_machine: HashSet<u16>,
    half_open: Vec<HalfOpen>,
    closing: VecDeque<Closing>,
    udp_ports: HashMap<u16, SocketHandle>,
    next_port: u16,
    next_serial: u64,
    memory: usize,
    silence: Silence,
    closed: bool,
}

/// A port that the machine's own stack serves, for as long as this is held.
pub(crate) struct LeftToMachine {
    shared: Arc<Shared>,
    port: u16,
}

impl Drop for LeftToMachine {
    fn drop(&mut self) {
        self.shared.lock().left_to_machine.remove(&self.port);
    }
}

impl fmt::Debug for Netstack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netstack").finish_non_exhaustive()
    }
}

impl Netstack {
    /// A stack without addresses; nothing can be dialled before [`Netstack::set_addrs`].
    ///
    /// `driver` is notified whenever a stream did something that the driver should send.
    pub fn new(config: StackConfig, driver: Arc<Notify>, now: Instant) -> Self {
        let mut interface = Config::new(HardwareAddress::Ip);
        interface.random_seed = config.seed;
        let mut batch = Batch::new();
        let mut phy = Phy {
            inbound: None,
            outbound: &mut batch,
            mtu: config.mtu,
        };
        let iface = Interface::new(interface, &mut phy, smoltcp::time::Instant::ZERO);
        let spread = u16::try_from(config.seed % u64::from(u16::MAX - EPHEMERAL)).unwrap_or(0);
        let inner = Inner {
            iface,
            sockets: SocketSet::new(Vec::new()),
            config,
            started: now,
            now,
            addrs: None,
            flows: HashMap::new(),
            listeners: HashMap::new(),
            left_to_machine: HashSet::new(),
            half_open: Vec::new(),
            closing: VecDeque::new(),
            udp_ports: HashMap::new(),
            next_port: EPHEMERAL + spread,
            next_serial: 0,
            memory: 0,
            silence: Silence::new(now),
            closed: false,
        };
        Self {
            shared: Arc::new(Shared {
                inner: Mutex::new(inner),
                driver,
            }),
        }
    }

    /// Gives the stack its two addresses. New ones reset every connection of the old ones.
    pub fn set_addrs(&self, addrs: OverlayAddrs) {
        let mut guard = self.shared.lock();
        if guard.addrs == Some(addrs) {
            return;
        }
        guard.set_addrs(addrs);
        drop(guard);
        self.shared.wake_driver();
    }

    /// The stack's addresses.
    pub fn addrs(&self) -> Option<OverlayAddrs> {
        self.shared.lock().addrs
    }

    /// Opens a connection; gives up when nothing answers within `limit`.
    pub async fn dial(&self, to: SocketAddr, limit: Duration) -> Result<OverlayStream, DialError> {
        self.open(to, limit, None).await
    }

    /// [`Netstack::dial`], and with `silence` the connection is reset when nothing at all comes from
    /// the peer for that long, and for a third longer while data was not acknowledged, which gets a
    /// chance to be sent again.
    pub(crate) async fn open(
        &self,
        to: SocketAddr,
        limit: Duration,
        silence: Option<Duration>,
    ) -> Result<OverlayStream, DialError> {
        let stream = {
            let mut guard = self.shared.lock();
            let (handle, local) = guard.connect(to)?;
            if let Some(silence) = silence {
                guard.watch(handle, (local, to), silence);
            }
            OverlayStream::new(Arc::clone(&self.shared), handle, local, to)
        };
        self.shared.wake_driver();
        let connected = poll_fn(|cx| {
            let mut guard = self.shared.lock();
            let closed = guard.closed;
            let socket = guard.tcp(stream.handle());
            match socket.state() {
                tcp::State::SynSent | tcp::State::SynReceived => {
                    socket.register_send_waker(cx.waker());
                    Poll::Pending
                }
                tcp::State::Closed if closed => Poll::Ready(Err(DialError::Closed)),
                tcp::State::Closed => Poll::Ready(Err(DialError::Refused(to))),
                _ => Poll::Ready(Ok(())),
            }
        });
        match tokio::time::timeout(limit, connected).await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(DialError::TimedOut {
                to,
                after: limit,
                reason: "nothing came back",
            }),
        }
    }

    /// Accepts connections to `port` (0: any free one) of both addresses.
    pub fn listen(&self, port: u16) -> Result<OverlayListener, ListenError> {
        let mut guard = self.shared.lock();
        if guard.closed {
            return Err(ListenError::Closed);
        }
        let port = if port == 0 {
            guard.free_port(|inner, port| !inner.listeners.contains_key(&port))?
        } else if guard.listeners.contains_key(&port) {
            return Err(ListenError::PortTaken(port));
        } else {
            port
        };
        let (accepted, streams) = mpsc::channel(guard.config.backlog);
        let listener = guard.new_listener(accepted);
        let serial = listener.serial;
        guard.listeners.insert(port, listener);
        drop(guard);
        Ok(OverlayListener::new(
            Arc::clone(&self.shared),
            port,
            serial,
            streams,
        ))
    }

    /// Accepts connections to `port` in the place of whoever listened on it: no connection request
    /// is refused in between. The former listener gets nothing more.
    pub(crate) fn take_over(&self, port: u16) -> Result<OverlayListener, ListenError> {
        let mut guard = self.shared.lock();
        if guard.closed {
            return Err(ListenError::Closed);
        }
        let (accepted, streams) = mpsc::channel(guard.config.backlog);
        let listener = guard.new_listener(accepted);
        let serial = listener.serial;
        let former = guard.listeners.insert(port, listener);
        drop(guard);
        drop(former);
        Ok(OverlayListener::new(
            Arc::clone(&self.shared),
            port,
            serial,
            streams,
        ))
    }

    /// Leaves connection requests to `port` to the machine's own stack, where there is one on the
    /// same addresses, until what this gives is dropped.
    pub(crate) fn leave_to_machine(&self, port: u16) -> LeftToMachine {
        self.shared.lock().left_to_machine.insert(port);
        LeftToMachine {
            shared: Arc::clone(&self.shared),
            port,
        }
    }

    /// A UDP socket on `port` (0: any free one) of both addresses.
    pub fn bind_udp(&self, port: u16) -> Result<OverlayUdp, ListenError> {
        let mut guard = self.shared.lock();
        let (handle, port) = guard.bind_udp(port)?;
        let mtu = guard.config.mtu;
        drop(guard);
        Ok(OverlayUdp::new(Arc::clone(&self.shared), handle, port, mtu))
    }

    /// Resets every connection whose other end `keep` says no to.
    pub fn retain_peers(&self, keep: impl Fn(IpAddr) -> bool) {
        let mut guard = self.shared.lock();
        let inner = &mut *guard;
        let mut any = false;
        for ((_, remote), handle) in &inner.flows {
            if !keep(remote.ip()) {
                inner.sockets.get_mut::<tcp::Socket<'_>>(*handle).abort();
                any = true;
            }
        }
        drop(guard);
        if any {
            self.shared.wake_driver();
        }
    }

    /// Connections that are open or closing.
    pub fn connections(&self) -> usize {
        self.shared.lock().flows.len()
    }

    /// Whether every connection that was let go has ended.
    pub fn is_drained(&self) -> bool {
        let guard = self.shared.lock();
        let inner = &*guard;
        inner.closing.iter().all(|closing| {
            let socket = inner.sockets.get::<tcp::Socket<'_>>(closing.handle);
            matches!(socket.state(), tcp::State::TimeWait | tcp::State::Closed)
                || socket.send_queue() == 0 && socket.state() == tcp::State::FinWait2
        })
    }

    /// Stops the stack: every connection is reset, every listener ends, nothing new is accepted.
    pub fn close(&self) {
        let mut guard = self.shared.lock();
        guard.closed = true;
        let inner = &mut *guard;
        for handle in inner.flows.values() {
            inner.sockets.get_mut::<tcp::Socket<'_>>(*handle).abort();
        }
        for handle in inner.udp_ports.values() {
            // Closing wakes whoever waits on it.
            inner.sockets.get_mut::<udp::Socket<'_>>(*handle).close();
        }
        let listeners = std::mem::take(&mut inner.listeners);
        drop(guard);
        // Streams that nobody accepted lock the stack as they go.
        drop(listeners);
        self.shared.wake_driver();
    }
}

impl Netstack {
    /// Takes in `inbound` (whole IP packets), appends what is to be sent to `outbound`, and says
    /// when it wants to be called again although nothing arrived.
    ///
    /// `outbound` is filled up to a limit per call; a deadline that is not after `now` means that
    /// there is more.
    pub fn exchange(
        &self,
        inbound: &mut dyn Iterator<Item = &[u8]>,
        outbound: &mut Batch,
        now: Instant,
    ) -> Option<Instant> {
        self.exchange_beside(inbound, outbound, now, None)
    }

    /// [`Netstack::exchange`] beside the machine's own TCP/IP stack, which has the same
    /// addresses: this one takes the packets of its own connections and what asks for a
    /// connection to a port that is not left to the machine. The places in `inbound` of all others
    /// are appended to `machines`, in order: whoever writes them to a device does it without
    /// keeping the streams of this stack waiting for it.
    pub(crate) fn exchange_beside(
        &self,
        inbound: &mut dyn Iterator<Item = &[u8]>,
        outbound: &mut Batch,
        now: Instant,
        mut machines: Option<&mut Vec<usize>>,
    ) -> Option<Instant> {
        let mut guard = self.shared.lock();
        let inner = &mut *guard;
        inner.now = now;
        let at = inner.clock(now);
        for (place, packet) in inbound.enumerate() {
            inner.silence.hear(packet, now);
            match &mut machines {
                Some(machines) if !inner.claims(packet) => machines.push(place),
                _ => inner.ingress(packet, outbound, at),
            }
        }
        inner.promote(&self.shared);
        inner.end_silent();
        let mut more = false;
        while !inner.egress(outbound, at) {
            if outbound.len() >= OUTBOUND_LIMIT {
                more = true;
                break;
            }
        }
        inner.sweep();
        if more {
            return Some(now);
        }
        inner.next_call(at)
    }
}

impl Inner {
    /// smoltcp's clock: microseconds since the stack was made.
    fn clock(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = now.saturating_duration_since(self.started).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// The TCP socket of a stream.
    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// The UDP socket of an [`OverlayUdp`].
    pub(super) fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn set_addrs(&mut self, addrs: OverlayAddrs) {
        for handle in self.flows.values() {
            self.sockets.get_mut::<tcp::Socket<'_>>(*handle).abort();
        }
        self.addrs = Some(addrs);
        self.iface.update_ip_addrs(|list| {
            list.clear();
            // INVARIANT: smoltcp is built with room for two addresses.
            let _full = list.push(IpCidr::new(IpAddress::Ipv4(addrs.v4), 32));
            let _full = list.push(IpCidr::new(IpAddress::Ipv6(addrs.v6), 128));
        });
        let routes = self.iface.routes_mut();
        let _full = routes.add_default_ipv4_route(addrs.v4);
        let _full = routes.add_default_ipv6_route(addrs.v6);
    }

    /// A TCP socket with this stack's settings, when the memory cap has room for it.
    fn new_tcp(&mut self) -> Option<tcp::Socket<'static>> {
        let size = self.config.socket_buffer;
        if self.memory + 2 * size > self.config.socket_memory {
            return None;
        }
        self.memory += 2 * size;
        let buffer = || tcp::SocketBuffer::new(vec![0; size]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_congestion_control(tcp::CongestionControl::Cubic);
        socket.set_timeout(Some(span(self.config.timeout)));
        socket.set_keep_alive(Some(span(self.config.keepalive)));
        Some(socket)
    }

    fn connect(&mut self, to: SocketAddr) -> Result<(SocketHandle, SocketAddr), DialError> {
        if self.closed {
            return Err(DialError::Closed);
        }
        let addrs = self.addrs.ok_or(DialError::NotReady)?;
        if addrs.contains(to.ip()) {
            return Err(DialError::OwnAddress(to));
        }
        let ip: IpAddr = match to {
            SocketAddr::V4(_) => addrs.v4.into(),
            SocketAddr::V6(_) => addrs.v6.into(),
        };
        let port = self
            .free_port(|inner, port| !inner.flows.contains_key(&(SocketAddr::new(ip, port), to)))
            .map_err(|_| DialError::Busy)?;
        let local = SocketAddr::new(ip, port);
        let mut socket = self.new_tcp().ok_or(DialError::Busy)?;
        if socket.connect(self.iface.context(), to, local).is_err() {
            self.memory -= 2 * self.config.socket_buffer;
            return Err(DialError::NotAPeer(to));
        }
        let handle = self.sockets.add(socket);
        self.flows.insert((local, to), handle);
        Ok((handle, local))
    }

    /// Ends a connection at once, with a reset.
    pub(super) fn abort_tcp(&mut self, handle: SocketHandle) {
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
    }

    /// Takes a connection back from its stream: the rest is sent, then it ends.
    pub(super) fn release_tcp(&mut self, handle: SocketHandle, flow: Flow) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.recv_queue() > 0 {
            socket.abort();
        } else {
            socket.close();
        }
        self.closing.push_back(Closing {
            handle,
            flow,
            since: self.now,
        });
    }

    /// Forgets a TCP socket that no stream holds.
    fn remove_tcp(&mut self, handle: SocketHandle, flow: Flow) {
        self.unwatch(handle, flow);
        drop(self.sockets.remove(handle));
        if self.flows.get(&flow) == Some(&handle) {
            self.flows.remove(&flow);
        }
        self.memory -= 2 * self.config.socket_buffer;
    }
}

fn span(duration: Duration) -> smoltcp::time::Duration {
    smoltcp::time::Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}
