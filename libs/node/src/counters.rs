//! What the data plane counts. Plain numbers: a service registers them in its own registry.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one node since its start; they only rise.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Counters {
            /// Every counter with its name, for a metrics registry and for JSON.
            pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Bytes of UDP payload received on the underlay.
    udp_rx_bytes,
    /// Bytes of UDP payload sent on the underlay.
    udp_tx_bytes,
    /// UDP sends that the kernel did not take.
    udp_tx_errors,
    /// Bytes of relayed packets received.
    relay_rx_bytes,
    /// Bytes of relayed packets sent, framing included.
    relay_tx_bytes,
    /// Packets dropped because a relay's queue was full or its connection gone.
    relay_tx_dropped,
    /// IP packets that arrived over the overlay and passed the filter.
    overlay_rx_packets,
    /// Their bytes.
    overlay_rx_bytes,
    /// IP packets handed to the tunnel.
    overlay_tx_packets,
    /// Their bytes.
    overlay_tx_bytes,
    /// IP packets that the machine did not take through the TUN device.
    device_refused_packets,
    /// Packets of the machine's that came out of the TUN device and could not be made out.
    device_unreadable_packets,
    /// WireGuard sessions established or renewed.
    handshakes,
    /// Times that the path to a peer changed.
    path_changes,
    /// Packets thrown away by [`crate::Node::set_overlay_drop`].
    deliberately_dropped,
    /// Passes of the data plane's task over everything that can be pending.
    driver_turns,
    /// Times that the netmap could not be written to disk.
    netmap_store_failures,
    /// Inbound connections to published services.
    service_connections,
}

pub(crate) fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(u64::try_from(amount).unwrap_or(u64::MAX), Ordering::Relaxed);
}
