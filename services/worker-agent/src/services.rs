//! What a person published on this machine, kept in the state directory.

use std::net::SocketAddr;

use mesh_node::{Published, StateDir, StateDirError, Target};
use mesh_types::service::{CONSOLE_PORT, SSH_PORT};
use mesh_types::{Service, ServiceKind, ServiceName};
use serde::{Deserialize, Serialize};

/// The file in the state directory.
const FILE: &str = "services.json";
/// Names that are the agent's own.
const RESERVED: [&str; 2] = ["console", "ssh"];

/// A service cannot be published or taken back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServicesError {
    /// The name is the agent's own.
    #[error("{0:?} is the agent's own service: choose another name")]
    Reserved(ServiceName),
    /// Port 0 names nothing.
    #[error("a service needs a port from 1 to 65535")]
    NoPort,
    /// The console or SSH has the port.
    #[error(
        "overlay port {0} belongs to the machine's console or SSH: let the service listen on another port"
    )]
    ReservedPort(u16),
    /// Another service has the port.
    #[error(
        "port {port} is already published as {name}: run 'worker-agent unpublish {name}' first"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// The service that has it.
        name: ServiceName,
    },
    /// There is no such service.
    #[error("no service of the name {0} is published: 'worker-agent status' lists them")]
    Unknown(ServiceName),
    /// The file cannot be understood.
    #[error("services.json in the state directory is damaged: remove it, and publish again")]
    Damaged(#[source] serde_json::Error),
    /// The file cannot be read or written.
    #[error(transparent)]
    State(#[from] StateDirError),
}

/// A service that a person published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    #[serde(flatten)]
    pub(crate) service: Service,
    /// Where there is a TUN device, the machine's own stack serves it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) direct: bool,
}

/// The published services, in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Services(Vec<Offer>);

impl Services {
    pub(crate) fn load(state: &StateDir) -> Result<Self, ServicesError> {
        match state.read(FILE)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(ServicesError::Damaged),
            None => Ok(Self::default()),
        }
    }

    pub(crate) fn store(&self, state: &StateDir) -> Result<(), ServicesError> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(ServicesError::Damaged)?;
        bytes.push(b'\n');
        Ok(state.write(FILE, &bytes)?)
    }

    /// Adds a service; one of the same name is replaced.
    pub(crate) fn add(&mut self, offer: Offer) -> Result<(), ServicesError> {
        let service = offer.service.clone();
        if RESERVED.contains(&service.name.as_str()) {
            return Err(ServicesError::Reserved(service.name));
        }
        if service.port == 0 {
            return Err(ServicesError::NoPort);
        }
        if service.port == CONSOLE_PORT || service.port == SSH_PORT {
            return Err(ServicesError::ReservedPort(service.port));
        }
        let same = |other: &&Service| other.port == service.port && other.name != service.name;
        let mut others = self.0.iter().map(|other| &other.service);
        if let Some(holder) = others.find(same) {
            let name = holder.name.clone();
            return Err(ServicesError::PortTaken {
                port: service.port,
                name,
            });
        }
        self.0.retain(|other| other.service.name != service.name);
        self.0.push(offer);
        self.0.sort_by(|a, b| a.service.name.cmp(&b.service.name));
        Ok(())
    }

    /// Takes a service back.
    pub(crate) fn remove(&mut self, name: &ServiceName) -> Result<(), ServicesError> {
        let before = self.0.len();
        self.0.retain(|offer| offer.service.name != *name);
        if self.0.len() == before {
            return Err(ServicesError::Unknown(name.clone()));
        }
        Ok(())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Offer> {
        self.0.iter()
    }
}

/// What `publish NAME PORT` means for the node: a port of the machine's loopback, or whatever the
/// machine itself has on that port.
pub(crate) fn on_this_machine(offer: Offer) -> Published {
    let Offer { service, direct } = offer;
    let to = SocketAddr::from(([127, 0, 0, 1], service.port));
    let target = if direct {
        Target::Direct(to)
    } else {
        Target::Loopback(to)
    };
    Published { service, target }
}

/// The service that `publish NAME PORT` describes.
pub(crate) fn described(name: ServiceName, port: u16, tcp: bool, direct: bool) -> Offer {
    let kind = if tcp {
        ServiceKind::Tcp
    } else {
        ServiceKind::Http
    };
    let service = Service { name, kind, port };
    Offer { service, direct }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, port: u16) -> Offer {
        described(name.parse().expect("a name"), port, false, false)
    }

    #[test]
    fn the_last_of_a_name_counts_and_a_port_has_one_name() {
        let mut services = Services::default();
        services.add(service("web", 8000)).expect("new");
        services.add(service("web", 8001)).expect("replaced");
        let error = services.add(service("other", 8001)).expect_err("taken");
        assert!(error.to_string().contains("unpublish web"), "{error}");
        assert_eq!(services.iter().count(), 1);
    }

    #[test]
    fn the_agents_own_names_and_ports_are_refused() {
        let mut services = Services::default();
        for (name, port) in [
            ("console", 80),
            ("ssh", 80),
            ("x", 9090),
            ("x", 22),
            ("x", 0),
        ] {
            assert!(services.add(service(name, port)).is_err(), "{name} {port}");
        }
    }

    #[test]
    fn what_was_published_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(dir.path().join("state")).expect("opens");
        let mut services = Services::load(&state).expect("empty");
        services.add(service("web", 8000)).expect("new");
        services.store(&state).expect("stored");
        assert_eq!(Services::load(&state).expect("loads"), services);
    }

    #[test]
    fn a_list_of_before_there_were_direct_services_is_understood_and_written_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(dir.path().join("state")).expect("opens");
        let former = r#"[{"name":"web","kind":"http","port":8000}]"#;
        state.write(FILE, former.as_bytes()).expect("writes");
        let mut services = Services::load(&state).expect("loads");
        assert_eq!(
            serde_json::to_string(&services).expect("serialises"),
            former
        );
        let iperf = described("iperf".parse().expect("a name"), 5201, true, true);
        services.add(iperf).expect("new");
        services.store(&state).expect("stored");
        let services = Services::load(&state).expect("loads");
        let direct: Vec<bool> = services.iter().map(|offer| offer.direct).collect();
        assert_eq!(direct, [true, false]);
    }

    #[test]
    fn an_unknown_service_cannot_be_taken_back() {
        let error = Services::default().remove(&"web".parse().expect("a name"));
        assert!(error.expect_err("unknown").to_string().contains("status"));
    }

    #[test]
    fn a_damaged_file_says_what_to_do() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(dir.path().join("state")).expect("opens");
        state.write(FILE, b"{").expect("writes");
        let error = Services::load(&state).expect_err("damaged");
        assert!(error.to_string().contains("remove it"));
    }
}
