//! Sans-IO data-plane core: WireGuard peers, disco, path choice, packet filter, timers.
