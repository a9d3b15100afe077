//! Join tokens: made, listed, revoked.

use std::time::Duration;

use mesh_types::{JoinToken, Role, TokenId};

use super::Core;
use super::enrol::secret_hash;
use crate::error::Error;
use crate::record::{EventKind, TokenRecord};

/// How long a token lives unless told otherwise.
const DEFAULT_LIFE: u64 = 30 * 60;
/// The shortest and the longest life.
const LIFE: std::ops::RangeInclusive<u64> = 60..=24 * 60 * 60;

/// What an operator wishes.
#[derive(Debug, Clone)]
pub(crate) struct NewToken {
    /// Empty: the default network.
    pub(crate) network: String,
    pub(crate) role: Role,
    /// Empty: the operator.
    pub(crate) owner: String,
    pub(crate) reusable: bool,
    /// 0: the default.
    pub(crate) lifetime_secs: u64,
}

/// An owner's name as it is kept: free text without line breaks.
fn owner(wished: &str, operator: &str) -> Result<String, Error> {
    let owner = if wished.is_empty() { operator } else { wished };
    if owner.chars().count() > 64 || owner.chars().any(char::is_control) {
        return Err(Error::Invalid(
            "an owner is at most 64 characters of plain text".into(),
        ));
    }
    Ok(owner.to_owned())
}

impl Core {
    /// Makes a token; its text, with the secret, exists only in this answer.
    pub(crate) async fn token_create(
        &self,
        operator: &str,
        wish: NewToken,
    ) -> Result<(JoinToken, TokenRecord), Error> {
        let life = if wish.lifetime_secs == 0 {
            DEFAULT_LIFE
        } else {
            wish.lifetime_secs
        };
        if !LIFE.contains(&life) {
            return Err(Error::TokenLifetime(life));
        }
        let network = match wish.role {
            Role::Relay => None,
            _ => Some(self.network_named(&wish.network)?),
        };
        let owner = owner(&wish.owner, operator)?;
        let secret: [u8; 32] = self.random()?;
        let mut change = self.change(format!("operator:{operator}")).await?;
        let now = change.now;
        let (millis, random) = self.id_parts(now)?;
        let record = TokenRecord {
            id: TokenId::from_parts(millis, random),
            network: network.as_ref().map(|info| info.record.id),
            role: wish.role,
            owner,
            reusable: wish.reusable,
            secret_hash: secret_hash(&secret),
            created_at: now,
            expires_at: now.plus(Duration::from_secs(life)),
            revoked_at: None,
            uses: 0,
        };
        change.txn.token_create(&record).await?;
        let name = network.as_ref().map(|info| &info.record.name);
        let role = record.role.as_str();
        change.event(name, EventKind::TokenCreated, record.id, role);
        let after = [("role", role), ("owner", record.owner.as_str())];
        change
            .audit("token-create", format!("token:{}", record.id), &[], &after)
            .await?;
        let _turn = change.commit().await?;
        self.genuine_tokens().insert(record.id);
        let token = JoinToken {
            ca_fingerprint: self.ca.fingerprint(),
            id: record.id,
            secret,
            coordinators: self.advertised().to_vec(),
        };
        Ok((token, record))
    }

    /// The tokens of a network (empty: all), oldest first.
    pub(crate) async fn token_list(&self, network: &str) -> Result<Vec<TokenRecord>, Error> {
        let network = match network {
            "" => None,
            name => Some(self.network_named(name)?.record.id),
        };
        Ok(self.store.token_list(network).await?)
    }

    /// Makes a token useless; whoever joined by it stays.
    pub(crate) async fn token_revoke(&self, operator: &str, id: TokenId) -> Result<(), Error> {
        let mut change = self.change(format!("operator:{operator}")).await?;
        let missing = || Error::not_found("token", id, "'mesh token list'");
        let token = change.txn.token_show(id).await?.ok_or_else(missing)?;
        if token.revoked_at.is_some() {
            return Ok(());
        }
        change.txn.token_revoke(id, change.now).await?;
        let network = token.network.and_then(|id| self.members.network(id));
        let name = network.as_ref().map(|info| &info.record.name);
        change.event(name, EventKind::TokenRevoked, id, "");
        change
            .audit("token-revoke", format!("token:{id}"), &[], &[])
            .await?;
        change.commit().await.map(drop)
    }
}
