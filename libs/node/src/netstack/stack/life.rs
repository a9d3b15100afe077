//! The life of a connection in the stack: asked for, half open, handed over, closing, gone.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_tunnel::Batch;
use mesh_tunnel::packet::{self, Transport};
use smoltcp::iface::PollResult;
use smoltcp::socket::tcp;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};

use super::super::phy::Phy;
use super::super::stream::OverlayStream;
use super::{Closing, Flow, HalfOpen, Inner, Shared};

/// How long a connection that nobody holds any more may take to end.
const LINGER: Duration = Duration::from_secs(60);
/// How long a connection may stay half open.
const HALF_OPEN: Duration = Duration::from_secs(20);
/// Flags of TCP (RFC 9293, 3.1).
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Connections kept in TIME-WAIT (RFC 9293, 3.3.2) at most; the oldest make room.
const TIME_WAIT: usize = 32;

impl Inner {
    pub(super) fn ingress(
        &mut self,
        packet: &[u8],
        outbound: &mut Batch,
        at: smoltcp::time::Instant,
    ) {
        let opening = opening_flow(packet);
        if let Some(flow) = opening
            && !self.admit(flow)
        {
            return;
        }
        let mut phy = Phy {
            inbound: Some(packet),
            outbound,
            mtu: self.config.mtu,
        };
        self.iface
            .poll_ingress_single(at, &mut phy, &mut self.sockets);
    }

    /// Whether a packet is this stack's where the machine's own stack has the same addresses: it
    /// belongs to a connection of this one, asks to open one at a port that is not left to the
    /// machine, or is for a UDP port bound here. An answer to a connection of the machine's own is
    /// never claimed, whatever its port.
    ///
    /// INVARIANT: a peer opens no connection to the machine's own stack but at a port left to it.
    /// So a request is this stack's also where it does not listen, yet or any more; and it is read
    /// as the packet filter reads it, which sees it behind extension headers and in fragments.
    pub(super) fn claims(&self, packet: &[u8]) -> bool {
        let Ok(header) = packet::parse(packet) else {
            // The tunnel lets none through; this stack drops it.
            return true;
        };
        match header.transport {
            Transport::Tcp { src, dst, flags } => {
                let opens = flags & (SYN | ACK) == SYN;
                let flow = (
                    SocketAddr::new(header.dst.into(), dst),
                    SocketAddr::new(header.src.into(), src),
                );
                self.flows.contains_key(&flow) || (opens && !self.left_to_machine.contains(&dst))
            }
            Transport::Udp { dst, .. } => self.udp_ports.contains_key(&dst),
            _ => false,
        }
    }

    /// Makes a socket ready for a connection request. `false`: leave the request unanswered.
    fn admit(&mut self, flow: Flow) -> bool {
        let (local, _) = flow;
        if self.closed {
            return true;
        }
        if let Some(&handle) = self.flows.get(&flow) {
            let over = self.closing.iter().position(|closing| {
                let socket = self.sockets.get::<tcp::Socket<'_>>(closing.handle);
                closing.handle == handle && socket.state() == tcp::State::TimeWait
            });
            let Some(at) = over else { return true };
            // The same ports again: the old conversation is over (RFC 9293, 3.6.1).
            self.closing.remove(at);
            self.remove_tcp(handle, flow);
        }
        let Some(listener) = self.listeners.get(&local.port()) else {
            return true;
        };
        let waiting = listener.accepted.max_capacity() - listener.accepted.capacity();
        if listener.half_open + waiting >= self.config.backlog {
            return false;
        }
        let Some(mut socket) = self.new_tcp() else {
            return false;
        };
        if socket.listen(local).is_err() {
            self.memory -= 2 * self.config.socket_buffer;
            return true;
        }
        let handle = self.sockets.add(socket);
        self.flows.insert(flow, handle);
        self.half_open.push(HalfOpen {
            handle,
            flow,
            since: self.now,
        });
        if let Some(listener) = self.listeners.get_mut(&local.port()) {
            listener.half_open += 1;
        }
        true
    }

