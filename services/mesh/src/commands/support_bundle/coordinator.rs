//! What the context's coordinator tells by its API.

use mesh_api::context::Context;
use mesh_api::pb;
use mesh_api::pb::admin_service_client::AdminServiceClient;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::archive::Bundle;
use crate::commands::{Session, network, node, operator, status, token};
use crate::text;

/// How many of the latest events.
const EVENTS: u32 = 2000;

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
    match status::latest_events(&mut admin, EVENTS).await {
        Ok(events) => {
            let lines = events
                .iter()
                .map(|event| format!("{}\n", event_json(event)));
            bundle.add("coordinator/events.jsonl", &lines.collect::<String>());
        }
        Err(error) => bundle.miss("coordinator/events.jsonl", &text::explain(&error)),
    }
    bundle.miss(
        "coordinator/audit",
        "the audit log is not given out by the API; on the coordinator's machine, while it is \
         stopped, 'mesh db check' verifies it",
    );
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
    let mut put = |name: &str, listed: Result<Vec<Value>, tonic::Status>| match listed {
        Ok(list) => bundle.add_json(&format!("coordinator/{name}.json"), &Value::Array(list)),
        Err(status) => bundle.miss(
            &format!("coordinator/{name}.json"),
            &text::explain(&status.into()),
        ),
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

fn event_json(event: &pb::Event) -> Value {
    json!({
        "time": text::rfc3339(event.time),
        "network": event.network,
        "kind": event.kind,
        "subject": event.subject,
        "detail": event.detail,
    })
}
