//! WireGuard by hand, for packets that no honest node sends: boringtun without our data plane.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use mesh_types::WgPublicKey;

use crate::raw::Applicant;

/// Longer than any packet of the overlay, sealed.
const ROOM: usize = 2048;
const RETRY: Duration = Duration::from_millis(400);

/// One end of a WireGuard tunnel.
pub struct RawTunnel(Tunn);

impl std::fmt::Debug for RawTunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawTunnel").finish_non_exhaustive()
    }
}

/// What a datagram turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// Authentic, and to be answered with this.
    Answer(Vec<u8>),
    /// An IP packet.
    Packet(Vec<u8>),
    /// Authentic, and nothing more.
    Nothing,
    /// Not of this tunnel.
    Foreign,
}

impl RawTunnel {
    /// A tunnel of this machine to whoever has `peer`.
    pub fn new(own: &Applicant, peer: &WgPublicKey) -> Self {
        let own = StaticSecret::from(own.wg.to_bytes());
        let peer = PublicKey::from(*peer.as_bytes());
        Self(Tunn::new(own, peer, None, None, 1, None))
    }

    /// A fresh handshake initiation.
    pub fn initiation(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut room = [0; ROOM];
        match self.0.format_handshake_initiation(&mut room, true) {
            TunnResult::WriteToNetwork(initiation) => Ok(initiation.to_vec()),
            other => bail!("no initiation: {other:?}"),
        }
    }

    /// Opens what came from the peer.
    pub fn open(&mut self, datagram: &[u8]) -> Opened {
        let mut room = [0; ROOM];
        match self.0.decapsulate(None, datagram, &mut room) {
            TunnResult::WriteToNetwork(answer) => Opened::Answer(answer.to_vec()),
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Opened::Packet(packet.to_vec())
            }
            TunnResult::Done => Opened::Nothing,
            TunnResult::Err(_) => Opened::Foreign,
        }
    }

    /// Seals an IP packet for the peer; there must be a session.
    pub fn seal(&mut self, packet: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut room = [0; ROOM];
        match self.0.encapsulate(packet, &mut room) {
            // Without a session this would be an initiation, of type 1.
            TunnResult::WriteToNetwork(sealed) if sealed.first() == Some(&4) => Ok(sealed.to_vec()),
            other => bail!("not sealed: {other:?}"),
        }
    }

    /// Sends handshake initiations straight to the UDP socket `at` until there is a session or
    /// `within` has passed, and returns whether there is one. Any answer that makes none is an
    /// error: who is not let in must hear nothing at all.
    pub fn handshake(&mut self, at: SocketAddr, within: Duration) -> anyhow::Result<bool> {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).context("bind")?;
        let started = Instant::now();
        let mut room = [0; ROOM];
        while started.elapsed() < within {
            let initiation = self.initiation()?;
            socket.send_to(&initiation, at).context("send")?;
            let left = within.saturating_sub(started.elapsed());
            let wait = RETRY.min(left).max(Duration::from_millis(1));
            socket.set_read_timeout(Some(wait))?;
            let (length, from) = match socket.recv_from(&mut room) {
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).context("receive"),
            };
            ensure!(from == at, "{from} answered for {at}");
            let kind = room[0];
            match self.open(&room[..length]) {
                Opened::Answer(keepalive) if kind == 2 => {
                    socket.send_to(&keepalive, at).context("confirm")?;
                    return Ok(true);
                }
                other => bail!("{length} bytes of type {kind} came back: {other:?}"),
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (RawTunnel, RawTunnel) {
        let one = Applicant::new("one").expect("keys");
        let two = Applicant::new("two").expect("keys");
        let key = |of: &Applicant| WgPublicKey::from_bytes(of.wg_public());
        (
            RawTunnel::new(&one, &key(&two)),
            RawTunnel::new(&two, &key(&one)),
        )
    }

    #[test]
    fn two_ends_agree_and_carry_a_packet() {
        let (mut one, mut two) = pair();
        let Opened::Answer(response) = two.open(&one.initiation().expect("initiation")) else {
            panic!("no response");
        };
        let Opened::Answer(keepalive) = one.open(&response) else {
            panic!("no session");
        };
        assert_eq!(two.open(&keepalive), Opened::Nothing);
        // The shortest IPv4 header, of a packet without content.
        let mut packet = vec![0; 20];
        (packet[0], packet[3]) = (0x45, 20);
        let sealed = one.seal(&packet).expect("sealed");
        assert_eq!(two.open(&sealed), Opened::Packet(packet));
    }

    #[test]
    fn an_initiation_for_somebody_else_is_foreign() {
        let ((mut one, _), (_, mut other)) = (pair(), pair());
        let initiation = one.initiation().expect("initiation");
        assert_eq!(other.open(&initiation), Opened::Foreign);
    }
}
