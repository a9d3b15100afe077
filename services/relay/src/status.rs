//! What `relay status` tells, and what is wrong with a relay.

use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_daemon::build_info;
use mesh_node::advice::{Away, STARTING, of_membership};
use mesh_node::{ControlState, ControlStatus, Enrolled, NodeReport};
use mesh_types::{Finding, NodeName, OpenFiles, RelayId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::clients::{Clients, ListState};

/// The schema of [`Status`] as JSON.
pub const SCHEMA: &str = "mesh.relay/1";
/// What is asked of the control socket.
pub(crate) const REQUEST: &str = "status";

/// How a running relay is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Always true: what `relay status --json` prints where none runs has only this, the schema
    /// and findings.
    pub running: bool,
    /// The relay's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Who it is.
    pub id: RelayId,
    /// Its name.
    pub name: NodeName,
    /// Where DERP over TLS is served.
    pub derp_addr: SocketAddr,
    /// Where STUN is answered.
    pub stun_addr: SocketAddr,
    /// Where nodes are told to find DERP: `host:port` each.
    pub derp: Vec<String>,
    /// Where nodes are told to find STUN: `host:port` each.
    pub stun: Vec<String>,
    /// The connection to the coordinator.
    pub control: ControlStatus,
    /// Clients connected.
    pub clients: usize,
    /// Keys that may use the relay.
    pub allowed: usize,
    /// What the process has open.
    pub open_files: OpenFiles,
    /// What is wrong, the most far-reaching first.
    pub findings: Vec<Finding>,
}

/// What a status is made from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) enrolled: Enrolled,
    pub(crate) id: RelayId,
    pub(crate) derp_addr: SocketAddr,
    pub(crate) stun_addr: SocketAddr,
    pub(crate) advertised: NodeReport,
    pub(crate) control: watch::Receiver<ControlStatus>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) started: Timestamp,
}

impl Source {
    /// What answers at the control socket.
    pub(crate) fn answers(
        self,
    ) -> impl Fn(String) -> Ready<serde_json::Value> + Clone + Send + 'static {
        move |request| {
            ready(match request.as_str() {
                REQUEST => serde_json::json!(self.status(SystemTime::now().into())),
                _ => serde_json::json!({ "error": "unknown request" }),
            })
        }
    }

    fn status(&self, now: Timestamp) -> Status {
        let control = self.control.borrow().clone();
        let list = self.clients.list_state().clone();
        let (clients, allowed) = {
            let registry = self.clients.registry();
            (registry.len(), registry.allowed().len())
        };
        let (used, limit) = mesh_daemon::open_files();
        let open_files = OpenFiles { used, limit };
        let mut findings = advice(&self.enrolled, &control, &list, self.started, now);
        findings.extend(open_files.finding(false, "the relay", "mesh-relay"));
        Status {
            schema: SCHEMA.to_owned(),
            running: true,
            version: build_info::VERSION.to_owned(),
            pid: std::process::id(),
            id: self.id,
            name: self.enrolled.name.clone(),
            derp_addr: self.derp_addr,
            stun_addr: self.stun_addr,
            derp: self.advertised.derp.clone(),
            stun: self.advertised.stun.clone(),
            control,
            clients,
            allowed,
            open_files,
            findings,
        }
    }
}

/// What is wrong with a relay, the most far-reaching first. Pure.
fn advice(
    enrolled: &Enrolled,
    control: &ControlStatus,
    list: &ListState,
    started: Timestamp,
    now: Timestamp,
) -> Vec<Finding> {
    let away = |away: Away<'_>| without_coordinator(away, list);
    let mut found = of_membership(enrolled, control, now, away);
    if control.is_removed() {
        return found;
    }
    if !list.known && control.is_connected() && now.since(started) >= STARTING {
        found.push(Finding::error(
            "no-client-list",
            "the coordinator is connected and has not told who may use this relay: nobody is let in",
            "journalctl -u mesh-relay -n 50; where the coordinator runs: mesh status",
        ));
    }
    if let Some(error) = &list.unsaved {
        found.push(Finding::warning(
            "client-list-unsaved",
            format!(
                "the list of clients cannot be stored, so after a restart an older one counts \
                 until the coordinator answers: {error}"
            ),
            "df -h (make room); it is tried again every 10 s",
        ));
    }
    found
}

