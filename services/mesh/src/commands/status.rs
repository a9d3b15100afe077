//! `mesh status`: how the mesh is doing, what is wrong, and what to type next.

use std::process::ExitCode;

use anyhow::Result;
use mesh_api::context::{Context, ContextConnectError};
use mesh_api::model::enums;
use mesh_api::pb;
use mesh_api::pb::admin_service_client::AdminServiceClient;
use mesh_types::{Finding, NodeState, RelayId, Severity, Timestamp};
use serde_json::json;
use tonic::transport::Channel;

use super::{Session, login};
use crate::advice::{self, Told};
use crate::{output, text};

const SCHEMA: &str = "mesh.status/2";
/// How many of the latest events are looked through for refused heartbeats.
const EVENTS: u32 = 500;

/// Prints the status; the exit code is 1 when something that should work does not.
pub(super) async fn run(session: &Session) -> Result<ExitCode> {
    let context = session.context()?;
    let (status, findings) = match told(session, context.clone()).await? {
        Ok((status, findings)) => (Some(status), findings),
        Err(finding) => (None, vec![finding]),
    };
    if session.json {
        output::print_json(
            SCHEMA,
            "status",
            to_json(&context, status.as_ref(), &findings),
        )?;
    } else if let Some(status) = &status {
        show(&context, status, &findings);
    } else {
        let offline = output::state(NodeState::Offline, output::coloured());
        say!("coordinator {} {offline}", context.coordinators.join(", "));
        say_findings(&findings);
    }
    Ok(if Finding::any_error(&findings) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

pub(super) type Answer = Result<(pb::AdminStatusResponse, Vec<Finding>), Finding>;

/// What the coordinator tells, and what is wrong; the inner error is a coordinator that does not
/// answer.
pub(super) async fn told(session: &Session, mut context: Context) -> Result<Answer> {
    let channel = match context.coordinator().await {
        Ok(channel) => channel,
        Err(ContextConnectError::Connect(error)) => {
            return Ok(Err(advice::unreachable(&error.to_string())));
        }
        Err(error) => return Err(error.into()),
    };
    login::renew_when_due(session, &mut context, channel.clone()).await;
    let mut admin = AdminServiceClient::new(channel).max_decoding_message_size(64 << 20);
    let status = admin.status(pb::AdminStatusRequest {}).await?.into_inner();
    let request = pb::ListNodesRequest {
        network: String::new(),
    };
    let nodes = admin.list_nodes(request).await?.into_inner().nodes;
    let (events, unread) = events_or_why(&mut admin).await;
    let told = Told {
        status: &status,
        nodes: &nodes,
        events: &events,
    };
    let until = login::certificate_until(&context);
    let mut findings = advice::of_mesh(told, until, text::now());
    findings.extend(unread);
    Ok(Ok((status, findings)))
}

/// The latest events, or none and what keeps them away: they lie in the store, and whoever asks
/// wants to know most of all when that is down.
pub(super) async fn events_or_why(
    admin: &mut AdminServiceClient<Channel>,
) -> (Vec<pb::Event>, Option<Finding>) {
    match latest_events(admin, EVENTS).await {
        Ok(events) => (events, None),
        Err(error) => (
            Vec::new(),
            Some(advice::events_unread(&text::explain(&error))),
        ),
    }
}

/// The latest events of all networks, oldest first.
pub(super) async fn latest_events(
    admin: &mut AdminServiceClient<Channel>,
    limit: u32,
) -> Result<Vec<pb::Event>> {
    let request = pb::WatchEventsRequest {
        network: String::new(),
        follow: false,
        limit,
    };
    let mut stream = admin.watch_events(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await? {
        events.push(event);
    }
    Ok(events)
}

pub(super) fn to_json(
    context: &Context,
    status: Option<&pb::AdminStatusResponse>,
    findings: &[Finding],
) -> serde_json::Value {
    let Some(status) = status else {
        return json!({ "coordinators": context.coordinators, "findings": findings });
    };
    json!({
        "coordinators": context.coordinators,
        "version": status.version,
        "started_at": text::rfc3339(status.started_at),
        "writable": status.writable,
        "networks": status.networks.iter().map(|network| json!({
            "name": network.name,
            "online": network.online,
            "stale": network.stale,
            "offline": network.offline,
        })).collect::<Vec<_>>(),
        "relays": status.relays.iter().map(|relay| json!({
            "id": RelayId::try_from(relay.id.as_slice()).ok(),
            "name": relay.name,
            "state": enums::node_state(relay.state),
            "derp": relay.derp,
            "stun": relay.stun,
        })).collect::<Vec<_>>(),
        "gateway": context.gateway,
        "findings": findings,
    })
}

fn show(context: &Context, status: &pb::AdminStatusResponse, findings: &[Finding]) {
    let coloured = output::coloured();
    say!(
        "coordinator {} {} (version {}, up {})",
        context.coordinators.join(", "),
        output::state(NodeState::Online, coloured),
        status.version,
        text::span(text::now().since(Timestamp::from_micros(status.started_at))),
    );
    if let Some(gateway) = &context.gateway {
        say!("gateway     {gateway}");
    }
    say!();
    let rows = status.networks.iter().map(|network| {
        [
            network.name.clone(),
            network.online.to_string(),
            network.stale.to_string(),
            network.offline.to_string(),
        ]
    });
    say!(
        "{}",
        output::table(["NETWORK", "ONLINE", "STALE", "OFFLINE"], rows.collect())
    );
    if !status.relays.is_empty() {
        say!();
        let rows = status.relays.iter().map(|relay| {
            let state = output::state(enums::node_state(relay.state), coloured);
            [relay.name.clone(), state, relay.derp.join(", ")]
        });
        say!(
            "{}",
            output::table(["RELAY", "STATE", "DERP"], rows.collect())
        );
    }
    say_findings(findings);
}

/// What is wrong, for people.
pub(super) fn say_findings(findings: &[Finding]) {
    let coloured = output::coloured();
    say!();
    if findings.is_empty() {
        let text = "Nothing is wrong.";
        say!("{}", output::paint(text, output::Colour::Green, coloured));
    }
    for finding in findings {
        let colour = match finding.severity {
            Severity::Error => output::Colour::Red,
            Severity::Warning => output::Colour::Yellow,
            Severity::Notice => output::Colour::Dim,
        };
        let text = finding.to_string();
        let (mark, rest) = text.split_at(2);
        say!("{}{rest}", output::paint(mark, colour, coloured));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_that_cannot_be_read_are_a_notice_and_none() {
        // Nobody listens on the discard port (RFC 863).
        let nobody = tonic::transport::Endpoint::from_static("http://127.0.0.1:9").connect_lazy();
        let (events, unread) = events_or_why(&mut AdminServiceClient::new(nobody)).await;
        assert_eq!(events, []);
        let unread = unread.expect("a notice");
        assert_eq!(unread.severity, Severity::Notice);
        assert!(
            unread.what.starts_with("events cannot be read: "),
            "{unread}"
        );
    }
}
