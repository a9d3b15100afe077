//! Nodes, services, routes and reports.

use std::net::SocketAddr;

use mesh_types::route::Route;
use mesh_types::{Endpoint, RelayId, Service};

use super::addr::port;
use super::{enums, from_bytes, parsed, required};
use crate::error::ProtocolError;
use crate::pb;

/// The most endpoints, services, host keys or addresses that one node may report of each.
pub const MAX_REPORTED: usize = 64;

impl From<Service> for pb::Service {
    fn from(Service { name, kind, port }: Service) -> Self {
        Self {
            name: name.into(),
            kind: pb::ServiceKind::from(kind).into(),
            port: port.into(),
        }
    }
}

impl TryFrom<pb::Service> for Service {
    type Error = ProtocolError;

    fn try_from(
        pb::Service {
            name,
            kind,
            port: number,
        }: pb::Service,
    ) -> Result<Self, ProtocolError> {
        let port = port("service.port", number)?;
        if port == 0 {
            return Err(ProtocolError::invalid(
                "service.port",
                "a port is at least 1",
            ));
        }
        Ok(Self {
            name: parsed("service.name", &name)?,
            kind: enums::service_kind(kind)?,
            port,
        })
    }
}

impl From<Route> for pb::Route {
    fn from(
        Route {
            node,
            network,
            name,
            addrs,
            services,
            state,
        }: Route,
    ) -> Self {
        Self {
            node_id: node.as_bytes().to_vec(),
            network: network.into(),
            name: name.into(),
            addrs: Some(addrs.into()),
            services: services.into_iter().map(Into::into).collect(),
            state: pb::NodeState::from(state).into(),
        }
    }
}

impl TryFrom<pb::Route> for Route {
    type Error = ProtocolError;

    fn try_from(route: pb::Route) -> Result<Self, ProtocolError> {
        let pb::Route {
            node_id,
            network,
            name,
            addrs,
            services,
            state,
        } = route;
        Ok(Self {
            node: from_bytes("route.node_id", &node_id)?,
            network: parsed("route.network", &network)?,
            name: parsed("route.name", &name)?,
            addrs: required("route.addrs", addrs)?.try_into()?,
            services: services
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            state: enums::node_state(state),
        })
    }
}

/// What a node says of itself; always whole, the newest counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// Where it can be reached on the underlay.
    pub endpoints: Vec<Endpoint>,
    /// The relay it listens on.
    pub home_relay: Option<RelayId>,
    /// What it publishes.
    pub services: Vec<Service>,
    /// Its SSH host keys: OpenSSH public key lines.
    pub ssh_host_keys: Vec<String>,
    /// The local user its SSH logs in as by default; empty when it does not say.
    pub ssh_user: String,
    /// Its SSH server sees mesh connections coming from loopback.
    pub ssh_via_loopback: bool,
    /// Relays only: `host:port` of DERP over TLS.
    pub derp: Vec<String>,
    /// Relays only: `host:port` of STUN.
    pub stun: Vec<String>,
}

impl From<NodeReport> for pb::NodeReport {
    fn from(report: NodeReport) -> Self {
        let NodeReport {
            endpoints,
            home_relay,
            services,
            ssh_host_keys,
            ssh_user,
            ssh_via_loopback,
            derp,
            stun,
        } = report;
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            home_relay: home_relay
                .map(|id| id.as_bytes().to_vec())
                .unwrap_or_default(),
            services: services.into_iter().map(Into::into).collect(),
            ssh_host_keys,
            ssh_user,
            ssh_via_loopback,
            derp,
            stun,
        }
    }
}

impl TryFrom<pb::NodeReport> for NodeReport {
    type Error = ProtocolError;

    fn try_from(report: pb::NodeReport) -> Result<Self, ProtocolError> {
        let pb::NodeReport {
            endpoints,
            home_relay,
            services,
            ssh_host_keys,
            ssh_user,
            ssh_via_loopback,
            derp,
            stun,
        } = report;
        for count in [
            endpoints.len(),
            services.len(),
            ssh_host_keys.len(),
            derp.len(),
            stun.len(),
        ] {
            if count > MAX_REPORTED {
                return Err(ProtocolError::invalid(
                    "report",
                    "more than 64 entries of one kind",
                ));
            }
        }
        let long = ssh_host_keys
            .iter()
            .any(|key| key.len() > 8192 || key.contains('\n'));
        if long || ssh_user.len() > 256 || ssh_user.contains(['\n', '\0']) {
            return Err(ProtocolError::invalid(
                "report.ssh",
                "a key or user name is malformed",
            ));
        }
        if derp.iter().chain(&stun).any(|addr| addr.len() > 300) {
            return Err(ProtocolError::invalid(
                "report.derp",
                "an address is too long",
            ));
        }
        Ok(Self {
            endpoints: endpoints
                .into_iter()
                .map(SocketAddr::try_from)
                .collect::<Result<_, _>>()?,
            home_relay: optional_relay("report.home_relay", &home_relay)?,
            services: services
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            ssh_host_keys,
            ssh_user,
            ssh_via_loopback,
            derp,
            stun,
        })
    }
}

pub(crate) fn optional_relay(
    field: &'static str,
    bytes: &[u8],
) -> Result<Option<RelayId>, ProtocolError> {
    if bytes.is_empty() {
        Ok(None)
    } else {
        from_bytes(field, bytes).map(Some)
    }
}
