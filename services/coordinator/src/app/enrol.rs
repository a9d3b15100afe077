//! Enrolment: a join token and proofs of the keys in, an identity out.

use mesh_api::identity::{ENROL_DISCO, ENROL_WG, verify_enrol_proof};
use mesh_api::uri::Subject;
use mesh_types::route::console_prefix;
use mesh_types::{
    DiscoPublicKey, IdentityPublicKey, NetworkId, NetworkName, NodeId, NodeName, OverlayAddrs,
    RelayId, Role, Timestamp, TokenId, UptimeClass, WgPublicKey,
};
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::challenge::Taken;
use super::{Change, Core, relay_row, usable_name};
use crate::ca::key_of_request;
use crate::error::Error;
use crate::members::NetworkInfo;
use crate::metrics::Refusal;
use crate::record::{EventKind, NodeRecord, RelayRecord, SshFacts, TokenRecord, TokenUse};

/// A public key with the proof that the sender holds its private half.
#[derive(Debug, Clone)]
pub(crate) struct ProvenKey<K> {
    pub(crate) key: K,
    pub(crate) proof: Vec<u8>,
}

/// What a machine sends to join.
pub(crate) struct Enrolment {
    pub(crate) token: TokenId,
    pub(crate) secret: Zeroizing<Vec<u8>>,
    pub(crate) nonce: Vec<u8>,
    pub(crate) hostname: String,
    pub(crate) csr: Vec<u8>,
    /// Nodes have both; relays may have none.
    pub(crate) wg: Option<ProvenKey<WgPublicKey>>,
    pub(crate) disco: Option<ProvenKey<DiscoPublicKey>>,
    pub(crate) version: String,
    pub(crate) permit: Option<Vec<u8>>,
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Enrolled {
    pub(crate) id: [u8; 16],
    /// `None` for relays.
    pub(crate) network: Option<(NetworkId, NetworkName)>,
    pub(crate) name: NodeName,
    pub(crate) role: Role,
    pub(crate) owner: String,
    pub(crate) addrs: Option<OverlayAddrs>,
    /// DER.
    pub(crate) certificate: Vec<u8>,
    pub(crate) console_prefix: String,
}

/// The keys after their proofs were checked.
#[derive(Debug, Clone)]
struct Keys {
    identity: IdentityPublicKey,
    wg: Option<WgPublicKey>,
    disco: Option<DiscoPublicKey>,
}

/// SHA-256, as secrets of tokens and permits are stored.
pub(super) fn secret_hash(secret: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, secret).as_ref());
    hash
}

fn check_proofs(request: &Enrolment, taken: &Taken) -> Result<Keys, Error> {
    let identity = key_of_request(&request.csr)?;
    let spki = identity.as_spki_der();
    let holds = |context, public: &[u8; 32], proof: &[u8]| {
        taken
            .shared(public)
            .is_some_and(|shared| verify_enrol_proof(context, &shared, &request.nonce, spki, proof))
    };
    if let Some(ProvenKey { key, proof }) = &request.wg
        && !holds(ENROL_WG, key.as_bytes(), proof)
    {
        return Err(Error::BadProof("WireGuard"));
    }
    if let Some(ProvenKey { key, proof }) = &request.disco
        && !holds(ENROL_DISCO, key.as_bytes(), proof)
    {
        return Err(Error::BadProof("disco"));
    }
    Ok(Keys {
        identity,
        wg: request.wg.as_ref().map(|proven| proven.key),
        disco: request.disco.as_ref().map(|proven| proven.key),
    })
}

/// Whether the token lets anybody new in at this time.
fn admits(token: &TokenRecord, now: Timestamp) -> Result<(), Error> {
    if now >= token.expires_at {
        Err(Error::TokenExpired)
    } else if !token.reusable && token.uses > 0 {
        Err(Error::TokenUsed)
    } else {
        Ok(())
    }
}

impl Core {
    /// Lets a machine in by a token. Atomic: of any number of machines with a one-use token,
    /// exactly one gets in; the same machine gets the same answer as often as it asks.
    pub(crate) async fn enrol(&self, request: Enrolment) -> Result<Enrolled, Error> {
        let token = request.token;
        let outcome = self.enrol_checked(request).await;
        match &outcome {
            Ok(_) => {
                self.figures.enrolments.inc();
            }
            Err(error) => {
                let (_, reason) = error.kind();
                tracing::info!(%token, reason, "a machine was not let in");
                self.figures
                    .enrolment_refusals
                    .get_or_create(&Refusal { reason })
                    .inc();
                let genuine = matches!(
                    error,
                    Error::TokenExpired | Error::TokenUsed | Error::TokenRevoked
                );
                if genuine {
                    self.note_refused_join(token, reason).await;
                }
            }
        }
        outcome
    }

