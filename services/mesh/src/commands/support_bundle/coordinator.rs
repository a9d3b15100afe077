//! What the context's coordinator tells by its API.

use anyhow::Result;
use mesh_api::context::Context;
use mesh_api::pb;
use mesh_api::pb::admin_service_client::AdminServiceClient;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::archive::Bundle;
use crate::commands::{Session, network, node, operator, status, token};
use crate::text;

/// How many of the latest events, and of the latest entries of the audit.
const LATEST: u32 = 2000;

pub(super) async fn gather(session: &Session, bundle: &mut Bundle) {
    let context = match session.context() {
        Ok(context) => context,
        Err(error) => return bundle.miss("coordinator", &text::explain(&error)),
    };
    bundle.add_json("context.json", &shown(&context));
    match status::told(session, context.clone()).await {
        Ok(Ok((status, findings))) => {
            let document = status::to_json(&context, Some(&status), &findings);
            bundle.add_json("coordinator/status.json", &document);
        }
        Ok(Err(finding)) => {
            bundle.miss("coordinator", &finding.what);
            let document = status::to_json(&context, None, &[finding]);
            bundle.add_json("coordinator/status.json", &document);
            return;
        }
        Err(error) => return bundle.miss("coordinator", &text::explain(&error)),
    }
    let channel = match context.coordinator().await {
        Ok(channel) => channel,
        Err(error) => return bundle.miss("coordinator", &error.to_string()),
    };
    let mut admin = AdminServiceClient::new(channel).max_decoding_message_size(64 << 20);
    lists(&mut admin, bundle).await;
    let events = status::latest_events(&mut admin, LATEST).await;
    let events = events.map(|events| lines(events.iter().map(event_json)));
    put(bundle, "coordinator/events.jsonl", events);
    let request = pb::ListAuditRequest { limit: LATEST };
    let audit = admin.list_audit(request).await;
    let audit = audit.map(|list| lines(list.into_inner().entries.iter().map(audit_json)));
    put(bundle, "coordinator/audit.jsonl", audit.map_err(Into::into));
}

/// A file of what was asked for. Where that failed the file says why, so that nobody takes what is
/// not known for what is not there, and the manifest lists it as missing.
fn put(bundle: &mut Bundle, name: &str, asked: Result<String>) {
    match asked {
        Ok(text) => bundle.add(name, &text),
        Err(error) => {
            let why = text::explain(&error);
            bundle.miss(name, &why);
            bundle.add(name, &lines(std::iter::once(json!({ "error": why }))));
        }
    }
}

/// One document on each line.
fn lines(documents: impl Iterator<Item = Value>) -> String {
    documents.map(|document| format!("{document}\n")).collect()
}

/// The context without its credential.
fn shown(context: &Context) -> Value {
    json!({
        "coordinators": context.coordinators,
        "network": context.network,
        "socks": context.socks,
        "deploy": context.deploy,
        "gateway": context.gateway,
    })
}

async fn lists(admin: &mut AdminServiceClient<Channel>, bundle: &mut Bundle) {
    let mut put = |name: &str, listed: Result<Vec<Value>, tonic::Status>| {
        let text = listed.map(|list| format!("{:#}\n", Value::Array(list)));
        let name = format!("coordinator/{name}.json");
        put(bundle, &name, text.map_err(Into::into));
    };
    let all = String::new();
    let nodes = admin.list_nodes(pb::ListNodesRequest {
        network: all.clone(),
    });
    let nodes = nodes.await.map(|list| list.into_inner().nodes);
    put(
        "nodes",
        nodes.map(|list| list.iter().map(node::json_of).collect()),
    );
    let networks = admin.list_networks(pb::ListNetworksRequest {}).await;
    let networks = networks.map(|list| list.into_inner().networks);
    put(
        "networks",
        networks.map(|list| list.iter().map(network::json_of).collect()),
    );
    let tokens = admin
        .list_tokens(pb::ListTokensRequest { network: all })
        .await;
    let tokens = tokens.map(|list| list.into_inner().tokens);
    put(
        "tokens",
        tokens.map(|list| list.iter().map(token::json_of).collect()),
    );
    let operators = admin.list_operators(pb::ListOperatorsRequest {}).await;
    let operators = operators.map(|list| list.into_inner().operators);
    put(
        "operators",
        operators.map(|list| list.iter().map(operator::json_of).collect()),
    );
}

fn audit_json(entry: &pb::AuditEntry) -> Value {
    // What is no JSON is kept as the text that it is.
    let side = |text: &str| match text {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    };
    json!({
        "seq": entry.seq,
        "time": text::rfc3339(entry.time),
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "before": side(&entry.before),
        "after": side(&entry.after),
    })
}

fn event_json(event: &pb::Event) -> Value {
    json!({
        "time": text::rfc3339(event.time),
        "network": event.network,
        "kind": event.kind,
        "subject": event.subject,
        "detail": event.detail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::{Redactor, Secrets};

    #[test]
    fn what_could_not_be_asked_has_its_reason_in_its_place_and_in_the_manifest() {
        let mut bundle = Bundle::new(Redactor::new(&Secrets::default()).expect("none"));
        let down = tonic::Status::unavailable("the database gave no answer");
        put(&mut bundle, "coordinator/tokens.json", Err(down.into()));
        put(&mut bundle, "coordinator/nodes.json", Ok("[]\n".to_owned()));
        let packed = bundle.pack("x", text::now()).expect("packs");
        let names: Vec<&str> = packed
            .listing
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["coordinator/tokens.json", "coordinator/nodes.json"]);
        let [missing] = &packed.missing[..] else {
            panic!("one is missing: {:?}", packed.missing);
        };
        assert_eq!(missing.what, "coordinator/tokens.json");
        assert!(
            missing.why.contains("the database gave no answer"),
            "{missing:?}"
        );
        let plain = flate2::read::GzDecoder::new(&packed.bytes[..]);
        let mut archive = tar::Archive::new(plain);
        let found = archive.entries().expect("an archive").find_map(|entry| {
            let mut entry = entry.expect("whole");
            let path = entry.path().expect("a path").display().to_string();
            let text = std::io::read_to_string(&mut entry).expect("text");
            path.ends_with("tokens.json").then_some(text)
        });
        let found: Value = serde_json::from_str(&found.expect("there")).expect("a document");
        assert_eq!(found["error"], missing.why);
    }

    #[test]
    fn an_audit_entry_is_told_with_what_was_before_and_after() {
        let told = audit_json(&pb::AuditEntry {
            seq: 7,
            time: 1_700_000_000_000_000,
            actor: "operator:anna".into(),
            action: "node-rename".into(),
            subject: "node:1".into(),
            before: r#"{"name":"a"}"#.into(),
            after: "odd".into(),
        });
        assert_eq!(told["before"]["name"], "a");
        assert_eq!((&told["after"], &told["seq"]), (&"odd".into(), &7.into()));
    }
}
