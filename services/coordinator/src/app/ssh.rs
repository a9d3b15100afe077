//! SSH user certificates: five minutes, one principal, bound to where they may be used from.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use mesh_ssh::ca::{CertificateRequest, Principal, UserCa};
use mesh_ssh::key::{Certificate, PublicKey};
use mesh_types::{NodeId, OperatorId, Role};

use super::Core;
use super::bootstrap::ssh_secret;
use super::deferred::Note;
use super::note;
use crate::caller::Caller;
use crate::error::Error;
use crate::members::NetworkInfo;
use crate::record::{AuditEntry, EventKind, EventRecord};

/// The most targets of one certificate.
const MAX_TARGETS: usize = 10_000;

/// What a caller asks for.
#[derive(Debug, Clone)]
pub(crate) struct SshRequest {
    /// OpenSSH public key line.
    pub(crate) public_key: String,
    /// Of operators; a deployer's is its own, and may be left empty.
    pub(crate) network: String,
    pub(crate) principal: String,
    pub(crate) targets: Vec<NodeId>,
    /// Of deployers: the operator they act for.
    pub(crate) on_behalf_of: Option<OperatorId>,
}

impl Core {
    /// A user certificate of the network's authority.
    pub(crate) async fn ssh_issue(
        &self,
        caller: &Caller,
        request: SshRequest,
    ) -> Result<Certificate, Error> {
        let (network, mut actor, mut sources) = self.ssh_scope(caller, &request.network)?;
        if let Some(id) = request.on_behalf_of {
            let operator = self.members.operator(id);
            let operator =
                operator.ok_or_else(|| Error::not_found("operator", id, "'mesh operator list'"))?;
            if operator.revoked_at.is_some() {
                return Err(Error::Revoked);
            }
            if !matches!(caller, Caller::Operator(own) if own.id == id) {
                actor = format!("{actor} for operator:{}", operator.name);
            }
        }
        let invalid = |error: &dyn std::fmt::Display| Error::Invalid(error.to_string());
        let public_key: PublicKey = request.public_key.parse().map_err(|e| invalid(&e))?;
        let principal: Principal = request.principal.parse().map_err(|e| invalid(&e))?;
        if request.targets.len() > MAX_TARGETS {
            return Err(Error::Invalid(format!(
                "at most {MAX_TARGETS} targets at once"
            )));
        }
        for id in &request.targets {
            let node = self.members.node(*id);
            let node = node.filter(|node| node.network == network.record.id);
            let node = node.ok_or_else(|| Error::not_found("node", id, "'mesh node list'"))?;
            if node.ssh.via_loopback {
                sources.insert(Ipv4Addr::LOCALHOST.into());
                sources.insert(Ipv6Addr::LOCALHOST.into());
            }
        }
        let name = ssh_secret(network.record.id);
        let key = self.sealer.open(&name, &network.ssh_ca_sealed)?;
        let key = std::str::from_utf8(&key).map_err(Error::internal)?;
        let ca = UserCa::from_openssh(key).map_err(Error::internal)?;

        let serial = u64::from_be_bytes(self.random()?) >> 1;
        let now = self.now();
        let wanted = CertificateRequest {
            public_key,
            principal,
            key_id: actor.clone(),
            serial,
            source_addresses: sources.into_iter().collect(),
        };
        let certificate = ca.sign(&wanted, now).map_err(Error::internal)?;
        let print = wanted.public_key.fingerprint();
        let detail = format!("{actor} as {} with {print}", wanted.principal);
        let network = &network.record.name;
        let event = EventRecord {
            id: 0,
            time: now,
            network: Some(network.clone()),
            kind: EventKind::SshCertificateIssued,
            subject: serial.to_string(),
            detail,
        };
        let sources: Vec<_> = wanted
            .source_addresses
            .iter()
            .map(ToString::to_string)
            .collect();
        let principal = wanted.principal.to_string();
        let after = [
            ("key", print.as_str()),
            ("network", network.as_str()),
            ("principal", &principal),
            ("sources", &sources.join(",")),
        ];
        let entry = AuditEntry {
            time: now,
            actor,
            action: "ssh-certificate".to_owned(),
            subject: format!("serial:{serial}"),
            before: String::new(),
            after: note(&after),
        };
        self.note_now_or_later(Note { event, entry }).await?;
        self.figures.ssh_certificates.inc();
        Ok(certificate)
    }

    /// The network that is meant, who asks, and from where the certificate may be used.
    fn ssh_scope(
        &self,
        caller: &Caller,
        network: &str,
    ) -> Result<(Arc<NetworkInfo>, String, BTreeSet<IpAddr>), Error> {
        match caller {
            Caller::Operator(operator) => {
                let network = self.network_named(network)?;
                let sources: BTreeSet<IpAddr> = self
                    .members
                    .nodes(Some(network.record.id))
                    .iter()
                    .filter(|node| node.role == Role::Deployer)
                    .flat_map(|node| node.addrs.iter())
                    .collect();
                if sources.is_empty() {
                    return Err(Error::NoDeployer(network.record.name.to_string()));
                }
                Ok((network, format!("operator:{}", operator.name), sources))
            }
            Caller::Node(node) if node.role == Role::Deployer => {
                let own = self.network_of(node.network)?;
                if !network.is_empty() && network != own.record.name.as_str() {
                    return Err(Error::WrongNetwork);
                }
                let actor = format!("deployer:{}", node.name);
                Ok((own, actor, node.addrs.iter().collect()))
            }
            other => Err(Error::NotAllowed(other.kind().as_str())),
        }
    }
}
