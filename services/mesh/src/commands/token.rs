//! `mesh token`.

use anyhow::{Context as _, Result};
use mesh_api::pb;
use mesh_types::{Role, TokenId};
use serde_json::json;

use super::{Session, network_or};
use crate::args::TokenVerb;
use crate::{output, text};

pub(super) async fn run(session: &Session, verb: TokenVerb) -> Result<()> {
    match verb {
        TokenVerb::Create {
            role,
            network,
            owner,
            reusable,
            expires,
            output,
        } => {
            let (context, mut admin) = session.admin().await?;
            let request = pb::CreateTokenRequest {
                network: network_or(&context, network),
                role: pb::Role::from(role).into(),
                owner: owner.unwrap_or_default(),
                reusable,
                lifetime_secs: expires.as_secs(),
            };
            let created = admin.create_token(request).await?.into_inner();
            show_created(session, role, &created, output.as_deref())
        }
        TokenVerb::List { network } => list(session, network.map(String::from)).await,
        TokenVerb::Revoke { id } => {
            let parsed: TokenId = id.parse().context("see 'mesh token list' for ids")?;
            let (_, mut admin) = session.admin().await?;
            admin
                .revoke_token(pb::RevokeTokenRequest {
                    id: parsed.as_bytes().to_vec(),
                })
                .await?;
            session.done("token revoke", &id, &format!("revoked {id}"))
        }
    }
}

fn show_created(
    session: &Session,
    role: Role,
    created: &pb::CreateTokenResponse,
    output: Option<&std::path::Path>,
) -> Result<()> {
    let info = created.info.clone().unwrap_or_default();
    if let Some(path) = output {
        mesh_daemon::write_private(path, format!("{}\n", created.token).as_bytes())
            .with_context(|| format!("write the token to {}", path.display()))?;
        if session.json {
            return output::print_json("mesh.token/1", "token", json_of(&info));
        }
        say!(
            "wrote the token to {}; it works until {}",
            path.display(),
            expiry(&info)
        );
        return Ok(());
    }
    if session.json {
        let mut value = json_of(&info);
        value["token"] = json!(created.token);
        return output::print_json("mesh.token/1", "token", value);
    }
    say!("{}", created.token);
    let program = match role {
        Role::Gateway => "traffic-gateway",
        Role::Deployer => "deploy-manager",
        Role::Relay => "relay",
        Role::Worker | Role::Client | Role::Router => "worker-agent",
    };
    let uses = if info.reusable {
        "any number of machines"
    } else {
        "one machine"
    };
    eprintln!(
        "For {uses}, until {}. It is shown only now. On the machine that joins:",
        expiry(&info)
    );
    eprintln!("  {program} join --token-file -     (then paste it, Enter, Ctrl-D)");
    Ok(())
}

fn expiry(info: &pb::Token) -> String {
    let at = text::rfc3339(info.expires_at).unwrap_or_default();
    let second = at
        .split('.')
        .next()
        .unwrap_or_default()
        .trim_end_matches('Z')
        .replace('T', " ");
    format!(
        "{second} UTC ({})",
        text::relative(info.expires_at, text::now())
    )
}

async fn list(session: &Session, network: Option<String>) -> Result<()> {
    let (_, mut admin) = session.admin().await?;
    let request = pb::ListTokensRequest {
        network: network.unwrap_or_default(),
    };
    let tokens = admin.list_tokens(request).await?.into_inner().tokens;
    if session.json {
        let tokens: Vec<_> = tokens.iter().map(json_of).collect();
        return output::print_json("mesh.tokens/1", "tokens", tokens);
    }
    if tokens.is_empty() {
        say!("No join tokens. Make one: mesh token create --role worker");
        return Ok(());
    }
    let now = text::now();
    let rows = tokens.iter().map(|token| {
        let kind = if token.reusable {
            "reusable"
        } else {
            "one use"
        };
        [
            id(token),
            token.network.clone(),
            role(token),
            token.owner.clone(),
            kind.to_owned(),
            token.uses.to_string(),
            state(token, now.as_micros()).to_owned(),
            text::relative(token.expires_at, now),
        ]
    });
    let head = [
        "ID", "NETWORK", "ROLE", "OWNER", "KIND", "USES", "STATE", "EXPIRES",
    ];
    say!("{}", output::table(head, rows.collect()));
    Ok(())
}

fn id(token: &pb::Token) -> String {
    TokenId::try_from(token.id.as_slice())
        .map(|id| id.to_string())
        .unwrap_or_default()
}

fn role(token: &pb::Token) -> String {
    mesh_api::model::enums::role(token.role)
        .map_or("?", Role::as_str)
        .to_owned()
}

fn state(token: &pb::Token, now: i64) -> &'static str {
    if token.revoked_at != 0 {
        "revoked"
    } else if !token.reusable && token.uses > 0 {
        "used"
    } else if token.expires_at <= now {
        "expired"
    } else {
        "usable"
    }
}

pub(super) fn json_of(token: &pb::Token) -> serde_json::Value {
    json!({
        "id": id(token),
        "network": token.network,
        "role": role(token),
        "owner": token.owner,
        "reusable": token.reusable,
        "uses": token.uses,
        "state": state(token, text::now().as_micros()),
        "created_at": text::rfc3339(token.created_at),
        "expires_at": text::rfc3339(token.expires_at),
        "revoked_at": text::rfc3339(token.revoked_at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_state_is_its_first_hindrance() {
        let token = pb::Token {
            expires_at: 100,
            ..Default::default()
        };
        assert_eq!(state(&token, 50), "usable");
        assert_eq!(state(&token, 100), "expired");
        assert_eq!(
            state(
                &pb::Token {
                    uses: 1,
                    ..token.clone()
                },
                50
            ),
            "used"
        );
        let reusable = pb::Token {
            uses: 1,
            reusable: true,
            ..token.clone()
        };
        assert_eq!(state(&reusable, 50), "usable");
        assert_eq!(
            state(
                &pb::Token {
                    revoked_at: 1,
                    ..token
                },
                50
            ),
            "revoked"
        );
    }
}
