//! Who may depend on whom, and on which crates of other people.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Findings;
use crate::process;

/// Our crates and what each may depend on. A crate that is not here is a fault: adding one is a
/// decision, and this is where it is written down.
const EDGES: &[(&str, &[&str])] = &[
    ("mesh-types", &[]),
    ("mesh-trace", &[]),
    ("mesh-api", &["mesh-types"]),
    ("mesh-netmap", &["mesh-types"]),
    ("mesh-tunnel", &["mesh-types"]),
    ("mesh-node", &["mesh-api", "mesh-tunnel", "mesh-types"]),
    ("mesh-ssh", &["mesh-trace", "mesh-types"]),
    ("mesh-daemon", &["mesh-trace"]),
    ("hyper-reverse-proxy", &[]),
    ("mesh-testkit", &["mesh-types"]),
    (
        "coordinator",
        &[
            "mesh-api",
            "mesh-daemon",
            "mesh-netmap",
            "mesh-ssh",
            "mesh-trace",
            "mesh-types",
        ],
    ),
    (
        "relay",
        &[
            "mesh-api",
            "mesh-daemon",
            "mesh-node",
            "mesh-tunnel",
            "mesh-types",
        ],
    ),
    (
        "traffic-gateway",
        &[
            "hyper-reverse-proxy",
            "mesh-api",
            "mesh-daemon",
            "mesh-node",
            "mesh-trace",
            "mesh-types",
        ],
    ),
    (
        "deploy-manager",
        &[
            "mesh-api",
            "mesh-daemon",
            "mesh-node",
            "mesh-ssh",
            "mesh-trace",
            "mesh-types",
        ],
    ),
    (
        "worker-agent",
        &[
            "mesh-api",
            "mesh-daemon",
            "mesh-node",
            "mesh-ssh",
            "mesh-trace",
            "mesh-types",
        ],
    ),
    (
        "deploy-cli",
        &[
            "mesh-api",
            "mesh-daemon",
            "mesh-ssh",
            "mesh-trace",
            "mesh-types",
        ],
    ),
    // All in one process: the only crate that may link services.
    (
        "mesh",
        &[
            "coordinator",
            "deploy-cli",
            "deploy-manager",
            "mesh-api",
            "mesh-daemon",
            "mesh-node",
            "mesh-ssh",
            "mesh-trace",
            "mesh-types",
            "relay",
            "traffic-gateway",
            "worker-agent",
        ],
    ),
    // Black box: it starts binaries. The contract's types are how it asks them, the tunnel's codecs
    // are how it plays a stranger.
    (
        "integration",
        &["mesh-api", "mesh-testkit", "mesh-tunnel", "mesh-types"],
    ),
    // Cores only, and what they say to each other; the services' cores by their source files.
    (
        "mesh-sim",
        &[
            "mesh-api",
            "mesh-netmap",
            "mesh-node",
            "mesh-tunnel",
            "mesh-types",
        ],
    ),
    ("xtask", &[]),
];

/// Only tests may use these.
const DEV_ONLY: &[&str] = &["mesh-testkit"];

/// Crates of other people that belong to one place.
const OWNERS: &[(&str, &[&str])] = &[
    ("sea-orm", &["coordinator"]),
    ("sea-orm-migration", &["coordinator"]),
    ("sqlx", &[]),
    ("redis", &["coordinator"]),
    // Journeys send what no node of ours would.
    ("boringtun", &["integration", "mesh-tunnel"]),
    ("smoltcp", &["mesh-node"]),
    ("russh", &["mesh-ssh"]),
    ("fast-socks5", &["deploy-manager"]),
    ("config", &["mesh-daemon"]),
    ("tracing-subscriber", &["mesh-daemon"]),
    ("opentelemetry", &["mesh-trace"]),
    ("opentelemetry-otlp", &["mesh-trace"]),
    ("opentelemetry_sdk", &["mesh-trace"]),
    ("opentelemetry-proto", &["integration"]),
    ("protox", &["xtask"]),
    ("tonic-prost-build", &["xtask"]),
    ("tonic-prost", &["coordinator", "mesh-api"]),
    ("fantoccini", &["mesh-testkit"]),
];

/// What no sans-IO core may use, not even in its tests.
const CORES: &[&str] = &["mesh-types", "mesh-netmap", "mesh-tunnel"];
const NOT_IN_CORES: &[&str] = &[
    "tokio",
    "tokio-util",
    "tokio-stream",
    "futures-util",
    "tonic",
    "prost",
    "hyper",
    "hyper-util",
    "socket2",
    "sea-orm",
    "redis",
    "nix",
    "mesh-daemon",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// Absent for a normal dependency.
    kind: Option<String>,
}

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    let metadata = metadata()?;
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    for package in &metadata.packages {
        let name = package.name.as_str();
        let Some(edges) = allowed.get(name) else {
            findings.fault(format!(
                "crate {name} is new: write its edges down in xtask's tidy/edges.rs"
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let on = dependency.name.as_str();
            let dev = dependency.kind.as_deref() == Some("dev");
            // A crate of ours may name itself in dev-dependencies to turn features on.
            let ours = allowed.contains_key(on) && on != name;
            if ours && !edges.contains(&on) && !(dev && DEV_ONLY.contains(&on)) {
                findings.fault(format!("{name} must not depend on {on}"));
            }
            if ours && DEV_ONLY.contains(&on) && !dev && name != "integration" {
                findings.fault(format!("{name} may use {on} in tests only"));
            }
            let owners = OWNERS
                .iter()
                .find(|(owned, _)| *owned == on)
                .map(|(_, owners)| *owners);
            if owners.is_some_and(|owners| !owners.contains(&name)) {
                findings.fault(format!(
                    "{name} must not use {on}: see xtask's tidy/edges.rs"
                ));
            }
            if CORES.contains(&name) && NOT_IN_CORES.contains(&on) {
                findings.fault(format!("{name} is a sans-IO core and must not use {on}"));
            }
        }
    }
    Ok(())
}

fn metadata() -> Result<Metadata> {
    let output = process::cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("run cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).context("read what cargo metadata prints")
}
