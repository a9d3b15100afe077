//! `mesh events`.

use anyhow::Result;
use mesh_api::pb;
use serde_json::json;

use super::Session;
use crate::args::EventsArgs;
use crate::{output, text};

pub(super) async fn run(session: &Session, args: EventsArgs) -> Result<()> {
    let (_, mut admin) = session.admin().await?;
    let request = pb::WatchEventsRequest {
        network: args.network.map(String::from).unwrap_or_default(),
        follow: args.follow,
        limit: args.lines,
    };
    let mut events = admin.watch_events(request).await?.into_inner();
    let coloured = output::coloured();
    while let Some(event) = events.message().await? {
        let pb::Event {
            time,
            network,
            kind,
            subject,
            detail,
        } = event;
        let at = text::rfc3339(time);
        if session.json {
            let event = json!({
                "time": at, "network": network, "kind": kind, "subject": subject, "detail": detail,
            });
            output::print_json("mesh.event/1", "event", event)?;
            continue;
        }
        let at = at.unwrap_or_default();
        let second = at
            .split('.')
            .next()
            .unwrap_or_default()
            .trim_end_matches('Z');
        let at = output::paint(&second.replace('T', " "), output::Colour::Dim, coloured);
        let kind = output::paint(&kind, output::Colour::Cyan, coloured);
        say!("{at}  {kind}  {subject}  {detail}");
    }
    Ok(())
}