    async fn note_refused_join(&self, token: TokenId, reason: &'static str) {
        let noted = async {
            let mut change = self.change("coordinator").await?;
            change.event(None, EventKind::JoinRefused, token, reason);
            change.commit().await.map(drop)
        };
        if let Err(error) = noted.await {
            let error = mesh_daemon::report::chain(&error);
            tracing::debug!(error, "a refused join was not recorded");
        }
    }

    async fn enrol_checked(&self, request: Enrolment) -> Result<Enrolled, Error> {
        let taken = self.take_challenge(&request.nonce)?;
        let keys = check_proofs(&request, &taken)?;
        let change = self.change(format!("token:{}", request.token)).await?;
        let token = change
            .txn
            .token_show(request.token)
            .await?
            .ok_or(Error::TokenUnknown)?;
        if !bool::from(secret_hash(&request.secret).ct_eq(&token.secret_hash)) {
            return Err(Error::TokenWrongSecret);
        }
        if token.revoked_at.is_some() {
            return Err(Error::TokenRevoked);
        }
        let before = change.txn.token_use_show(token.id, &keys.identity).await?;
        match token.network {
            Some(network) => {
                let network = self.network_of(network)?;
                self.enrol_node(change, &request, keys, &token, &network, before)
                    .await
            }
            None => {
                self.enrol_relay(change, &request, keys, &token, before)
                    .await
            }
        }
    }

    async fn enrol_node(
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

    fn takeover(&self, node: &NodeRecord) -> Error {
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
            let version = change.txn.network_bump(of).await?;
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
            record.changed_version = change.txn.network_bump(node.network).await?;
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

    async fn enrol_relay(
        &self,
        mut change: Change<'_>,
        request: &Enrolment,
        keys: Keys,
        token: &TokenRecord,
        before: Option<TokenUse>,
    ) -> Result<Enrolled, Error> {
        let now = change.now;
        let known = change.txn.relay_by_identity(&keys.identity).await?;
        let again = before.is_some() && known.is_some();
        if !again {
            if before.is_some() && !token.reusable {
                return Err(Error::Removed("relay"));
            }
            admits(token, now)?;
        }
        if let Some(node) = change.txn.node_by_identity(&keys.identity).await? {
            return Err(self.takeover(&node));
        }
        let is_new = known.is_none();
        let mut record = match known {
            Some(record) => record,
            None => {
                let (millis, random) = self.id_parts(now)?;
                let wished = wished_name(&request.hostname)?;
                RelayRecord {
                    id: RelayId::from_parts(millis, random),
                    name: change.txn.relay_free_name(&wished).await?,
                    owner: token.owner.clone(),
                    identity: keys.identity.clone(),
                    derp: Vec::new(),
                    stun: Vec::new(),
                    version: String::new(),
                    created_at: now,
                    last_seen: None,
                    certificate_not_after: now,
                }
            }
        };
        let subject = Subject::Relay(record.id);
        let issued = self
            .ca
            .issue(&subject, Some(Role::Relay), &keys.identity, now)?;
        record.certificate_not_after = issued.not_after;
        record.version = short(&request.version);
        if is_new {
            change.txn.relay_create(&record).await?;
            change.event(None, EventKind::RelayJoined, &record.name, "");
            let after = [("name", record.name.as_str())];
            change
                .audit("relay-join", format!("relay:{}", record.id), &[], &after)
                .await?;
        } else {
            change.txn.relay_update(&record).await?;
        }
        if !again {
            let id = record.id.to_bytes();
            change
                .txn
                .token_use_record(token.id, &keys.identity, id, now)
                .await?;
        }
        let _turn = change.commit().await?;
        let record = self.members.put_relay(record);
        let row = relay_row(&record, None);
        if is_new {
            self.netmap
                .with(move |engine, _| engine.relay_added(row))
                .await??;
        }
        Ok(Enrolled {
            id: record.id.to_bytes(),
            network: None,
            name: record.name.clone(),
            role: Role::Relay,
            owner: record.owner.clone(),
            addrs: None,
            certificate: issued.certificate,
            console_prefix: String::new(),
        })
    }
}

fn wished_name(hostname: &str) -> Result<NodeName, Error> {
    NodeName::from_hostname(hostname)
        .ok_or_else(|| Error::HostnameInvalid(hostname.chars().take(80).collect()))
}

/// A program's version as it is kept.
pub(super) fn short(version: &str) -> String {
    version
        .chars()
        .filter(|c| !c.is_control())
        .take(64)
        .collect()
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