    /// Hands connections whose handshake is done to their listeners.
    pub(super) fn promote(&mut self, shared: &Arc<Shared>) {
        let mut at = 0;
        while let Some(HalfOpen {
            handle,
            flow,
            since,
        }) = self.half_open.get(at)
        {
            let (handle, flow, since) = (*handle, *flow, *since);
            let (local, peer) = flow;
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            match socket.state() {
                tcp::State::SynReceived if self.now.duration_since(since) < HALF_OPEN => {
                    at += 1;
                    continue;
                }
                // Still listening: the request was malformed. Or it never got further.
                tcp::State::Listen | tcp::State::SynReceived | tcp::State::Closed => {
                    socket.abort();
                    self.closing.push_back(Closing {
                        handle,
                        flow,
                        since: self.now,
                    });
                }
                _ => {
                    let accepted = self.listeners.get(&local.port()).map(|l| &l.accepted);
                    if let Some(permit) = accepted.and_then(|sender| sender.try_reserve().ok()) {
                        let stream = OverlayStream::new(Arc::clone(shared), handle, local, peer);
                        permit.send((stream, peer));
                    } else {
                        socket.abort();
                        self.closing.push_back(Closing {
                            handle,
                            flow,
                            since: self.now,
                        });
                    }
                }
            }
            self.half_open.swap_remove(at);
            if let Some(listener) = self.listeners.get_mut(&local.port()) {
                listener.half_open = listener.half_open.saturating_sub(1);
            }
        }
    }

    /// One round over the sockets; `true` when nothing was sent.
    pub(super) fn egress(&mut self, outbound: &mut Batch, at: smoltcp::time::Instant) -> bool {
        let mut phy = Phy {
            inbound: None,
            outbound,
            mtu: self.config.mtu,
        };
        self.iface.poll_egress(at, &mut phy, &mut self.sockets) == PollResult::None
    }

    /// Removes connections that are over, and ends those that nobody will.
    pub(super) fn sweep(&mut self) {
        let mut time_wait = 0;
        let mut at = self.closing.len();
        // From the newest to the oldest, so that the oldest in TIME-WAIT make room.
        while at > 0 {
            at -= 1;
            let Closing {
                handle,
                flow,
                since,
            } = self.closing[at];
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            let over = match socket.state() {
                // A reset that is still to be sent keeps its addresses until then.
                tcp::State::Closed => socket.remote_endpoint().is_none(),
                tcp::State::TimeWait => {
                    time_wait += 1;
                    time_wait > TIME_WAIT
                }
                _ => {
                    let unread = socket.recv_queue() > 0;
                    if unread || self.now.saturating_duration_since(since) > LINGER {
                        socket.abort();
                    }
                    false
                }
            };
            if over {
                self.closing.remove(at);
                self.remove_tcp(handle, flow);
            }
        }
    }

    pub(super) fn next_call(&mut self, at: smoltcp::time::Instant) -> Option<Instant> {
        let next = self.iface.poll_at(at, &self.sockets);
        let next = next.map(|next| {
            let micros = u64::try_from(next.total_micros()).unwrap_or(0);
            self.started + Duration::from_micros(micros)
        });
        let housekeeping = if self.closing.is_empty() && self.half_open.is_empty() {
            None
        } else {
            Some(self.now + Duration::from_secs(1))
        };
        [next, housekeeping, self.silence.next_check()]
            .into_iter()
            .flatten()
            .min()
    }
}

/// The conversation that a TCP packet asks to open (SYN without ACK; RFC 9293, 3.5), if it does.
fn opening_flow(packet: &[u8]) -> Option<Flow> {
    let (local, remote, segment) = tcp_parts(packet)?;
    let tcp = TcpPacket::new_checked(segment).ok()?;
    let opens = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
    opens.then(|| {
        (
            SocketAddr::new(local, tcp.dst_port()),
            SocketAddr::new(remote, tcp.src_port()),
        )
    })
}

/// Destination, source and payload of a TCP packet that is no later fragment and has no extension
/// headers: those smoltcp would not follow.
fn tcp_parts(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            let first = ip.frag_offset() == 0;
            (first && ip.next_header() == IpProtocol::Tcp)
                .then(|| (ip.dst_addr().into(), ip.src_addr().into(), ip.payload()))
        }
        6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            (ip.next_header() == IpProtocol::Tcp)
                .then(|| (ip.dst_addr().into(), ip.src_addr().into(), ip.payload()))
        }
        _ => None,
    }
}
