//! What fails around the mesh, and what a person may rely on then: a clear word about it, nothing
//! lost, and all well again by itself when the cause is gone.
//!
//! Clocks that are off are in `bad_input.rs`, lost databases and buses in `outage.rs`, a lost
//! coordinator in `coordinator_killed.rs`, a worker that moves in `worker_moves.rs`.

#![allow(clippy::print_stdout, reason = "figures are printed")]

mod descriptors;
mod disk;
mod files;
mod freeze;
mod identity;
mod link;
mod names;
mod removal;

use std::time::Duration;

use anyhow::ensure;
use integration::{Cli, MeshUp, MeshUpOptions};
use mesh_testkit::eventually;

const SOON: Duration = Duration::from_secs(30);

/// `mesh up` without workers.
#[track_caller]
fn without_workers(cli: &Cli) -> MeshUp {
    let options = MeshUpOptions {
        demo: false,
        ..MeshUpOptions::default()
    };
    MeshUp::start(cli, options)
}

/// Waits until the coordinator says that these nodes are in this state.
#[track_caller]
fn wait_for_state(cli: &Cli, names: &[&str], state: &str, within: Duration) {
    eventually(&format!("{names:?} are {state}"), within, || {
        let listed = cli.mesh(&["--json", "node", "list"]).success()?.stdout;
        let listed: serde_json::Value = serde_json::from_str(&listed)?;
        let nodes = listed["nodes"].as_array().cloned().unwrap_or_default();
        let is_so = |name: &&str| {
            let mut nodes = nodes.iter();
            nodes.any(|node| node["name"] == *name && node["state"] == state)
        };
        ensure!(names.iter().all(is_so), "{listed}");
        Ok(())
    });
}

/// Waits until the gateway shows a node's console.
#[track_caller]
fn wait_for_console(up: &MeshUp, name: &str, within: Duration) {
    eventually(&format!("the console of {name}"), within, || {
        let reply = up.get(&format!("/{name}/"))?;
        ensure!(reply.status == 200, "status {}", reply.status);
        Ok(())
    });
}

/// Waits for an event of this kind, of which the rest of its line says this.
#[track_caller]
fn wait_for_event(cli: &Cli, kind: &str, rest: &str) {
    let wanted = format!("  {kind}  {rest}");
    eventually(&format!("an event {kind}"), SOON, || {
        let events = cli.mesh(&["events"]).success()?.stdout;
        ensure!(events.contains(&wanted), "{events}");
        Ok(())
    });
}
