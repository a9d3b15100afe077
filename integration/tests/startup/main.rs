//! What a program says before it does anything: to weak settings ([`weak`]), to many faults at once
//! ([`together`]), to keys it does not know and to generated files ([`keys`]), and of itself.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::time::Duration;

use integration::Cli;
use mesh_testkit::{Finished, Spec};

mod keys;
mod together;
mod weak;

const SOON: Duration = Duration::from_secs(60);
const SERVICES: &[&str] = &[
    "coordinator",
    "relay",
    "traffic-gateway",
    "deploy-manager",
    "worker-agent",
];

/// What the names of a service's environment variables begin with.
fn prefix(service: &str) -> String {
    format!("MESH_{}", service.replace('-', "_").to_uppercase())
}

fn ran(spec: Spec) -> Finished {
    let ran = spec.run(SOON).expect("runs");
    assert!(!ran.all().contains("panicked"), "{}", ran.all());
    ran
}

#[test]
fn every_program_tells_the_same_version() {
    let cli = Cli::new().expect("folders");
    let token = mesh_types::token::PREFIX.trim_end_matches('.');
    let derp = mesh_tunnel::derp::VERSION;
    let protocols = format!("protocols: grpc mesh.v1, join-token {token}, derp {derp}\n");
    for program in SERVICES.iter().chain(&["mesh", "deploy-cli"]) {
        let long = ran(cli.product(program).arg("--version"));
        let first = format!("{program} {}\n", env!("CARGO_PKG_VERSION"));
        assert!(long.stdout.starts_with(&first), "{}", long.all());
        assert!(long.stdout.ends_with(&protocols), "{}", long.all());
    }
}

#[test]
fn health_of_a_service_that_does_not_run_is_1_and_says_where_it_looked() {
    let cli = Cli::new().expect("folders");
    // Nobody listens on the discard port of this address.
    for service in SERVICES {
        let spec = cli.product(service).args(["health", "--set"]);
        let health = ran(spec.arg("admin.listen=127.9.8.7:9"));
        assert_eq!(health.code, Some(1), "{}", health.all());
        assert!(health.stderr.contains("127.9.8.7:9"), "{}", health.all());
    }
}
