//! smoltcp's view of the tunnel: one packet in, a batch of packets out.

use mesh_tunnel::Batch;
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use smoltcp::time::Instant;

/// The device of one call into the interface.
pub(super) struct Phy<'a> {
    /// The packet to take in, until it is taken.
    pub(super) inbound: Option<&'a [u8]>,
    /// Where packets to send go.
    pub(super) outbound: &'a mut Batch,
    /// Largest IP packet, in bytes.
    pub(super) mtu: usize,
}

pub(super) fn capabilities(mtu: usize) -> DeviceCapabilities {
    let mut checksum = ChecksumCapabilities::default();
    // What arrives was authenticated whole by the tunnel's AEAD, so its checksums prove nothing.
    checksum.tcp = Checksum::Tx;
    checksum.udp = Checksum::Tx;
    checksum.ipv4 = Checksum::Tx;
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    capabilities.checksum = checksum;
    capabilities
}

impl Device for Phy<'_> {
    type RxToken<'t>
        = Inbound<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outbound<'t>
    where
        Self: 't;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Inbound<'_>, Outbound<'_>)> {
        let packet = self.inbound.take()?;
        Some((Inbound(packet), Outbound(self.outbound)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Outbound<'_>> {
        // The limit per batch is kept between rounds over the sockets, not inside one: a round cut
        // short would always starve the same sockets.
        Some(Outbound(self.outbound))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

pub(super) struct Inbound<'t>(&'t [u8]);

impl RxToken for Inbound<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

pub(super) struct Outbound<'t>(&'t mut Batch);

impl TxToken for Outbound<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.0.push_with(len, fill)
    }
}
