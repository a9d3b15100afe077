//! Enumerations.

use mesh_types::{NodeState, Protocol, Role, ServiceKind, UptimeClass};

use crate::error::ProtocolError;
use crate::pb;

impl From<Role> for pb::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Worker => Self::Worker,
            Role::Gateway => Self::Gateway,
            Role::Router => Self::Router,
            Role::Deployer => Self::Deployer,
            Role::Relay => Self::Relay,
            Role::Client => Self::Client,
        }
    }
}

/// A role from the wire; unknown numbers are refused, since roles decide access.
pub fn role(number: i32) -> Result<Role, ProtocolError> {
    match pb::Role::try_from(number) {
        Ok(pb::Role::Worker) => Ok(Role::Worker),
        Ok(pb::Role::Gateway) => Ok(Role::Gateway),
        Ok(pb::Role::Router) => Ok(Role::Router),
        Ok(pb::Role::Deployer) => Ok(Role::Deployer),
        Ok(pb::Role::Relay) => Ok(Role::Relay),
        Ok(pb::Role::Client) => Ok(Role::Client),
        Ok(pb::Role::Unspecified) => Err(ProtocolError::Missing("role")),
        Err(_) => Err(ProtocolError::invalid("role", "unknown to this version")),
    }
}

impl From<NodeState> for pb::NodeState {
    fn from(state: NodeState) -> Self {
        match state {
            NodeState::Online => Self::Online,
            NodeState::Stale => Self::Stale,
            NodeState::Offline => Self::Offline,
        }
    }
}

/// A node's state from the wire. It only informs, so what is unknown counts as offline.
pub fn node_state(number: i32) -> NodeState {
    match pb::NodeState::try_from(number) {
        Ok(pb::NodeState::Online) => NodeState::Online,
        Ok(pb::NodeState::Stale) => NodeState::Stale,
        Ok(pb::NodeState::Offline | pb::NodeState::Unspecified) | Err(_) => NodeState::Offline,
    }
}

impl From<UptimeClass> for pb::UptimeClass {
    fn from(class: UptimeClass) -> Self {
        match class {
            UptimeClass::AlwaysOn => Self::AlwaysOn,
            UptimeClass::OnDemand => Self::OnDemand,
            UptimeClass::WorkHours => Self::WorkHours,
        }
    }
}

/// An uptime class from the wire. It only informs, so what is unknown counts as always-on.
pub fn uptime_class(number: i32) -> UptimeClass {
    match pb::UptimeClass::try_from(number) {
        Ok(pb::UptimeClass::OnDemand) => UptimeClass::OnDemand,
        Ok(pb::UptimeClass::WorkHours) => UptimeClass::WorkHours,
        Ok(pb::UptimeClass::AlwaysOn | pb::UptimeClass::Unspecified) | Err(_) => {
            UptimeClass::AlwaysOn
        }
    }
}

impl From<ServiceKind> for pb::ServiceKind {
    fn from(kind: ServiceKind) -> Self {
        match kind {
            ServiceKind::Console => Self::Console,
            ServiceKind::Ssh => Self::Ssh,
            ServiceKind::Http => Self::Http,
            ServiceKind::Tcp => Self::Tcp,
        }
    }
}

/// A service's kind from the wire; unknown numbers are refused, since kinds decide access.
pub fn service_kind(number: i32) -> Result<ServiceKind, ProtocolError> {
    match pb::ServiceKind::try_from(number) {
        Ok(pb::ServiceKind::Console) => Ok(ServiceKind::Console),
        Ok(pb::ServiceKind::Ssh) => Ok(ServiceKind::Ssh),
        Ok(pb::ServiceKind::Http) => Ok(ServiceKind::Http),
        Ok(pb::ServiceKind::Tcp) => Ok(ServiceKind::Tcp),
        Ok(pb::ServiceKind::Unspecified) => Err(ProtocolError::Missing("service.kind")),
        Err(_) => Err(ProtocolError::invalid(
            "service.kind",
            "unknown to this version",
        )),
    }
}

impl From<Protocol> for pb::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Icmp => Self::Icmp,
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

/// A protocol from the wire; `None` for what this version does not know, which then lets nothing in.
pub fn protocol(number: i32) -> Option<Protocol> {
    match pb::Protocol::try_from(number) {
        Ok(pb::Protocol::Icmp) => Some(Protocol::Icmp),
        Ok(pb::Protocol::Tcp) => Some(Protocol::Tcp),
        Ok(pb::Protocol::Udp) => Some(Protocol::Udp),
        Ok(pb::Protocol::Unspecified) | Err(_) => None,
    }
}
