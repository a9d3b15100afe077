//! Where the roles of this process listen, and what is said when a port is taken.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::anyhow;
use mesh_daemon::BindError;
use mesh_node::StartError;

use crate::args::UpArgs;

/// Where the roles listen: loopback only, unless other machines are to reach this one.
#[derive(Debug)]
pub(super) struct Bind {
    ip: IpAddr,
    pub(super) advertise: Option<String>,
}

impl Bind {
    pub(super) fn of(args: &UpArgs) -> Self {
        let ip = match args.advertise {
            Some(_) => Ipv4Addr::UNSPECIFIED,
            None => Ipv4Addr::LOCALHOST,
        };
        Self {
            ip: ip.into(),
            advertise: args.advertise.clone(),
        }
    }

    pub(super) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    /// `host:port` as others say it.
    pub(super) fn shown(&self, bound: SocketAddr) -> String {
        match &self.advertise {
            Some(host) => format!("{host}:{}", bound.port()),
            None => bound.to_string(),
        }
    }
}

/// A role that did not start. When a port was taken, the flag of `mesh up` that moves it is named
/// in place of the flag or key that the role has as a program of its own.
pub(super) fn not_started(
    name: &str,
    flags: &[(&str, u16)],
    mut error: anyhow::Error,
) -> anyhow::Error {
    let flag_of = |port: u16| {
        let found = flags.iter().find(|(_, asked)| *asked == port);
        found.map(|(flag, _)| (*flag).to_owned())
    };
    if let Some(bind) = error.downcast_mut::<BindError>() {
        if let Some(flag) = flag_of(bind.addr.port()) {
            bind.flag = flag;
        }
    } else if let Some((addr, reason)) = wireguard(&error)
        && let Some(flag) = flag_of(addr.port())
    {
        // Its own words name a key, which `mesh up` does not have.
        error = anyhow!(
            "cannot bind UDP {addr} for WireGuard ({reason}): choose another port with {flag} (0 \
             takes any free one)"
        );
    }
    error.context(format!("start the {name}"))
}

/// What WireGuard could not have, and why, when that is what is wrong.
fn wireguard(error: &anyhow::Error) -> Option<(SocketAddr, String)> {
    error.chain().find_map(|cause| {
        let boxed = cause.downcast_ref::<Box<StartError>>().map(AsRef::as_ref);
        match cause.downcast_ref::<StartError>().or(boxed) {
            Some(StartError::Bind { addr, source }) => Some((*addr, source.to_string())),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_told_with_the_flag_that_moves_it() {
        let taken = || StartError::Bind {
            addr: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 51820),
            source: std::io::ErrorKind::AddrInUse.into(),
        };
        let flags = [("--gateway-port", 8081), ("--wg-port", 51820)];
        for error in [
            anyhow::Error::new(taken()),
            anyhow::Error::new(Box::new(taken())).context("network default"),
        ] {
            let text = format!("{:#}", not_started("traffic-gateway", &flags, error));
            assert!(text.contains("start the traffic-gateway: "), "{text}");
            assert!(text.contains("--wg-port"), "{text}");
            assert!(!text.contains("wireguard.listen"), "{text}");
        }
        let other = not_started("relay", &flags, anyhow!("something else"));
        assert_eq!(format!("{other:#}"), "start the relay: something else");
    }
}
