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

/// The published services, in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Services(Vec<Service>);

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
    pub(crate) fn add(&mut self, service: Service) -> Result<(), ServicesError> {
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
        if let Some(holder) = self.0.iter().find(same) {
            let name = holder.name.clone();
            return Err(ServicesError::PortTaken {
                port: service.port,
                name,
            });
        }
        self.0.retain(|other| other.name != service.name);
        self.0.push(service);
        self.0.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    /// Takes a service back.
    pub(crate) fn remove(&mut self, name: &ServiceName) -> Result<(), ServicesError> {
        let before = self.0.len();
        self.0.retain(|service| service.name != *name);
        if self.0.len() == before {
            return Err(ServicesError::Unknown(name.clone()));
        }
        Ok(())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Service> {
        self.0.iter()
    }
}

/// A service of the machine's loopback, as `publish NAME PORT` means it.
pub(crate) fn on_loopback(service: Service) -> Published {
    let to = SocketAddr::from(([127, 0, 0, 1], service.port));
    Published {
        service,
        target: Target::Loopback(to),
    }
}

/// The service that `publish NAME PORT` describes.
pub(crate) fn described(name: ServiceName, port: u16, tcp: bool) -> Service {
    let kind = if tcp {
        ServiceKind::Tcp
    } else {
        ServiceKind::Http
    };
    Service { name, kind, port }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, port: u16) -> Service {
        described(name.parse().expect("a name"), port, false)
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
