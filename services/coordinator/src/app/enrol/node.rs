//! Nodes: new ones, the same again, and those that a permit lets come back.

use mesh_api::model::enrolment::Enrolment;
use mesh_api::uri::Subject;
use mesh_types::route::console_prefix;
use mesh_types::{DiscoPublicKey, IdentityPublicKey, Labels, NodeId, UptimeClass, WgPublicKey};

use super::super::{Change, Core, usable_name};
use super::{Enrolled, Keys, admits, secret_hash, short, wished_name};
use crate::error::Error;
use crate::members::NetworkInfo;
use crate::record::{EventKind, NodeRecord, SshFacts, TokenRecord, TokenUse};

impl Core {
    pub(super) async fn enrol_node(
        &self,
        change: Change<'_>,
        request: &Enrolment,
        keys: Keys,
        token: &TokenRecord,
        network: &NetworkInfo,
        before: Option<TokenUse>,
    ) -> Result<Enrolled, Error> {
        let (Some(wg_key), Some(disco_key)) = (keys.wg, keys.disco) else {
            return Err(Error::Invalid(
                "a node needs a WireGuard key and a disco key".into(),
            ));
        };
        let known = change.txn.node_by_identity(&keys.identity).await?;
        let again = match (&before, &known) {
            (Some(before), Some(node)) => node.id.to_bytes() == before.subject,
            _ => false,
        };
        if !again {
            if before.is_some() && !token.reusable {
                return Err(Error::Removed("node"));
            }
            admits(token, change.now)?;
        }
        let fits = |node: &NodeRecord| node.network == network.record.id && node.role == token.role;
        let permitted = match &request.permit {
            Some(permit) => {
                let node = change
                    .txn
                    .node_by_permit(&secret_hash(permit), change.now)
                    .await?;
                Some(node.filter(fits).ok_or(Error::PermitInvalid)?)
            }
            None => None,
        };
        let node = match (known, permitted) {
            (Some(known), Some(permitted)) if known.id != permitted.id => {
                return Err(self.takeover(&known));
            }
            (_, Some(permitted)) => Some(permitted),
            // A certificate request can be replayed; the proof of the WireGuard key cannot, since
            // it is made for this nonce. So the old key that counts here is that one.
            (Some(known), None) if !fits(&known) || known.wg_key != wg_key => {
                return Err(self.takeover(&known));
            }
            (known, None) => known,
        };
        let except = node.as_ref().map(|node| node.id);
        if change
            .txn
            .node_by_keys(&wg_key, &disco_key, except)
            .await?
            .is_some()
        {
            return Err(Error::KeyTaken);
        }
        let keys = (keys.identity, wg_key, disco_key);
        match node {
            Some(node) => {
                self.rejoin(change, request, node, keys, token, network, again)
                    .await
            }
            None => self.join(change, request, keys, token, network).await,
        }
    }

    pub(super) fn takeover(&self, node: &NodeRecord) -> Error {
        let network = self.members.network(node.network);
        let network = network
            .map(|info| info.record.name.to_string())
            .unwrap_or_default();
        Error::Takeover(format!("{} {} in network {network}", node.role, node.name))
    }

