//! `mesh operator`.

use anyhow::{Context as _, Result};
use mesh_api::pb;
use mesh_types::OperatorId;
use serde_json::json;

use super::login::{Credential, decode_request};
use super::{Session, read_input};
use crate::args::OperatorVerb;
use crate::{output, text};

pub(super) async fn run(session: &Session, verb: OperatorVerb) -> Result<()> {
    match verb {
        OperatorVerb::Add {
            name,
            request,
            output,
        } => {
            let csr = decode_request(&read_input(&request)?)?;
            let (context, mut admin) = session.admin().await?;
            let added = admin
                .add_operator(pb::AddOperatorRequest {
                    name: name.clone(),
                    csr,
                })
                .await?;
            let credential = Credential::new(&context, &added.into_inner());
            let text = serde_json::to_string_pretty(&credential)?;
            match output {
                Some(path) => {
                    std::fs::write(&path, text + "\n")
                        .with_context(|| format!("write {}", path.display()))?;
                    let text = format!("wrote {name}'s credential to {}", path.display());
                    session.done("operator add", &name, &text)?;
                }
                None => say!("{text}"),
            }
            eprintln!("On {name}'s machine: mesh login CREDENTIAL");
        }
        OperatorVerb::List => list(session).await?,
        OperatorVerb::Revoke { name } => {
            let (_, mut admin) = session.admin().await?;
            admin
                .revoke_operator(pb::RevokeOperatorRequest { name: name.clone() })
                .await?;
            session.done(
                "operator revoke",
                &name,
                &format!("{name} is no longer an operator"),
            )?;
        }
    }
    Ok(())
}

async fn list(session: &Session) -> Result<()> {
    let (_, mut admin) = session.admin().await?;
    let operators = admin
        .list_operators(pb::ListOperatorsRequest {})
        .await?
        .into_inner()
        .operators;
    if session.json {
        let operators: Vec<_> = operators.iter().map(json_of).collect();
        return output::print_json("mesh.operators/1", "operators", operators);
    }
    let now = text::now();
    let rows = operators.into_iter().map(|operator| {
        let state = if operator.revoked_at != 0 {
            "revoked"
        } else {
            "active"
        };
        let ends = text::relative(operator.certificate_not_after, now);
        [
            operator.name,
            state.to_owned(),
            text::relative(operator.created_at, now),
            ends,
        ]
    });
    say!(
        "{}",
        output::table(
            ["NAME", "STATE", "ADDED", "CERTIFICATE ENDS"],
            rows.collect()
        )
    );
    Ok(())
}

pub(super) fn json_of(operator: &pb::Operator) -> serde_json::Value {
    json!({
        "id": OperatorId::try_from(operator.id.as_slice()).ok(),
        "name": operator.name,
        "created_at": text::rfc3339(operator.created_at),
        "certificate_not_after": text::rfc3339(operator.certificate_not_after),
        "revoked_at": text::rfc3339(operator.revoked_at),
    })
}
