//! Relays of the installation.

use mesh_api::model::enrolment::Enrolment;
use mesh_api::uri::Subject;
use mesh_types::{RelayId, Role};

use super::super::{Change, Core, relay_row};
use super::{Enrolled, Keys, admits, short, wished_name};
use crate::error::Error;
use crate::record::{EventKind, RelayRecord, TokenRecord, TokenUse};

impl Core {
    pub(super) async fn enrol_relay(
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