    /// A new node.
    async fn join(
        &self,
        mut change: Change<'_>,
        request: &Enrolment,
        (identity, wg_key, disco_key): (IdentityPublicKey, WgPublicKey, DiscoPublicKey),
        token: &TokenRecord,
        network: &NetworkInfo,
    ) -> Result<Enrolled, Error> {
        let wished = wished_name(&request.hostname)?;
        let wished = usable_name(&network.record.name, wished);
        let now = change.now;
        let (millis, random) = self.id_parts(now)?;
        let id = NodeId::from_parts(millis, random);
        let subject = Subject::Node {
            network: network.record.name.clone(),
            node: id,
        };
        let issued = self.ca.issue(&subject, Some(token.role), &identity, now)?;

        let of = network.record.id;
        let reservation = self
            .netmap
            .with(move |engine, _| engine.reserve(of, &wished))
            .await??;
        let written = async {
            let version = change.bump(of).await?;
            let record = NodeRecord {
                id,
                network: of,
                name: reservation.name.clone(),
                role: token.role,
                owner: token.owner.clone(),
                identity: identity.clone(),
                wg_key,
                disco_key,
                addrs: reservation.addrs,
                uptime_class: UptimeClass::default(),
                labels: Labels::default(),
                version: short(&request.version),
                created_at: now,
                last_seen: None,
                certificate_not_after: issued.not_after,
                services: Vec::new(),
                ssh: SshFacts::default(),
                changed_version: version,
            };
            change.txn.node_create(&record).await?;
            change
                .txn
                .token_use_record(token.id, &identity, id.to_bytes(), now)
                .await?;
            let role = token.role.as_str();
            change.event(
                Some(&network.record.name),
                EventKind::NodeJoined,
                &record.name,
                role,
            );
            let after = [("name", record.name.as_str()), ("role", role)];
            change
                .audit("node-join", format!("node:{id}"), &[], &after)
                .await?;
            Ok::<_, Error>((change.commit().await?, record))
        };
        match written.await {
            Ok((_turn, record)) => {
                let enrolled = enrolled(&record, network, issued.certificate);
                tracing::info!(node = %record.id, name = %record.name, network = %network.record.name, role = %record.role, "a node joined");
                self.apply_node(record, true).await?;
                Ok(enrolled)
            }
            Err(error) => {
                self.netmap
                    .with(move |engine, _| engine.release(&reservation))
                    .await?;
                Err(error)
            }
        }
    }

    /// The same machine again, or one that an operator permitted to become this node.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a checked part of one request"
    )]
    async fn rejoin(
        &self,
        mut change: Change<'_>,
        request: &Enrolment,
        node: NodeRecord,
        (identity, wg_key, disco_key): (IdentityPublicKey, WgPublicKey, DiscoPublicKey),
        token: &TokenRecord,
        network: &NetworkInfo,
        again: bool,
    ) -> Result<Enrolled, Error> {
        let now = change.now;
        let name = &network.record.name;
        let subject = Subject::Node {
            network: name.clone(),
            node: node.id,
        };
        let issued = self.ca.issue(&subject, Some(node.role), &identity, now)?;
        let mut record = NodeRecord {
            identity: identity.clone(),
            wg_key,
            disco_key,
            version: short(&request.version),
            certificate_not_after: issued.not_after,
            ..node.clone()
        };
        let same_keys = record.identity == node.identity
            && record.wg_key == node.wg_key
            && record.disco_key == node.disco_key;
        if !same_keys {
            record.changed_version = change.bump(node.network).await?;
        }
        change.txn.node_update(&record).await?;
        if !again {
            change
                .txn
                .token_use_record(token.id, &identity, node.id.to_bytes(), now)
                .await?;
        }
        if request.permit.is_some() {
            change.txn.node_set_permit(node.id, None).await?;
        }
        if !(again && same_keys) {
            let detail = if same_keys { "same keys" } else { "new keys" };
            change.event(Some(name), EventKind::NodeRejoined, &node.name, detail);
            let subject = format!("node:{}", node.id);
            change
                .audit("node-rejoin", subject, &[], &[("keys", detail)])
                .await?;
        }
        let _turn = change.commit().await?;
        let enrolled = enrolled(&record, network, issued.certificate);
        if same_keys {
            // Nothing that others see has changed.
            self.members.put_node(record);
        } else {
            self.apply_node(record, false).await?;
        }
        Ok(enrolled)
    }
}

fn enrolled(record: &NodeRecord, network: &NetworkInfo, certificate: Vec<u8>) -> Enrolled {
    let name = &network.record.name;
    Enrolled {
        id: record.id.to_bytes(),
        network: Some((network.record.id, name.clone())),
        name: record.name.clone(),
        role: record.role,
        owner: record.owner.clone(),
        addrs: Some(record.addrs),
        certificate,
        console_prefix: console_prefix(name, &record.name),
    }
}
