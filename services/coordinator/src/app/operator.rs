//! Operator credentials: added, listed, revoked.

use std::sync::Arc;

use mesh_api::csr::key_of_request;
use mesh_api::uri::Subject;
use mesh_types::OperatorId;

use super::Core;
use crate::ca::Issued;
use crate::error::Error;
use crate::record::{EventKind, OperatorRecord};

impl Core {
    /// A new operator: the private key stays where the request was made.
    pub(crate) async fn operator_add(
        &self,
        actor: &str,
        name: &str,
        csr: &[u8],
    ) -> Result<(OperatorId, Issued), Error> {
        let plain = name
            .chars()
            .all(|c| c.is_alphanumeric() || "-_.@".contains(c));
        if name.is_empty() || name.chars().count() > 64 || !plain {
            return Err(Error::Invalid(
                "an operator's name is 1 to 64 letters, digits, '-', '_', '.', '@'".into(),
            ));
        }
        let identity = key_of_request(csr)?;
        let mut change = self.change(format!("operator:{actor}")).await?;
        let active = self.members.operators();
        if active
            .iter()
            .any(|known| known.name == name && known.revoked_at.is_none())
        {
            return Err(Error::Exists {
                kind: "operator",
                name: name.to_owned(),
            });
        }
        if active.iter().any(|known| known.identity == identity) {
            return Err(Error::Invalid(
                "this key belongs to an operator already: make a new key".into(),
            ));
        }
        let (millis, random) = self.id_parts(change.now)?;
        let id = OperatorId::from_parts(millis, random);
        let issued = self
            .ca
            .issue(&Subject::Operator(id), None, &identity, change.now)?;
        let record = OperatorRecord {
            id,
            name: name.to_owned(),
            identity,
            created_at: change.now,
            certificate_not_after: issued.not_after,
            revoked_at: None,
        };
        change.txn.operator_create(&record).await?;
        change.event(None, EventKind::OperatorAdded, name, "");
        change
            .audit(
                "operator-add",
                format!("operator:{id}"),
                &[],
                &[("name", name)],
            )
            .await?;
        let _turn = change.commit().await?;
        self.members.put_operator(record);
        Ok((id, issued))
    }

    /// All operators, revoked ones too, oldest first.
    pub(crate) fn operator_list(&self) -> Vec<Arc<OperatorRecord>> {
        self.members.operators()
    }

    /// Takes all rights from an operator, by name or id. The last one cannot be revoked.
    pub(crate) async fn operator_revoke(&self, actor: &str, wanted: &str) -> Result<(), Error> {
        let mut change = self.change(format!("operator:{actor}")).await?;
        let id = wanted.parse::<OperatorId>().ok();
        let active: Vec<_> = self
            .members
            .operators()
            .into_iter()
            .filter(|known| known.revoked_at.is_none())
            .collect();
        let found = active
            .iter()
            .find(|known| Some(known.id) == id || known.name == wanted);
        let operator =
            found.ok_or_else(|| Error::not_found("operator", wanted, "'mesh operator list'"))?;
        if active.len() == 1 {
            return Err(Error::Invalid(
                "this is the last operator: add another one first ('mesh operator add')".into(),
            ));
        }
        let record = OperatorRecord {
            revoked_at: Some(change.now),
            ..OperatorRecord::clone(operator)
        };
        change.txn.operator_update(&record).await?;
        change.event(None, EventKind::OperatorRevoked, &record.name, "");
        let before = [("name", record.name.as_str())];
        change
            .audit(
                "operator-revoke",
                format!("operator:{}", record.id),
                &before,
                &[],
            )
            .await?;
        let _turn = change.commit().await?;
        self.members.put_operator(record);
        Ok(())
    }
}
