//! `cargo xtask <verb>`: everything a contributor or the CI runs on this repository.
//!
//! What lives here: one module per verb, plus [`workspace`] (where things are) and [`process`]
//! (running children). What does not: anything the product itself needs at run time.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line talks to people"
)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod ci;
mod codegen;
mod compose;
mod deb;
mod docs;
mod first_light;
mod fuzz;
mod k8s;
mod lint;
mod process;
mod secrets;
mod setup;
mod sim;
mod soak;
mod steps;
mod systemd;
mod test;
mod tidy;
mod virtual_time;
mod workspace;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "What a contributor or the CI runs on this repository"
)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install the Debian packages that tests and benches need; asks before it uses root.
    Setup(setup::Args),
    /// All tests: units, then the journeys with the real binaries.
    Test(test::Args),
    /// Formatting, clippy and rustdoc; every warning is an error.
    Lint,
    /// The repository's own rules: dependency edges, imports, sizes, names, links.
    Tidy,
    /// Generate libs/api/src/gen from proto/mesh/v1 (no protoc needed).
    Codegen(codegen::Args),
    /// Generate docs/cli from the programs' own help.
    Docs(docs::Args),
    /// Run a benchmark in release mode; its report is target/bench/NAME.json.
    Bench(bench::Args),
    /// Debian packages of all programs, in target/deb.
    Deb(deb::Args),
    /// Check the manifests in deploy/k8s.
    K8s(k8s::Args),
    /// Check the units in deploy/systemd.
    Systemd(systemd::Args),
    /// From a clone to the first page by the README's first command, with a clock beside it.
    FirstLight(first_light::Args),
    /// Fuzz one target, or list the targets.
    Fuzz(fuzz::Args),
    /// Simulate the whole system: a thousand seeds, or one again.
    Sim(sim::Args),
    /// The real programs under load for ten minutes: memory, descriptors and threads stay flat.
    Soak(soak::Args),
    /// Build the container images and print their sizes.
    Images(compose::ImagesArgs),
    /// `docker compose up` of a fresh clone, real clients, and down again.
    Compose(compose::Args),
    /// Everything .ci/run does.
    Ci(ci::Args),
}

fn main() -> ExitCode {
    let outcome = match Args::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Lint => lint::run(),
        Verb::Tidy => tidy::run(),
        Verb::Codegen(args) => codegen::run(&args),
        Verb::Docs(args) => docs::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Deb(args) => deb::run(&args),
        Verb::K8s(args) => k8s::run(&args),
        Verb::Systemd(args) => systemd::run(&args),
        Verb::FirstLight(args) => first_light::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Sim(args) => sim::run(&args),
        Verb::Soak(args) => soak::run(&args),
        Verb::Images(args) => compose::images(&args),
        Verb::Compose(args) => compose::run(&args),
        Verb::Ci(args) => ci::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
