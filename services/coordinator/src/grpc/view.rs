//! What operators are shown, as messages.

use mesh_api::pb;
use mesh_types::route::console_prefix;
use mesh_types::{RelayId, Timestamp};

use crate::app::{NetworkFigures, NodeView, RelayView, Status};
use crate::members::Members;
use crate::record::{
    AuditEntry, EventRecord, NetworkRecord, OperatorRecord, SshFacts, TokenRecord,
};

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn or_never(at: Option<Timestamp>) -> i64 {
    at.map_or(0, Timestamp::as_micros)
}

pub(super) fn status(status: Status) -> pb::AdminStatusResponse {
    let Status {
        started_at,
        server_time,
        ca_fingerprint,
        ca_not_after,
        networks,
        relays,
        store_problem,
        bus_problem,
    } = status;
    let (open_files, open_files_limit) = mesh_daemon::open_files();
    let network = |figures: NetworkFigures| pb::NetworkStatus {
        name: figures.name.to_string(),
        online: count(figures.counts.online),
        stale: count(figures.counts.stale),
        offline: count(figures.counts.offline),
        version: figures.version,
    };
    let relay = |view: RelayView| pb::RelayStatus {
        id: view.record.id.as_bytes().to_vec(),
        name: view.record.name.to_string(),
        state: pb::NodeState::from(view.state).into(),
        derp: view.record.derp.clone(),
        stun: view.record.stun.clone(),
    };
    pb::AdminStatusResponse {
        version: mesh_daemon::build_info::VERSION.to_owned(),
        started_at: started_at.as_micros(),
        server_time: server_time.as_micros(),
        ca_fingerprint: ca_fingerprint.to_vec(),
        ca_not_after: ca_not_after.as_micros(),
        networks: networks.into_iter().map(network).collect(),
        relays: relays.into_iter().map(relay).collect(),
        writable: store_problem.is_none(),
        store_problem: store_problem.unwrap_or_default(),
        bus_problem: bus_problem.unwrap_or_default(),
        open_files,
        open_files_limit,
    }
}

pub(super) fn network(record: &NetworkRecord, nodes: usize) -> pb::Network {
    pb::Network {
        id: record.id.as_bytes().to_vec(),
        name: record.name.to_string(),
        created_at: record.created_at.as_micros(),
        nodes: count(nodes),
    }
}

pub(super) fn token(members: &Members, record: &TokenRecord) -> pb::Token {
    let network = record.network.and_then(|id| members.network(id));
    pb::Token {
        id: record.id.as_bytes().to_vec(),
        network: network
            .map(|info| info.record.name.to_string())
            .unwrap_or_default(),
        role: pb::Role::from(record.role).into(),
        owner: record.owner.clone(),
        reusable: record.reusable,
        created_at: record.created_at.as_micros(),
        expires_at: record.expires_at.as_micros(),
        revoked_at: or_never(record.revoked_at),
        uses: record.uses,
    }
}

pub(super) fn node(view: NodeView) -> pb::Node {
    let NodeView {
        record,
        network,
        state,
        last_seen,
        endpoints,
        home_relay,
        troubles,
    } = view;
    let SshFacts {
        user,
        via_loopback: _,
        pinned,
        held,
    } = &record.ssh;
    pb::Node {
        id: record.id.as_bytes().to_vec(),
        network: network.to_string(),
        name: record.name.to_string(),
        role: pb::Role::from(record.role).into(),
        owner: record.owner.clone(),
        addrs: Some(record.addrs.into()),
        wg_key: record.wg_key.as_bytes().to_vec(),
        state: pb::NodeState::from(state).into(),
        uptime_class: pb::UptimeClass::from(record.uptime_class).into(),
        version: record.version.clone(),
        created_at: record.created_at.as_micros(),
        last_seen: or_never(last_seen.or(record.last_seen)),
        certificate_not_after: record.certificate_not_after.as_micros(),
        services: record.services.iter().cloned().map(Into::into).collect(),
        ssh_host_keys: pinned.clone(),
        ssh_host_keys_held: held.clone(),
        ssh_user: user.clone(),
        endpoints: endpoints.into_iter().map(Into::into).collect(),
        home_relay: home_relay
            .map(RelayId::to_bytes)
            .map(Vec::from)
            .unwrap_or_default(),
        console_prefix: console_prefix(&network, &record.name),
        labels: record
            .labels
            .iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        troubles: troubles
            .iter()
            .map(|trouble| trouble.as_str().to_owned())
            .collect(),
    }
}

pub(super) fn operator(record: &OperatorRecord) -> pb::Operator {
    pb::Operator {
        id: record.id.as_bytes().to_vec(),
        name: record.name.clone(),
        created_at: record.created_at.as_micros(),
        certificate_not_after: record.certificate_not_after.as_micros(),
        revoked_at: or_never(record.revoked_at),
    }
}

pub(super) fn audit((seq, entry): (i64, AuditEntry)) -> pb::AuditEntry {
    let AuditEntry {
        time,
        actor,
        action,
        subject,
        before,
        after,
    } = entry;
    pb::AuditEntry {
        seq,
        time: time.as_micros(),
        actor,
        action,
        subject,
        before,
        after,
    }
}

pub(super) fn event(record: EventRecord) -> pb::Event {
    let EventRecord {
        id: _,
        time,
        network,
        kind,
        subject,
        detail,
    } = record;
    pb::Event {
        time: time.as_micros(),
        network: network.map(String::from).unwrap_or_default(),
        kind: kind.as_str().to_owned(),
        subject,
        detail,
    }
}