fn without_coordinator(away: Away<'_>, list: &ListState) -> Finding {
    let Away { code, error, next } = away;
    if list.known {
        let what = format!(
            "{error}; acting on the last list of clients: whoever is in it is served, new ones and \
             removals wait"
        );
        return Finding::warning(code, what, next);
    }
    let what = format!(
        "{error}; there is no list of clients from before, so nobody is let in until the \
         coordinator answers"
    );
    Finding::error("no-client-list", what, next)
}

/// The status for people.
pub(crate) fn render(status: &Status) -> String {
    let control = match status.control.state {
        ControlState::Connected => "connected",
        ControlState::Connecting | ControlState::Waiting => "not connected",
        ControlState::Removed => "removed from the mesh",
        ControlState::Stopped => "stopped",
    };
    let at = |told: &[String]| told.join(", ");
    let mut lines = vec![
        format!(
            "relay {} {} (pid {})",
            status.name, status.version, status.pid
        ),
        format!("  id           {}", status.id),
        format!("  coordinator  {control}"),
        format!(
            "  DERP         {}, told as {}",
            status.derp_addr,
            at(&status.derp)
        ),
        format!(
            "  STUN         {}, told as {}",
            status.stun_addr,
            at(&status.stun)
        ),
        format!(
            "  clients      {} of {} connected",
            status.clients, status.allowed
        ),
        String::new(),
    ];
    if status.findings.is_empty() {
        lines.push("Nothing is wrong.".to_owned());
    }
    lines.extend(status.findings.iter().map(ToString::to_string));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use mesh_types::{NodeId, Role, Severity};

    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(1_700_000_000 + secs)
    }

    fn enrolled() -> Enrolled {
        Enrolled {
            node: NodeId::from_bytes([7; 16]),
            name: "relay".parse().expect("a name"),
            role: Role::Relay,
            network: None,
            network_id: None,
            addrs: None,
            console_prefix: String::new(),
            owner: String::new(),
            coordinators: vec!["mesh.example.org:8080".to_owned()],
        }
    }

    fn control(state: ControlState, error: Option<&str>) -> ControlStatus {
        ControlStatus {
            state,
            since: at(0),
            last_error: error.map(str::to_owned),
            stale_since: None,
            certificate_until: at(25 * 86_400),
        }
    }

    fn list(known: bool, unsaved: Option<&str>) -> ListState {
        ListState {
            known,
            unsaved: unsaved.map(str::to_owned),
        }
    }

    #[test]
    fn each_trouble_of_a_relay_is_told_with_the_next_command() {
        use ControlState::{Connected, Removed, Waiting};
        use Severity::{Error, Warning};

        let gone = Some("nothing answers there");
        let full = Some("no space left");
        for (control, list, code, severity, what, next) in [
            (
                control(Waiting, gone),
                list(true, None),
                "coordinator-unreachable",
                Warning,
                "acting on the last list of clients",
                "(mesh.example.org:8080): systemctl status mesh-coordinator",
            ),
            (
                control(Waiting, gone),
                list(false, None),
                "no-client-list",
                Error,
                "nobody is let in until the coordinator answers",
                "systemctl status mesh-coordinator",
            ),
            (
                control(Connected, None),
                list(false, None),
                "no-client-list",
                Error,
                "has not told who may use this relay",
                "journalctl -u mesh-relay",
            ),
            (
                control(Connected, None),
                list(true, full),
                "client-list-unsaved",
                Warning,
                "no space left",
                "df -h",
            ),
            (
                control(Removed, None),
                list(true, full),
                "node-removed",
                Error,
                "removed this relay",
                "relay join --token-file FILE",
            ),
        ] {
            let found = advice(&enrolled(), &control, &list, at(0), at(60));
            assert_eq!(found.len(), 1, "{code}: {found:?}");
            let finding = &found[0];
            assert_eq!(finding.code, code);
            assert_eq!(finding.severity, severity, "{code}");
            assert!(finding.what.contains(what), "{code}: {finding}");
            assert!(finding.next.contains(next), "{code}: {finding}");
        }
    }

    #[test]
    fn a_relay_that_is_well_or_just_starts_has_no_findings() {
        let well = control(ControlState::Connected, None);
        let none = Vec::<Finding>::new();
        let found = advice(&enrolled(), &well, &list(true, None), at(0), at(3600));
        assert_eq!(found, none);
        let found = advice(&enrolled(), &well, &list(false, None), at(0), at(14));
        assert_eq!(found, none);
        let connecting = control(ControlState::Connecting, None);
        let found = advice(&enrolled(), &connecting, &list(false, None), at(0), at(60));
        assert_eq!(found, none, "nothing has failed yet");
    }
}
